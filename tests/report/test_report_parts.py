"""The pieces of the report: figures, axes, provenance, and where labels go."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse.statistics import Estimate, t_interval
from transfuse.study import Measurement
from transfuse.study.evidence import Evidence
from transfuse.study.report import provenance
from transfuse.study.report.arrange import arrange
from transfuse.study.report.axis import axis_around
from transfuse.study.report.curves import curves
from transfuse.study.report.figures import (
    duration,
    effect,
    interval,
    number,
    p_value,
    seed_list,
    signed,
    with_deviation,
)
from transfuse.study.report.ledger import ledger, reading
from transfuse.study.report.tables import label, means_tables

Make = Callable[..., Evidence]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.0, "0"), (0.123456, "0.1235"), (1234567.0, "1,234,567"), (-12.3456, "-12.35"), (1e-9, "1e-09")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_words_for_effects_intervals_and_times() -> None:
    assert (signed(0.01234), signed(-0.5), signed(0.0)) == ("+0.0123", "-0.5", "0")
    assert interval(t_interval([1.0])) == "no interval from one seed"
    assert interval(t_interval([1.0, 1.0])) == "+1 to +1"
    assert (p_value(0.0004), p_value(0.0312)) == ("< 0.001", "0.031")
    assert (duration(12.34), duration(600), duration(7200)) == ("12.3 s", "10 min", "2 h")
    assert with_deviation([0.5]) == "0.5"
    assert with_deviation([1.0, 2.0, 3.0]) == "2.0 ± 1.0"
    assert with_deviation([0.5, 0.5]) == "0.5 ± 0"


def test_an_effect_has_the_decimals_that_its_interval_deserves() -> None:
    estimate = Estimate(0.010612, 0.002861, 0.018363, 5)
    assert (effect(estimate), interval(estimate)) == ("+0.0106", "+0.0029 to +0.0184")
    wide = Estimate(-1234.5, -2100.0, -369.0, 5)
    assert (effect(wide), interval(wide)) == ("-1,234", "-2,100 to -369")
    assert interval(Estimate(0.02, 0.00001, 0.03999, 5)) == "+0.000 to +0.040"  # the sign says on which side it lies
    assert effect(Estimate(-4.4e-17, -0.0007, 0.0007, 5)) == "0"
    assert effect(Estimate(0.1, 0.1, 0.1, 5)) == "+0.1"


@given(st.sets(st.integers(0, 30), min_size=1))
def test_runs_of_seeds_read_back(seeds: set[int]) -> None:
    read: set[int] = set()
    for part in seed_list(list(seeds)).split(", "):
        first, _, last = part.partition("-")
        read |= set(range(int(first), int(last or first) + 1))
    assert read == seeds


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=6))
def test_axes_hold_all_values_and_have_round_ticks(values: list[float]) -> None:
    axis = axis_around(values, 10, 390)
    assert all(10 <= axis.at(value) <= 390 for value in values)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 11 and ticks == sorted(set(ticks))
    assert all(axis.low - 1e-6 * abs(axis.low) <= tick <= axis.high + 1e-6 * abs(axis.high) for tick in ticks)


def test_readings_follow_the_rule_of_the_verdicts() -> None:
    assert reading([0.1, 0.11, 0.12, 0.1, 0.13]) == "helped"
    assert reading([-0.1, -0.11, -0.12, -0.1, -0.13]) == "hurt"
    assert reading([1.0, 1.1, 0.9, 1.0, -0.05]) == "unclear"
    assert reading([0.1] * 4) == "too few seeds"


def test_the_ledger_compares_arms_under_the_conditions_that_both_have(make_evidence: Make) -> None:
    base = make_evidence("toy")
    easy, hard = {"shift": "background", "noise": 0.0}, {"noise": 1.0, "shift": "semantic"}
    cells = []
    for cell in base.cells:
        shift = cell.spec.seed / 100
        measured = [("no_transfer", 0.9, easy), ("no_transfer", 0.2 + shift, hard), ("teacher_copy", 0.3 + shift, hard)]
        finals = tuple(Measurement(arm, "accuracy", value, where) for arm, value, where in measured)
        cells.append(replace(cell, measurements=finals))
    uneven = replace(base, cells=tuple(cells))
    (row,) = [row for row in ledger(uneven, arrange(uneven)) if row.arm == "teacher_copy"]
    assert (row.effect, row.reading, row.by_condition) == ("+0.1", "helped", "")  # not 0.3 against a mean of 0.55


def test_labels_of_curves_do_not_cover_each_other(make_evidence: Make) -> None:
    base = make_evidence("toy", seeds=2)
    flat = tuple(Measurement(arm, "loss", 1.0, step=step) for arm in base.study.arms for step in (1, 2, 3))
    same = replace(base, cells=tuple(replace(cell, measurements=flat) for cell in base.cells))
    (panel,) = curves(same, arrange(same))
    heights = [float(y) for y in re.findall(r'<text x="[\d.]+" y="([\d.]+)" class="name', panel.svg)]
    assert len(heights) == 4
    assert all(b - a >= 10 for a, b in itertools.pairwise(sorted(heights)))


def test_long_curves_are_thinned_and_say_so(make_evidence: Make) -> None:
    base = make_evidence("toy", seeds=2)
    long = tuple(Measurement("method", "loss", step / 1000, step=step) for step in range(1000))
    many = replace(base, cells=tuple(replace(cell, measurements=long) for cell in base.cells))
    (panel,) = curves(many, arrange(many))
    assert "60 of 1000 points are drawn" in panel.caption
    (path,) = re.findall(r'<path d="([^"]+)" class="curve"', panel.svg)
    assert path.count("L") == 59


def test_many_conditions_become_rows(make_evidence: Make) -> None:
    base = make_evidence("toy", seeds=2)
    grid = tuple(
        Measurement(arm, "accuracy", 0.5, {"task": task, "after": after})
        for arm in ("no_transfer", "method")
        for task in range(4)
        for after in range(4)
    )
    study = replace(base.study, conditions={"task": tuple(range(4)), "after": tuple(range(4))}, claims=())
    matrix = replace(base, study=study, cells=tuple(replace(cell, measurements=grid) for cell in base.cells))
    (table,) = means_tables(matrix, arrange(matrix))
    assert table.columns == ("no_transfer", "method")
    assert [name for name, _ in table.rows][:2] == ["task 0, after 0", "task 0, after 1"]
    assert all(words == "0.5 ± 0" for _, entries in table.rows for words in entries)


def test_settings_that_differ_are_told_with_who_changed_them(
    make_evidence: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "class Settings:\n"
        "    epochs: int = 3  # a quarter of the paper's\n"
        "    sizes: tuple = (8, 16)  # two layers\n"
        "    folder: dict = field(default_factory=dict)\n"
        "    rate: float = 0.1  # usual\n"
    )
    (tmp_path / "settings_study.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    base = make_evidence("toy")
    values = {"epochs": 9, "sizes": [8, 32], "folder": {}, "rate": 0.1, "removed": 1}
    cells = tuple(replace(cell, spec=replace(cell.spec, settings=values)) for cell in base.cells)
    study = replace(base.study, scales={"small": {"epochs": 9}})
    changed = replace(base, study=study, cells=cells, entry=replace(base.entry, study_module="settings_study"))
    found = provenance.changed_settings(changed)
    assert [(s.name, s.value, s.default, s.by) for s in found] == [
        ("epochs", "9", "3", "scale"),
        ("sizes", "[8, 32]", "[8, 16]", "hand"),
    ]
    assert found[0].reason == "a quarter of the paper's"
    assert provenance.command(changed) == "transfuse run toy --scale small --seeds 5 --set 'sizes=[8, 32]'"
    assert label(changed) == "small, sizes = [8, 32]"


def test_seeds_that_are_not_the_first_are_named_in_the_command(make_evidence: Make) -> None:
    base = make_evidence("toy", seeds=3)
    odd = replace(base, cells=base.cells[1:])
    assert provenance.command(odd) == "transfuse run toy --scale small --seeds 1,2"
    alone = replace(base, cells=base.cells[2:])
    assert provenance.command(alone) == "transfuse run toy --scale small --seeds 2-2"  # a plain 2 would be two seeds
