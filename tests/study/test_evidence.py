"""From cells to what claims read: pairing, averaging, grouping, staleness, item intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from transfuse.registry import Entry, load_registry
from transfuse.study import Beats, Measurement, Metric, Study, Trend
from transfuse.study.claims import judge
from transfuse.study.declaration import read_study
from transfuse.study.evidence import CellValues, gather, matching
from transfuse.study.fingerprint import fingerprint
from transfuse.study.store import Cell, CellSpec, Store

DECLARED = Study(
    id="s",
    question="?",
    arms=("a", "b"),
    controls=("b",),
    metrics={"m": Metric("lower")},
    conditions={"shift": ("x", "y"), "noise": (0, 1, 2)},
    claims=(Beats("a", "b", on="m", where={"shift": "x"}), Trend("a", "noise", on="m"), Trend("a", "step", on="m")),
    settings=object,
)


def values(*per_seed: list[Measurement]) -> CellValues:
    cells = [
        Cell(CellSpec("s", "small", seed, {}, {}, ""), tuple(measurements), {}, {})
        for seed, measurements in enumerate(per_seed)
    ]
    return CellValues(DECLARED, cells)


ONE = [
    Measurement("a", "m", 1.0, {"shift": "x", "noise": 0}),
    Measurement("a", "m", 3.0, {"shift": "x", "noise": 1}),
    Measurement("a", "m", 8.0, {"shift": "y", "noise": 1}),
    Measurement("b", "m", 5.0, {"shift": "x", "noise": 0}),
    Measurement("b", "m", 7.0, {"shift": "x", "noise": 1}),
    Measurement("a", "m", 100.0, {"shift": "x"}, step=1),
    Measurement("a", "m", 50.0, {"shift": "y"}, step=1),
    Measurement("a", "m", 20.0, {"shift": "x"}, step=0),
]


def test_final_numbers_are_averaged_over_the_conditions_that_match() -> None:
    found = values(ONE)
    assert found.by_seed("a", "m", {}) == {0: 4.0}
    assert found.by_seed("a", "m", {"shift": "x"}) == {0: 2.0}
    assert found.by_seed("a", "m", {"shift": "x", "noise": 1}) == {0: 3.0}
    assert found.by_seed("a", "m", {"shift": "z"}) == {}
    assert found.by_seed("nobody", "m", {}) == found.by_seed("a", "other", {}) == {}


def test_asking_twice_gives_a_copy() -> None:
    found = values(ONE)
    found.by_seed("a", "m", {})[0] = 99.0
    assert found.by_seed("a", "m", {}) == {0: 4.0}


def test_curves_run_along_a_condition_or_the_steps_in_order() -> None:
    found = values(ONE)
    assert found.along("a", "m", {}, "noise") == {0: [(0, 1.0), (1, 5.5)]}
    assert found.along("a", "m", {"shift": "x"}, "noise") == {0: [(0, 1.0), (1, 3.0)]}
    assert found.along("a", "m", {}, "step") == {0: [(0, 20.0), (1, 75.0)]}
    assert found.along("b", "m", {}, "step") == {}


def test_seeds_that_lack_an_arm_are_left_out_of_its_claims() -> None:
    found = values(ONE, ONE[:3], ONE)
    verdict = judge(DECLARED.claims, found)[0]
    assert verdict.effects == {0: 4.0, 2: 4.0}  # lower is better, so b - a


def test_matching_compares_values_and_not_words() -> None:
    both = [Measurement("a", "m", 1.0, {"noise": 1}), Measurement("a", "m", 2.0, {"noise": "1"})]
    assert [m.value for m in matching(both, "a", "m", {"noise": 1})] == [1.0]
    assert len(matching(both, "a", "m", {})) == 2


def stored(entry: Entry, seed: int, code: str, scale: str = "small", items: int = 10, offset: float = 2.0) -> Cell:
    x = np.random.default_rng(seed).standard_normal(50)
    measurements = (
        Measurement("a", "score", float(x.mean() + offset), per_sample=x + offset),
        Measurement("b", "score", float(x.mean()), per_sample=x),
    )
    spec = CellSpec(entry.id, scale, seed, {"items": items}, {}, code)
    return Cell(spec, measurements, {"wall_s": 1.0}, {"python": "3"})


def test_cells_are_grouped_by_scale_and_settings(guest: Entry, tmp_path: Path) -> None:
    store, code = Store(tmp_path / "r"), fingerprint("guest_study")
    for seed in (2, 0, 1):
        store.write(stored(guest, seed, code))
    store.write(stored(guest, 0, code, items=20))
    store.write(stored(guest, 0, code, scale="quick"))
    found = gather(store, load_registry())
    assert [(e.scale, e.settings["items"], e.seeds) for e in found] == [
        ("quick", 10, [0]),
        ("small", 10, [0, 1, 2]),
        ("small", 20, [0]),
    ]
    assert found[0].verdicts == []  # nothing is judged at the scale that is there for the plumbing
    assert gather(store, load_registry(), ["other"]) == []


def test_stale_cells_are_used_until_there_are_current_ones(guest: Entry, tmp_path: Path) -> None:
    store, code = Store(tmp_path / "r"), fingerprint("guest_study")
    for seed in range(3):
        store.write(stored(guest, seed, "0" * 16, offset=-1.0))
    (old,) = gather(store, load_registry())
    assert old.stale == [0, 1, 2]
    store.write(stored(guest, 1, code))
    (new,) = gather(store, load_registry())
    assert (new.seeds, new.stale) == ([1], [])


def test_cells_of_unknown_methods_are_left_out(guest: Entry, tmp_path: Path) -> None:
    store = Store(tmp_path / "r")
    spec = CellSpec("gone", "small", 0, {}, {}, "c")
    store.write(Cell(spec, (), {}, {}))
    assert gather(store, load_registry()) == []


def test_item_interval_needs_the_samples_of_all_cells(guest: Entry, tmp_path: Path) -> None:
    store, code = Store(tmp_path / "r"), fingerprint("guest_study")
    paths = [store.write(stored(guest, seed, code)) for seed in range(5)]
    claim = read_study(guest).claims[0]
    (full,) = gather(store, load_registry())
    interval = full.item_interval(claim)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((2.0, 2.0))
    assert full.item_interval(Trend("a", "step", on="score")) is None
    paths[0].with_suffix(".npz").unlink()
    (part,) = gather(store, load_registry())
    assert part.item_interval(claim) is None


def test_items_are_paired_by_condition_whatever_the_order_of_measurement(guest: Entry, tmp_path: Path) -> None:
    store, code = Store(tmp_path / "r"), fingerprint("guest_study")
    for seed in range(5):
        hard, easy = np.arange(4) > 2, np.arange(4) > 0
        measurements = (
            Measurement("a", "score", 0.25, {"of": "hard"}, per_sample=hard),
            Measurement("a", "score", 0.75, {"of": "easy"}, per_sample=easy),
            Measurement("b", "score", 0.75, {"of": "easy"}, per_sample=easy),
            Measurement("b", "score", 0.25, {"of": "hard"}, per_sample=hard),
        )
        spec = CellSpec(guest.id, "small", seed, {}, {}, code)
        store.write(Cell(spec, measurements, {}, {}))
    (found,) = gather(store, load_registry())
    interval = found.item_interval(read_study(guest).claims[0])
    assert interval is not None and (interval.low, interval.high) == (0.0, 0.0)
