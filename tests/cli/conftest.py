"""A plug-in package on the path, and the command line called in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from transfuse import registry
from transfuse.cli import main
from transfuse.registry import load_registry
from transfuse.study.declaration import read_study

PLUGIN = Path(__file__).resolve().parent.parent / "plugin"
ENTRY_POINTS = """[transfuse.methods]
mean_shift = toyplug.mean_shift
needs_host = toyplug.needs_host
objects_only = toyplug.objects_only
[transfuse.studies]
mean_shift = toyplug.mean_shift_study
"""


@dataclass(frozen=True)
class Done:
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str


def _install(folder: Path, name: str, entry_points: str) -> None:
    """What pip writes for a package with entry points."""
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")


@pytest.fixture(scope="module")
def plugin_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The toy package, known to this process and its children while a test file runs."""
    folder = tmp_path_factory.mktemp("site")
    _install(folder, "toyplug", ENTRY_POINTS)
    paths = [str(PLUGIN), str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*paths, *sys.path])
        patch.setattr(registry, "_ROOT", folder)  # the package's own methods have tests of their own
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path[:2] + [p for p in sys.path[2:] if p]))
        if sys.dont_write_bytecode:  # else every child process compiles numpy and scipy anew
            patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
            patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.getbasetemp() / "bytecode"))
        load_registry.cache_clear()
        yield paths
    load_registry.cache_clear()
    read_study.cache_clear()


@pytest.fixture(autouse=True)
def workplace(plugin_path: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, an empty cache, no results and no data unless a test says so."""
    for name in ("TRANSFUSE_RESULTS", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRANSFUSE_DATA", str(tmp_path / "data"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def transfuse(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """``transfuse("list", "--json")`` as a command would end."""

    def call(*words: object) -> Done:
        capfd.readouterr()
        status = main([str(word) for word in words])
        captured = capfd.readouterr()
        return Done(status, captured.out, captured.err)

    return call


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """``install_plugin("name", entry_points)``: one more package for one test."""

    def install(name: str, entry_points: str) -> None:
        _install(tmp_path / "site", name, entry_points)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        load_registry.cache_clear()

    yield install
    monkeypatch.undo()
    load_registry.cache_clear()
