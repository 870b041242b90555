"""Workers that die, studies that raise, and the same numbers whatever the number of jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from transfuse.registry import Entry
from transfuse.study.evidence import gather
from transfuse.study.launch import Job, LocalProcesses, Outcome
from transfuse.study.plan import make_plan
from transfuse.study.store import Store, read_samples


def launch(entry: Entry, store: Store, jobs: int, settings: Mapping[str, Any], seeds: int) -> dict[int, Outcome]:
    plan = make_plan([entry], store, seeds=seeds, overrides=settings)
    return {
        outcome.spec.seed: outcome for outcome in LocalProcesses(jobs).launch(plan.pending, Job(results=store.folder))
    }


def numbers(store: Store) -> dict[str, str]:
    """What must not depend on the launch: all of a cell but its cost, byte for byte."""
    found = {}
    for path in sorted(store.folder.glob("*/*/*.json")):
        table = json.loads(path.read_text())
        found[path.name] = json.dumps({key: table[key] for key in table if key != "cost"})
    return found


def test_one_and_two_jobs_give_the_same_bytes_and_all_is_found_again(guest: Entry, tmp_path: Path) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    for store, jobs in ((one, 1), (two, 2)):
        outcomes = launch(guest, store, jobs, {}, 5)
        assert [outcomes[seed].error for seed in range(5)] == [""] * 5
        assert all(outcome.path is not None and outcome.path.exists() for outcome in outcomes.values())
    assert numbers(one) == numbers(two)
    assert make_plan([guest], one).pending == []

    from transfuse.registry import load_registry

    (evidence,) = gather(one, load_registry())
    (verdict,) = evidence.verdicts
    assert (verdict.outcome, evidence.seeds, evidence.stale) == ("supported", [0, 1, 2, 3, 4], [])
    assert verdict.effects == pytest.approx(dict.fromkeys(range(5), 2.0))
    items = evidence.item_interval(verdict.claim)
    assert items is not None and items.mean == pytest.approx(2.0)
    assert read_samples(evidence.cells[0]).keys() == {"a|score|{}", "b|score|{}"}


def test_a_worker_that_dies_once_is_tried_again(guest: Entry, tmp_path: Path) -> None:
    settings = {"dies_at": 1, "deaths": str(tmp_path / "died")}
    outcomes = launch(guest, Store(tmp_path / "results"), 1, settings, 3)
    assert (tmp_path / "died").exists()
    assert [outcomes[seed].error for seed in range(3)] == ["", "", ""]


def test_a_worker_that_always_dies_is_reported_and_its_neighbours_are_not(guest: Entry, tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    outcomes = launch(guest, store, 2, {"dies_at": 1}, 3)
    assert sorted(outcomes) == [0, 1, 2]
    assert outcomes[0].error == outcomes[2].error == ""
    assert "died 3 times" in outcomes[1].error and outcomes[1].path is None
    assert [cell.spec.seed for cell in store.cells()] == [0, 2]
    assert not list(store.folder.rglob("*.partial"))


def test_an_exception_is_one_line_and_keeps_its_traceback_for_those_who_ask(guest: Entry, tmp_path: Path) -> None:
    outcomes = launch(guest, Store(tmp_path / "results"), 1, {"fails_at": 0}, 2)
    assert outcomes[0].error == "RuntimeError: the study broke"
    assert "Traceback" in outcomes[0].details
    assert outcomes[1].error == ""
