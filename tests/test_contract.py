"""What holds for every method and every study, by its mere existence.

A new method is found by its card and inherits all of these; nothing has to be registered here. The checks
themselves are public (`transfuse.testing`), so that plug-ins can run them too; below are those that concern
this repository.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from transfuse.config import resolve, to_plain
from transfuse.registry import Entry, import_study, load_registry
from transfuse.study.evidence import gather
from transfuse.study.store import Store
from transfuse.testing import CHECKS, check

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = [entry for entry in load_registry().entries.values() if entry.module.startswith("transfuse.")]
EVERY_METHOD = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
# Each method's own test file holds these, since only it knows its baseline, its tensors and its host.
OWN_TESTS = ("test_degenerate_setting_equals_baseline", "test_device_and_dtype_follow_inputs", "test_works_in_host")


@pytest.mark.parametrize("name", CHECKS)
@EVERY_METHOD
def test_contract(name: str, entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(name, entry.id)


@EVERY_METHOD
def test_place_and_extra(entry: Entry) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert entry.card.extra in project["optional-dependencies"]
    assert entry.card.family == entry.path.parent.name
    assert entry.study_module, "a method of this package has a study"


@EVERY_METHOD
def test_own_tests_and_bench_are_there(entry: Entry) -> None:
    path = ROOT / "tests" / "methods" / entry.card.family / f"test_{entry.id}.py"
    names = {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}
    assert not set(OWN_TESTS) - names, f"{path.name} lacks {set(OWN_TESTS) - names}"
    assert (ROOT / "bench" / f"{entry.id}.py").exists()


# Cells that are still to be run; a scale that is there must leave this list.
PENDING: set[tuple[str, str]] = set()


@pytest.mark.parametrize("scale", ["small", "public"])
@EVERY_METHOD
def test_stored_results_are_there_and_not_stale(entry: Entry, scale: str) -> None:
    study = import_study(entry).STUDY
    settings = to_plain(resolve(study.settings, study.scales.get(scale, {})))
    found = [
        e
        for e in gather(Store(ROOT / "results"), load_registry(), [entry.id])
        if e.scale == scale and e.settings == settings
    ]
    complete = bool(found) and len(found[0].cells) >= max(5, study.seed_count(scale)) and not found[0].stale
    hint = f"missing, incomplete or stale: type `transfuse run {entry.id} --scale {scale}`"
    if (entry.id, scale) in PENDING:
        assert not complete, f"{entry.id} {scale} has its cells: take it off PENDING"
        pytest.skip(f"not run yet: transfuse run {entry.id} --scale {scale}")
    assert complete, hint
