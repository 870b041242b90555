"""Settings and cells that nobody would write: taken, or refused in one line; never a traceback."""

from __future__ import annotations

import json
import math
import shutil
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from transfuse.config import parse_assignments, read_toml
from transfuse.errors import UserError
from transfuse.study.plan import make_plan
from transfuse.study.store import Store

in_this_folder = settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**400, -0.0])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def planned(overrides: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of a plan with these overrides, or None where they were refused in one line."""
    from transfuse.registry import load_registry

    try:
        (plan,) = make_plan(
            [load_registry()["mean_shift"]], Store(Path("results")), seeds=1, overrides=overrides
        ).studies
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return None
    return dict(plan.cells[0].settings)


def sound(found: Mapping[str, Any]) -> bool:
    """Whether settings have the types that the study declares, and survive JSON as they are."""
    return (
        type(found["samples"]) is int
        and type(found["spread"]) is float
        and json.loads(json.dumps(found, allow_nan=False)) == found
    )


# ---- settings

keys = st.sampled_from(["samples", "spread", "mean_shift", "mean_shift.samples", "mean_shift.spread"])
texts = st.text(max_size=20) | st.text(string.digits + "[]{}\"'=.,+-einfx_ \n", max_size=20)


@in_this_folder
@given(st.lists(st.tuples(keys | texts, texts), min_size=1, max_size=3))
@example([("samples", "9" * 5000)])
@example([("samples", "[" * 5000)])
@example([("samples", "4\nspread=3")])
@example([(".".join("a" * 3000), "1")])
def test_any_assignment(words: list[tuple[str, str]]) -> None:
    try:
        overrides = parse_assignments([f"{key}={value}" for key, value in words])
    except UserError as error:
        assert "\n" not in str(error)
        return
    found = planned(overrides)
    assert found is None or sound(found)


@in_this_folder
@given(st.text(string.printable, max_size=60) | st.text(max_size=30) | st.binary(max_size=30))
@example("samples = " + "9" * 5000)
@example("samples = " + "[" * 5000)
@example("[" + ".".join("a" * 3000) + "]\nx = 1")
@example("x = " + "{a=" * 500 + "1" + "}" * 500)
@example("spread = nan")
def test_any_settings_file(workplace: Path, content: str | bytes) -> None:
    path = workplace / "any.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        overrides = read_toml(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    found = planned(overrides)
    assert found is None or sound(found)


@in_this_folder
@given(st.dictionaries(st.sampled_from(["samples", "spread"]) | st.text(max_size=8), values, max_size=3))
def test_any_values(overrides: dict[str, Any]) -> None:
    for layer in (overrides, {"mean_shift": overrides}):
        found = planned(layer)
        assert found is None or sound(found)


def test_what_a_settings_file_says_is_what_the_command_line_says(workplace: Path) -> None:
    path = workplace / "same.toml"
    for text in ("samples = 3", "spread = 1e3", "samples = 0x10", "mean_shift.spread = 2"):
        path.write_text(text, encoding="utf-8")
        assert read_toml(path) == parse_assignments([text])


# ---- cells


@pytest.fixture(scope="module")
def stored(plugin_path: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with three cells of today's code."""
    from transfuse.registry import load_registry
    from transfuse.study.run import run_cell
    from transfuse.study.stage import Stages

    folder = tmp_path_factory.mktemp("stored")
    plan = make_plan([load_registry()["mean_shift"]], Store(folder), seeds=3)
    for spec in plan.pending:
        Store(folder).write(run_cell(spec, stages=Stages(folder, enabled=False)))
    return folder


fields = st.sampled_from(
    ["format", "study", "scale", "seed", "code", "settings", "data", "cost", "environment", "warnings", "measurements"]
)
rows = st.lists(
    st.tuples(
        st.sampled_from(["centred", "raw", "placebo", "other"]),
        st.sampled_from(["gap", "other"]),
        st.floats() | st.integers() | values,
        st.dictionaries(st.text(max_size=4), scalars, max_size=2) | values,
        st.integers() | values,
    ).map(lambda row: list(row)[: 4 if row[4] is None else 5]),
    max_size=4,
)
edits = st.one_of(
    st.dictionaries(fields, values, min_size=1, max_size=2),
    st.fixed_dictionaries({"measurements": rows}),
    st.fixed_dictionaries({"cost": st.dictionaries(st.sampled_from(["wall_s", "peak_mb"]), st.floats() | values)}),
    st.fixed_dictionaries({"environment": st.dictionaries(st.sampled_from(["versions", "cores", "python"]), values)}),
    st.fixed_dictionaries({"settings": st.dictionaries(st.sampled_from(["samples", "spread", "x"]), values)}),
)
READERS = [
    ("status", "--json"),
    ("show", "mean_shift", "--json"),
    ("run", "mean_shift", "--dry-run"),
    ("run", "--stale", "--dry-run"),
    ("export",),
    ("export", "--card", "mean_shift"),
    ("compare", "results", "results"),
    ("report", "--out", "page"),
    ("doctor",),
]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edit=edits, which=st.integers(0, 2))
@example(edit={"cost": {}}, which=0)
@example(edit={"settings": {"samples": -1, "x": [[]]}}, which=1)
@example(edit={"measurements": []}, which=0)
def test_any_edit_of_a_cell_is_survived_by_every_command(
    edit: dict[str, Any], which: int, stored: Path, workplace: Path, transfuse: Callable
) -> None:
    shutil.rmtree(workplace / "results", ignore_errors=True)
    shutil.copytree(stored, workplace / "results")
    path = sorted((workplace / "results").rglob("*.json"))[which]
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | edit), encoding="utf-8")
    readable = path not in Store(workplace / "results").unreadable()
    for words in READERS:
        done = transfuse(*words)
        assert "internal error" not in done.err and "Traceback" not in done.err, (words, done.err)
        assert done.status in (0, 2) or words == ("doctor",), (words, done)
        assert done.err.count("\n") == (done.status == 2), (words, done.err)
    if readable:
        (cell,) = [cell for cell in Store(workplace / "results").cells() if cell.path == path]
        assert all(math.isfinite(m.value) for m in cell.measurements)
