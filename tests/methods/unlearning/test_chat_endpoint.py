"""A chat endpoint: what is sent, what is tried again, and one line for each thing that can be wrong. The server runs in
this process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from transfuse.errors import UserError
from transfuse.methods.unlearning.chat_endpoint import ChatEndpoint


class Server(ThreadingHTTPServer):
    """Answers with a script of (status, headers, body), and then with the number of messages."""

    daemon_threads = True
    script: list[tuple[int, dict[str, str], bytes]]
    requests: list[dict[str, Any]]
    paths: list[str]
    keys: list[str | None]
    delay = 0.0
    together: threading.Barrier | None = None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.paths.append(self.path)
        self.server.keys.append(self.headers["Authorization"])
        time.sleep(self.server.delay)
        if self.server.together:
            self.server.together.wait(30)
        text = f"reply to {len(body['messages'])}"
        default = (200, {}, json.dumps({"choices": [{"message": {"content": text}}]}).encode())
        status, headers, answer = self.server.script.pop(0) if self.server.script else default
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        except OSError:
            pass  # the client has gone

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.script, made.requests, made.paths, made.keys = [], [], [], []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def endpoint(server: Server, **more: Any) -> ChatEndpoint:
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return ChatEndpoint(url, "tiny", **{"key": "secret", "pause": lambda _: None, **more})


def test_what_is_sent(server: Server) -> None:
    replies = endpoint(server, max_tokens=7).converse([["hello", "and?"], ["hello"]])
    assert replies == [["reply to 1", "reply to 3"], ["reply to 1"]]
    assert len(server.requests) == 2  # the opening is shared
    assert server.paths == ["/v1/chat/completions"] * 2
    assert server.keys == ["Bearer secret"] * 2
    second = server.requests[1]
    assert (second["model"], second["max_tokens"], second["temperature"]) == ("tiny", 7, 0)
    assert "seed" not in second
    assert [m["content"] for m in second["messages"]] == ["hello", "reply to 1", "and?"]
    endpoint(server, key="").converse([["hello"], ["hello"]], draw=3)
    assert [(r["temperature"], r["seed"]) for r in server.requests[2:]] == [(0.7, 3)] * 2
    assert server.keys[2:] == [None] * 2


def test_the_key_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "mine")
    endpoint(server, key=None).converse([["hello"]])
    assert server.keys == ["Bearer mine"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_states_that_pass_are_tried_again(server: Server, status: int) -> None:
    waits: list[float] = []
    server.script = [(status, {"Retry-After": "3"}, b"later"), (status, {}, b""), (status, {"Retry-After": "999"}, b"")]
    assert endpoint(server, pause=waits.append).converse([["hello"]]) == [["reply to 1"]]
    assert waits == [3.0, 1.0, 30.0]


def test_tries_come_to_an_end(server: Server) -> None:
    server.script = [(503, {"Retry-After": "Wed, 21 Oct"}, b'{"error": {"message": "over\\nloaded"}}')] * 3
    with pytest.raises(UserError, match=r"model 'tiny': HTTP 503 over loaded after 3 tries; expected a chat"):
        endpoint(server, retries=2).converse([["hello"]])


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b'{"error": {"message": "wrong key"}}', "HTTP 401 wrong key"),
        (404, b'{"error": "no such model"}', "HTTP 404 no such model"),
        (400, b"<html>x</html>", "HTTP 400 Bad Request"),
        (403, b"\xff\xfe", "HTTP 403"),
        (422, b"[" * 3000, "HTTP 422"),
    ],
)
def test_refusals_are_told_at_once(server: Server, status: int, body: bytes, said: str) -> None:
    server.script = [(status, {}, body)]
    with pytest.raises(UserError, match=said) as caught:
        endpoint(server).converse([["hello"]])
    assert len(server.requests) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": 3}}]}',
        b"[" * 50_000,
        b"null",
    ],
)
def test_replies_that_are_no_completion(server: Server, body: bytes) -> None:
    server.script = [(200, {}, body)]
    with pytest.raises(UserError, match="answered"):
        endpoint(server).converse([["hello"]])


def test_an_empty_reply_is_one(server: Server) -> None:
    server.script = [(200, {}, b'{"choices": [{"message": {"content": null}}]}')]
    assert endpoint(server).converse([["hello"]]) == [[""]]


def test_time_outs(server: Server) -> None:
    server.delay = 0.5
    with pytest.raises(UserError, match=r"no reply within 0\.05 s after 2 tries"):
        endpoint(server, timeout=0.05, retries=1).converse([["hello"]])


def test_nobody_there_and_no_address(server: Server) -> None:
    with pytest.raises(UserError, match="cannot be reached"):
        ChatEndpoint("http://127.0.0.1:9", "tiny", retries=0, key="").converse([["hello"]])
    with pytest.raises(UserError, match="endpoint 'localhost:8000'"):
        ChatEndpoint("localhost:8000", "tiny")
    with pytest.raises(UserError, match="model 'tiny'"):
        ChatEndpoint("http://exa mple", "tiny", retries=0, key="").converse([["hello"]])
    with pytest.raises(UserError, match="model 'tiny'"):
        endpoint(server, key="two\nlines", retries=0).converse([["hello"]])


def test_requests_go_together(server: Server) -> None:
    server.together = threading.Barrier(8)  # nobody is answered before all eight have asked
    assert endpoint(server, workers=8).converse([[f"hello {i}"] for i in range(8)]) == [["reply to 1"]] * 8
