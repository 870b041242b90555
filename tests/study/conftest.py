"""A method and its study as a package of somebody else's, installed into a temporary folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from transfuse.registry import Entry, load_registry
from transfuse.study.declaration import read_study
from transfuse.study.fingerprint import _source, _tree, fingerprint

CARD = """CARD = Card(
    id="guest",
    title="A Guest",
    summary="Does nothing much.",
    authors="A. Author",
    year=2024,
    venue="Example",
    url="https://example.org",
    family="negatives",
    host="none",
    entry="guest_method.Guest",
    needs=(),
    data="numbers",
    problems=(),
    extra="kg",
    requires=("numpy",),
    differs=(),
)
"""
METHOD = '"""A guest."""\n\nfrom transfuse.card import Card\n\n' + CARD
STUDY = '''"""The guest's study."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transfuse.study import Beats, Measurement, Metric, Study


@dataclass(frozen=True)
class Settings:
    items: int = 10  # enough for a mean
    dies_at: int = -1  # the seed whose worker is killed
    dies_by: str = "SIGKILL"  # the signal
    deaths: str = ""  # a file that counts how often that happened; empty means always
    fails_at: int = -1  # the seed that raises
    gate: str = ""  # a folder: a cell says there that it has begun, and waits for the file "open"


STUDY = Study(
    id="guest",
    question="Is a larger than b?",
    arms=("a", "b"),
    controls=("b",),
    metrics={"score": Metric("higher", per_sample=True)},
    claims=(Beats("a", "b", on="score", by=0.5),),
    settings=Settings,
    scales={"quick": {"items": 3}},
)


def run(settings, seed, streams, stage):
    if seed == settings.fails_at:
        raise RuntimeError("the study broke")
    if seed == settings.dies_at and not (settings.deaths and Path(settings.deaths).exists()):
        if settings.deaths:
            Path(settings.deaths).touch()
        os.kill(os.getpid(), signal.Signals[settings.dies_by])
    if settings.gate:
        (Path(settings.gate) / f"begun-{seed}").touch()
        while not (Path(settings.gate) / "open").exists():
            time.sleep(0.05)
    x = streams.noise.numpy().standard_normal(settings.items)
    scale = stage("scale", lambda: {"scale": np.ones(1)}, inputs={"seed": seed})["scale"]
    yield Measurement("a", "score", float(x.mean() + 2), per_sample=x + 2)
    yield Measurement("b", "score", float(x.mean() * scale[0]), per_sample=x)
    np.linalg.qr(np.ones((40, 40)))  # loads the arithmetic that threads could change
'''


@pytest.fixture
def plugin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that Python imports from and finds entry points in; caches are emptied around it."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))
    before = set(sys.modules)
    for function in (load_registry, fingerprint, _source, _tree, read_study):
        function.cache_clear()
    yield folder
    for function in (load_registry, fingerprint, _source, _tree, read_study):
        function.cache_clear()
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def install(folder: Path, methods: dict[str, str], studies: dict[str, str]) -> None:
    """Write the metadata that declares entry points."""
    info = folder / "guest-0.1.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 0.1\n")
    groups = {"transfuse.methods": methods, "transfuse.studies": studies}
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in table.items()) for group, table in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def guest(plugin_folder: Path) -> Entry:
    """The guest method with its study, installed."""
    (plugin_folder / "guest_method.py").write_text(METHOD)
    (plugin_folder / "guest_study.py").write_text(STUDY)
    install(plugin_folder, {"guest": "guest_method"}, {"guest": "guest_study"})
    return load_registry()["guest"]
