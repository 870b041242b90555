"""What holds for every method and every study, by its mere existence.

A new method is found by its card and inherits all of these; nothing has to be registered here.
"""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
import math
import re
from pathlib import Path

import pytest

from transfuse.config import read_settings, resolve, settings_of, to_plain
from transfuse.registry import Entry, import_method, import_study, load_registry, missing_packages
from transfuse.study.declaration import read_study
from transfuse.study.design import Measurement
from transfuse.study.evidence import CellValues, gather
from transfuse.study.fingerprint import fingerprint
from transfuse.study.run import checked, limit_threads
from transfuse.study.stage import Stages
from transfuse.study.store import Cell, CellSpec, Store
from transfuse.study.streams import Streams

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = list(load_registry().entries.values())
EVERY_METHOD = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
EVERY_STUDY = pytest.mark.parametrize(
    "entry", [entry for entry in ENTRIES if entry.study_module], ids=lambda entry: entry.id
)
# Each method's own test file holds these, since only it knows its baseline, its tensors and its host.
OWN_TESTS = ("test_degenerate_setting_equals_baseline", "test_device_and_dtype_follow_inputs", "test_works_in_host")


@EVERY_METHOD
def test_card_is_complete_and_what_the_registry_read(entry: Entry) -> None:
    assert entry.card == import_method(entry).CARD
    assert entry.card.id == entry.path.stem
    assert entry.card.family == entry.path.parent.name
    empty = [f.name for f in dataclasses.fields(entry.card) if getattr(entry.card, f.name) in ("", ())]
    assert not empty, f"empty fields of the card: {empty}"
    assert re.match(r"https://\S+$", entry.card.url)
    assert not missing_packages(entry.card), "a package that the card requires is not installed here"
    assert entry.card.bibtex().count("{") == entry.card.bibtex().count("}")


@EVERY_METHOD
def test_extra_of_the_card_exists(entry: Entry) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert entry.card.extra in project["optional-dependencies"]


@EVERY_METHOD
def test_entry_point_of_the_card_can_be_imported(entry: Entry) -> None:
    module, _, name = entry.card.entry.rpartition(".")
    assert getattr(importlib.import_module(module), name).__doc__


@EVERY_METHOD
def test_config_is_frozen_documented_and_survives_a_round_trip(entry: Entry) -> None:
    config = import_method(entry).Config
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen
    assert resolve(config, to_plain(config())) == config()
    unexplained = [s.name for s in read_settings(entry.path.read_text(encoding="utf-8")) if not s.reason]
    assert not unexplained, f"defaults without a reason on their line: {unexplained}"


@EVERY_METHOD
def test_docstring_example_runs(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = import_method(entry)
    example = doctest.DocTestParser().get_doctest(module.__doc__ or "", {}, entry.id, str(entry.path), 0)
    assert example.examples, "the docstring of the module has no `>>>` example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(example).failed == 0


@EVERY_METHOD
def test_public_names_are_documented(entry: Entry) -> None:
    module = import_method(entry)
    bare = [
        name
        for name, item in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(item) or inspect.isclass(item))
        and item.__module__ == module.__name__
        and not inspect.getdoc(item)
    ]
    assert not bare, f"public names without a docstring: {bare}"


@EVERY_METHOD
def test_own_tests_and_bench_are_there(entry: Entry) -> None:
    path = ROOT / "tests" / "methods" / entry.card.family / f"test_{entry.id}.py"
    names = {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}
    assert not set(OWN_TESTS) - names, f"{path.name} lacks {set(OWN_TESTS) - names}"
    assert (ROOT / "bench" / f"{entry.id}.py").exists()


@EVERY_METHOD
def test_audit_and_apply_signatures_are_a_schema(entry: Entry) -> None:
    module = import_method(entry)
    for name in ("audit", "apply"):
        if (function := getattr(module, name, None)) is None:
            continue
        assert inspect.getdoc(function)
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, f"{name}({parameter.name}) has no type"


@EVERY_STUDY
def test_study_reads_the_same_without_its_host(entry: Entry) -> None:
    study, read = import_study(entry).STUDY, read_study(entry)
    assert study.id == entry.id
    for field in dataclasses.fields(study):
        if field.name != "settings":
            assert getattr(study, field.name) == getattr(read, field.name), field.name


@EVERY_STUDY
def test_claims_say_what_the_paper_says(entry: Entry) -> None:
    study = import_study(entry).STUDY
    assert study.claims
    for claim in study.claims:
        assert claim.paper, f"claim without the paper's words: {claim.text()}"
    assert any(claim.control for claim in study.claims) or any(
        set(claim.arms) & set(study.controls) for claim in study.claims
    ), "no claim touches a control"
    assert len({claim.text() for claim in study.claims}) == len(study.claims), "a claim stands twice"


@EVERY_STUDY
def test_settings_are_documented_and_every_scale_resolves(entry: Entry) -> None:
    study = import_study(entry).STUDY
    assert {"quick", "public"} <= set(study.scales)
    for scale in study.scales.values():
        resolved = resolve(study.settings, scale)
        assert resolve(study.settings, to_plain(resolved)) == resolved
    unexplained = [s.name for s in settings_of(study.settings) if not s.reason]
    assert not unexplained, f"settings without a reason on their line: {unexplained}"


@pytest.fixture(scope="module")
def quick_cells() -> dict[str, tuple[Measurement, ...]]:
    return {}


def _run_quick(entry: Entry, folder: Path, seed: int = 0) -> tuple[Measurement, ...]:
    limit_threads(1)
    module = import_study(entry)
    settings = resolve(module.STUDY.settings, module.STUDY.scales["quick"])
    return tuple(checked(module.STUDY, module.run(settings, seed, Streams(seed), Stages(folder))))


@EVERY_STUDY
def test_quick_scale_measures_every_arm_and_serves_every_claim(
    entry: Entry, tmp_path: Path, quick_cells: dict[str, tuple[Measurement, ...]]
) -> None:
    measurements = quick_cells[entry.id] = _run_quick(entry, tmp_path)
    study = import_study(entry).STUDY
    assert {m.arm for m in measurements} == set(study.arms)
    assert {m.metric for m in measurements} == set(study.metrics)
    assert all(math.isfinite(m.value) for m in measurements)
    spec = CellSpec(study.id, "quick", 0, {}, {}, "")
    values = CellValues(study, [Cell(spec, measurements, {}, {})])
    for claim in study.claims:
        if "small" in claim.scales:
            assert claim.effects(values), f"nothing measured for: {claim.text()}"
    for m in measurements:
        if m.per_sample is not None:
            assert m.per_sample.mean() == pytest.approx(m.value, abs=1e-6)


@EVERY_STUDY
def test_same_seed_same_numbers(entry: Entry, tmp_path: Path, quick_cells: dict[str, tuple[Measurement, ...]]) -> None:
    first = quick_cells.get(entry.id) or _run_quick(entry, tmp_path / "first")
    again = _run_quick(entry, tmp_path / "again")  # nothing cached, so that stages are made anew
    plain = [[(m.arm, m.metric, m.value, m.where, m.step) for m in run] for run in (first, again)]
    assert plain[0] == plain[1]


@EVERY_STUDY
def test_stored_results_are_there_and_not_stale(entry: Entry) -> None:
    study = import_study(entry).STUDY
    found = {e.scale: e for e in gather(Store(ROOT / "results"), load_registry(), [entry.id])}
    for scale in ("small", "public"):
        assert scale in found, f"no stored cells of {entry.id} at scale {scale}"
        assert len(found[scale].cells) >= max(5, study.seed_count(scale))
        assert not found[scale].stale, f"stale cells: type `transfuse run {entry.id} --scale {scale}`"
        assert found[scale].cells[0].spec.settings == to_plain(resolve(study.settings, study.scales.get(scale, {})))
    assert fingerprint(entry.study_module or "") == found["small"].code
