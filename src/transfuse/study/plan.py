"""Plans before work: everything that can be wrong is found before the first cell runs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transfuse.config import resolve, to_plain
from transfuse.data.folder import data_set, missing_files
from transfuse.errors import UserError, did_you_mean
from transfuse.registry import Entry, import_study
from transfuse.study.design import SCALES, Study
from transfuse.study.fingerprint import fingerprint
from transfuse.study.store import CellSpec, Store


@dataclass(frozen=True)
class StudyPlan:
    """The cells of one study at one scale."""

    study: Study
    scale: str
    cells: tuple[CellSpec, ...]
    pending: tuple[CellSpec, ...]
    seconds_per_cell: float

    @property
    def seconds(self) -> float:
        """Expected work in cell-seconds; divide by the number of jobs for the time to wait."""
        return self.seconds_per_cell * len(self.pending)


@dataclass(frozen=True)
class Plan:
    """The studies of one call of `transfuse run`, the quickest first so that verdicts come early."""

    studies: tuple[StudyPlan, ...]

    @property
    def cells(self) -> list[CellSpec]:
        return [cell for study in self.studies for cell in study.cells]

    @property
    def pending(self) -> list[CellSpec]:
        return [cell for study in self.studies for cell in study.pending]

    def seconds(self, jobs: int) -> float:
        """Expected waiting time with so many jobs."""
        return sum(study.seconds for study in self.studies) / max(1, min(jobs, len(self.pending) or 1))


def make_plan(
    entries: Sequence[Entry],
    store: Store,
    *,
    scale: str = "small",
    seeds: Sequence[int] | int | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Plan:
    """Resolve settings, data and seeds of all studies.

    Args:
        entries: the methods whose studies are to run.
        store: where finished cells lie; those are not run again.
        scale: quick, small, public or full.
        seeds: how many, or which; the study's own number by default.
        overrides: settings that go over those of the scale; tables named after a study apply to it alone.
        device: given to studies whose settings have a field `device`.

    Raises:
        UserError: unknown scale or setting, missing package or data; before any work.
    """
    if scale not in SCALES:
        raise UserError(f"unknown scale {scale!r}", f"one of {', '.join(SCALES)}", did_you_mean(scale, SCALES))
    plans = [_plan_study(entry, store, scale, seeds, overrides or {}, device, len(entries) > 1) for entry in entries]
    _check_overrides(overrides or {}, [plan.study for plan in plans])
    return Plan(tuple(sorted(plans, key=lambda plan: plan.seconds)))


def _plan_study(
    entry: Entry,
    store: Store,
    scale: str,
    seeds: Sequence[int] | int | None,
    overrides: Mapping[str, Any],
    device: str,
    several: bool,
) -> StudyPlan:
    study: Study = import_study(entry).STUDY
    if scale != "small" and scale not in study.scales:
        have = ["small", *study.scales]
        raise UserError(f"study {study.id!r} has no scale {scale!r}", f"one of {', '.join(have)}")
    layers = [study.scales.get(scale, {}), *_own(overrides, study, several)]
    if "device" in study.settings.__dataclass_fields__:  # type: ignore[attr-defined]
        layers.append({"device": device})
    settings = to_plain(resolve(study.settings, *layers, name=f"settings of {study.id}"))
    _check_finite(settings, f"settings of {study.id}")
    data = {set_id: data_digest(set_id) for set_id in study.data.get(scale, ())}
    code = fingerprint(entry.study_module or "")
    cells = tuple(
        CellSpec(study.id, scale, seed, settings, data, code) for seed in _seeds(seeds, study.seed_count(scale))
    )
    pending = tuple(cell for cell in cells if not store.has(cell))
    return StudyPlan(study, scale, cells, pending, _expected_seconds(study, scale, store))


def _check_overrides(overrides: Mapping[str, Any], studies: Sequence[Study]) -> None:
    """A key that no study knows is a mistake, also where each study takes only what it has."""
    known = {study.id for study in studies}
    for study in studies:
        known.update(study.settings.__dataclass_fields__)  # type: ignore[attr-defined]
    for key in overrides:
        if key not in known:
            hint = did_you_mean(key, known) or "transfuse show ID lists the settings of a study"
            raise UserError(f"no chosen study has a setting {key!r}", fix=hint)


def _own(overrides: Mapping[str, Any], study: Study, several: bool) -> list[Mapping[str, Any]]:
    """The general overrides, then those in a table named after the study.

    With several studies in one call a general key applies to those that have it.
    """
    fields = study.settings.__dataclass_fields__  # type: ignore[attr-defined]
    general = {
        key: value
        for key, value in overrides.items()
        if key in fields or not (several or (isinstance(value, Mapping) and key == study.id))
    }
    own = overrides.get(study.id)
    return [general, own] if isinstance(own, Mapping) and study.id not in fields else [general]


def _check_finite(value: Any, name: str) -> None:
    """Cells are JSON, which has no NaN and no infinity; nor has a study any use for them."""
    if isinstance(value, Mapping | list):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check_finite(inner, f"{name}.{key}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} = {value}", "a finite number")


def data_digest(set_id: str) -> str:
    missing = missing_files(set_id)
    if missing:
        raise UserError(
            f"data set {set_id!r} is not in the data folder ({missing[0]} is missing)",
            fix=f"type: transfuse data get {set_id}, or set TRANSFUSE_DATA to a folder that has it",
        )
    return data_set(set_id).digest()


def _seeds(seeds: Sequence[int] | int | None, default: int) -> list[int]:
    chosen = list(range(seeds if isinstance(seeds, int) else default)) if not isinstance(seeds, Sequence) else [*seeds]
    if not chosen or min(chosen) < 0:
        raise UserError(f"seeds {seeds}", "a number of at least 1, or distinct numbers from 0 up")
    if len(set(chosen)) != len(chosen):
        raise UserError(f"seeds {chosen}", "distinct numbers; a repeated seed is no new evidence")
    return chosen


def _expected_seconds(study: Study, scale: str, store: Store) -> float:
    """Mean of the stored cells, else what the study declares."""
    walls = [cell.cost["wall_s"] for cell in store.cells(study.id, scale) if "wall_s" in cell.cost]
    return sum(walls) / len(walls) if walls else study.seconds.get(scale, 30.0)


def default_jobs(threads: int = 1, device: str = "cpu") -> int:
    """As many cells at once as there are cores for; one on a GPU, whose memory cells would have to share."""
    if device == "cuda":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // threads)
