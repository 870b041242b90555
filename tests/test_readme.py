"""The README is true: its tables are those of the stored cells, and what it tells people to type works."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(language: str) -> list[tuple[str, str, str]]:
    """(page, file name after the language if any, content) of every fenced block of a language."""
    return [
        (page.name, name, body)
        for page in PAGES
        for lang, name, body in _FENCE.findall(page.read_text(encoding="utf-8"))
        if lang == language
    ]


def test_tables_are_those_of_the_stored_cells() -> None:
    spec = importlib.util.spec_from_file_location("renew_tables", ROOT / "docs" / "renew_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert module.renewed(text) == text, f"{page.name} is out of date: type make docs"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the files that the pages show (blocks like ```csv train.csv)."""
    for _, name, body in [block for language in ("csv", "tsv", "txt", "toml", "jsonl") for block in _blocks(language)]:
        if name:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(body, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", _blocks("python"), ids=lambda block: f"{block[0]}:{block[1] or block[2][:30]}")
def test_python_snippets_run(block: tuple[str, str, str], workplace: Path) -> None:
    script = workplace / "snippet.py"
    script.write_text(block[2], encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def _commands() -> list[str]:
    lines = [line for _, _, body in _blocks("console") for line in body.splitlines() if line.startswith("$ ")]
    return sorted({line[2:].split("  #")[0].strip() for line in lines})


@pytest.mark.parametrize("command", _commands())
def test_commands_run(command: str, workplace: Path) -> None:
    """Every `$ transfuse ...` line, as typed; `make` and `pip` lines are what brought the reader here."""
    words = shlex.split(command)
    variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if words[0] in ("make", "pip", "git", "flwr"):
        return
    assert words[0] == "transfuse"
    # Long runs are made at the quick scale here; their full scale is what `make run` and results/ are for.
    if words[1] == "run" and "--dry-run" not in words:
        words = [word for word in words if word not in ("small", "public", "--scale")] + ["--scale", "quick"]
    environment = {**os.environ, **variables, "TRANSFUSE_RESULTS": str(ROOT / "results")}
    if words[1] == "run":
        environment["TRANSFUSE_RESULTS"] = str(workplace / "results")
    if "TRANSFUSE_DATA" in variables:
        environment["TRANSFUSE_DATA"] = os.environ.get("TRANSFUSE_DATA", "")
    done = subprocess.run(
        [sys.executable, "-m", "transfuse", *words[1:]],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environment,
    )
    assert done.returncode in ((0, 1) if words[1] == "audit" else (0,)), done.stderr[-2000:]
