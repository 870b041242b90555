"""A model behind an OpenAI-compatible address as a respondent: plain HTTP, time-outs, retries, one line for whatever is
wrong."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from transfuse.errors import UserError
from transfuse.methods.unlearning.respondents import Message, OneByOne

_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP states that another try may mend
_LONGEST_WAIT = 30.0  # seconds, whatever the server asks for


class ChatEndpoint(OneByOne):
    """A chat model behind ``URL/chat/completions``.

    Args:
        url: up to the version, such as "http://localhost:8000/v1".
        name: of the model there.
        max_tokens: of a reply.
        temperature: of samples; draw 0 asks at temperature 0.
        timeout: seconds to wait for a reply.
        retries: further tries after a time-out, a lost connection, or a state that says "later".
        workers: requests at a time.
        key: the bearer token; None takes that of the environment variable OPENAI_API_KEY, if it is set.
        pause: what waits between tries; tests give their own.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        max_tokens: int = 64,
        temperature: float = 0.7,
        timeout: float = 60.0,
        retries: int = 4,
        workers: int = 8,
        key: str | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"endpoint {url!r}", "an address that begins with http:// or https://")
        super().__init__(lambda messages: self.answer(messages, 0), workers)
        self.url = url.rstrip("/") + ("" if url.rstrip("/").endswith("/chat/completions") else "/chat/completions")
        self.name, self.max_tokens, self.temperature = name, max_tokens, temperature
        self.timeout, self.retries, self.pause = timeout, retries, pause
        self.key = os.environ.get("OPENAI_API_KEY", "") if key is None else key

    def answer(self, messages: list[Message], draw: int) -> str:
        """One reply.

        Raises:
            UserError: the endpoint cannot be reached, refuses, or answers something else than a chat completion.
        """
        body: dict[str, Any] = {"model": self.name, "messages": messages, "max_tokens": self.max_tokens}
        body["temperature"] = self.temperature if draw else 0
        if draw:
            body["seed"] = draw
        for tried in range(self.retries + 1):
            reply, problem, wait = self._post(json.dumps(body).encode())
            if problem is None:
                return self._text(reply)
            if wait is None or tried == self.retries:
                break
            self.pause(min(_LONGEST_WAIT, max(wait, 0.5 * 2**tried)))
        tries = f" after {tried + 1} tries" if tried else ""
        raise UserError(f"endpoint {self.url!r}, model {self.name!r}: {problem}{tries}", "a chat completion")

    def _post(self, body: bytes) -> tuple[bytes, str | None, float | None]:
        """The reply, what went wrong, and the seconds to wait before another try (None: there is no use in one)."""
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            call = urllib.request.Request(self.url, body, headers)
            with urllib.request.urlopen(call, timeout=self.timeout) as response:
                return response.read(), None, None
        except urllib.error.HTTPError as error:
            with error:
                wait = _seconds(error.headers.get("Retry-After"))
                problem = f"HTTP {error.code} {_reason(error)}".strip()
            return b"", problem, wait if error.code in _PASSING else None
        except TimeoutError:
            return b"", f"no reply within {self.timeout:g} s", 0.0
        except urllib.error.URLError as error:
            late = isinstance(error.reason, TimeoutError)
            return b"", f"no reply within {self.timeout:g} s" if late else f"cannot be reached ({error.reason})", 0.0
        except (http.client.HTTPException, OSError) as error:
            return b"", f"the connection broke ({type(error).__name__})", 0.0
        except ValueError as error:  # an address or a key that no request can be made of
            return b"", str(error)[:160], None

    def _text(self, reply: bytes) -> str:
        try:
            text = json.loads(reply)["choices"][0]["message"]["content"]
        except (ValueError, RecursionError, KeyError, IndexError, TypeError):
            start = reply[:80].decode("utf-8", "replace")
            raise UserError(f"endpoint {self.url!r} answered {start!r}", "a chat completion") from None
        if text is None:
            return ""  # a filter may leave nothing
        if not isinstance(text, str):
            raise UserError(f"endpoint {self.url!r} answered content of type {type(text).__name__}", "a text")
        return text


def _seconds(value: str | None) -> float:
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        return 0.0  # a date


def _reason(error: urllib.error.HTTPError) -> str:
    """What the server says, in one line."""
    try:
        text = error.read(4000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        found = json.loads(text)
        inner = found.get("error", found) if isinstance(found, dict) else found
        text = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    except (ValueError, RecursionError):
        text = "" if "<" in text else text
    return " ".join((text or str(error.reason)).split())[:160]
