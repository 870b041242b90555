"""`transfuse data` with a manifest of its own, and `transfuse report`."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from transfuse.cli import data as data_command
from transfuse.data import folder
from transfuse.data.folder import DataFile, DataSet

OFFLINE = "check the network, or use --from DIR, or set TRANSFUSE_DATA"
CONTENT = b"one\ntwo\n"


@pytest.fixture(autouse=True)
def one_set(monkeypatch: pytest.MonkeyPatch) -> DataSet:
    file = DataFile("words.txt", "raw/words.txt", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    set_ = DataSet("words", "Two words", "somebody/words", "0123456789abcdef", "MIT", "Somebody (2020)", (file,))
    for module in (folder, data_command):
        monkeypatch.setattr(module, "manifest", lambda: {"words": set_})
    return set_


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Addresses that answer."""
    answers: dict[str, bytes] = {}

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        if url not in answers:
            raise OSError("no route to host")
        return io.BytesIO(answers[url])

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return answers


def test_a_packed_file_is_kept_as_what_it_holds(
    transfuse: Callable, network: dict[str, bytes], workplace: Path, monkeypatch: pytest.MonkeyPatch, one_set: DataSet
) -> None:
    packed = replace(one_set, files=(replace(one_set.files[0], upstream="raw/words.txt.gz"),))
    for module in (folder, data_command):
        monkeypatch.setattr(module, "manifest", lambda: {"words": packed})
    address = "https://raw.githubusercontent.com/somebody/words/0123456789abcdef/raw/words.txt.gz"
    network[address] = b"<html>"
    done = transfuse("data", "get", "words")
    assert done.status == 2 and "no gzip file" in done.err and "Traceback" not in done.err
    network[address] = gzip.compress(CONTENT)
    assert transfuse("data", "get", "words").status == 0
    assert (workplace.parent / "data" / "words" / "words.txt").read_bytes() == CONTENT


def test_list_get_list(transfuse: Callable, network: dict[str, bytes], workplace: Path) -> None:
    address = "https://raw.githubusercontent.com/somebody/words/0123456789abcdef/raw/words.txt"
    assert json.loads(transfuse("data", "list", "--json").out)[0]["here"] == "no"
    done = transfuse("data", "get", "words")
    assert done.status == 2
    assert done.err == f"error: cannot fetch {address}: no route to host; {OFFLINE}\n"
    network[address] = b"something else"
    done = transfuse("data", "get", "words")
    assert done.status == 2 and "something else than the manifest names" in done.err
    assert not list((workplace.parent / "data").rglob("words*"))
    network[address] = CONTENT
    done = transfuse("data", "get", "words", "words")
    assert done.status == 0 and "words: 1 file fetched" in done.out
    assert (workplace.parent / "data" / "words" / "words.txt").read_bytes() == CONTENT
    assert "already here" in transfuse("data", "get", "--all").out
    assert "yes, verified" in transfuse("data", "list", "--verify").out
    assert transfuse("data", "path", "words").out.strip() == str(workplace.parent / "data" / "words")


def test_copy_from_a_folder_is_verified(transfuse: Callable, workplace: Path) -> None:
    packed = workplace / "usb" / "words" / "words.txt.gz"
    packed.parent.mkdir(parents=True)
    packed.write_bytes(gzip.compress(b"tampered"))
    done = transfuse("data", "get", "words", "--from", "usb")
    assert done.status == 2 and done.err.count("\n") == 1 and "sha256 differs" in done.err
    packed.write_bytes(b"not gzip at all")
    assert transfuse("data", "get", "words", "--from", "usb").err.count("\n") == 1
    packed.write_bytes(gzip.compress(CONTENT))
    assert transfuse("data", "get", "words", "--from", "usb").status == 0
    assert folder.read_bytes("words", "words.txt") == CONTENT


def test_damaged_file_is_named(transfuse: Callable, workplace: Path) -> None:
    path = workplace.parent / "data" / "words" / "words.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"on")
    done = transfuse("data", "list", "--verify")
    assert done.status == 1 and "damaged" in done.out
    done = transfuse("data", "get", "words")
    assert done.status == 2 and str(path) in done.err and done.err.count("\n") == 1
    assert path.read_bytes() == b"on"  # the user's file is the user's to delete


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip", "empty"])
def test_damaged_packed_files_are_named(damage: str, transfuse: Callable, workplace: Path) -> None:
    whole = gzip.compress(CONTENT * 100)
    content = {
        "cut": whole[:-20], "flipped": whole[:12] + bytes([whole[12] ^ 255]) + whole[13:],
        "no gzip": b"one", "empty": b"",
    }[damage]  # fmt: skip
    for place in (workplace / "usb", workplace.parent / "data"):
        (place / "words").mkdir(parents=True)
        path = place / "words" / "words.txt.gz"
        path.write_bytes(content)
        done = transfuse("data", "get", "words", "--from", "usb")
        assert done.status == 2 and done.err.count("\n") == 1 and "words.txt" in done.err, done
    assert transfuse("data", "list", "--verify").status == 1


def test_report_hands_over_the_evidence(transfuse: Callable, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = {
        "format": 1, "study": "mean_shift", "scale": "small", "seed": 0, "code": "0" * 16, "settings": {}, "data": {},
        "cost": {"wall_s": 1, "cpu_s": 1, "peak_mb": 1}, "environment": {}, "warnings": [],
        "measurements": [["raw", "gap", 1.0, {}]],
    }  # fmt: skip
    path = workplace / "results" / "mean_shift" / "small" / "seed000-a-b.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(cell), encoding="utf-8")
    seen: list[tuple] = []

    def write_report(evidence: list, out: Path, *, title: str) -> types.SimpleNamespace:
        seen.append(([group.study.id for group in evidence], out, title))
        return types.SimpleNamespace(html=out / "index.html", markdown=out / "report.md")

    stub = types.ModuleType("transfuse.study.report")
    stub.write_report = write_report  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transfuse.study.report", stub)
    done = transfuse("report", "--out", "page", "--title", "Mine")
    assert done.status == 0 and seen == [(["mean_shift"], Path("page"), "Mine")]
    assert done.out == "1 study, 1 cell\npage: page/index.html\ntext: page/report.md\n"
    (workplace / "page").write_text("a file", encoding="utf-8")
    assert transfuse("report", "--out", "page").status == 2


def test_cells_of_unknown_studies_are_told_apart(transfuse: Callable, workplace: Path) -> None:
    path = workplace / "results" / "gone" / "small" / "seed000-a-b.json"
    path.parent.mkdir(parents=True)
    cell = {"format": 1, "study": "gone", "scale": "small", "seed": 0, "code": "0", "settings": {}, "data": {}}
    rest = {"cost": {}, "environment": {}, "warnings": [], "measurements": []}
    path.write_text(json.dumps({**cell, **rest}), encoding="utf-8")
    assert "unknown study 'gone': 1 cell" in transfuse("status").out
    done = transfuse("report")
    assert done.status == 2 and "belongs to an installed method" in done.err
