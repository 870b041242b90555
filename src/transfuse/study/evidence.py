"""Evidence: the cells of one study at one scale, and the verdicts they give."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from transfuse.registry import Entry, Registry
from transfuse.statistics import Estimate, two_level_bootstrap
from transfuse.study.claims import Beats, Claim, Verdict, judge
from transfuse.study.declaration import read_study
from transfuse.study.design import Condition, Measurement, Study
from transfuse.study.fingerprint import fingerprint
from transfuse.study.store import Cell, Store, read_samples, sample_name


@dataclass(frozen=True)
class Evidence:
    """One group of comparable cells: same study, scale, settings and data; the seeds differ.

    Attributes:
        entry: the method.
        study: its declaration.
        scale: the scale that the cells were run at.
        cells: in order of seed.
        code: the fingerprint of the code as it is now.
    """

    entry: Entry
    study: Study
    scale: str
    cells: tuple[Cell, ...]
    code: str = field(compare=False)

    @property
    def seeds(self) -> list[int]:
        return [cell.spec.seed for cell in self.cells]

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.cells[0].spec.settings

    @cached_property
    def stale(self) -> list[int]:
        """Seeds whose cell was made by other code than today's."""
        return [cell.spec.seed for cell in self.cells if cell.spec.code != self.code]

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The claims that are tested at this scale."""
        return tuple(claim for claim in self.study.claims if self.scale in claim.scales)

    @cached_property
    def values(self) -> CellValues:
        return CellValues(self.study, self.cells)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """One verdict a claim, in the order of declaration."""
        return judge(self.claims, self.values)

    def item_interval(self, claim: Claim) -> Estimate | None:
        """Two-level bootstrap over seeds and items, where per-sample values of both arms were kept."""
        if not isinstance(claim, Beats) or not self.study.metrics[claim.on].per_sample:
            return None
        sign = -1.0 if self.study.metrics[claim.on].better == "lower" else 1.0
        differences = []
        for cell in self.cells:
            first, second = (_samples(cell, arm, claim) for arm in claim.arms)
            if not first or {key: x.shape for key, x in first.items()} != {key: x.shape for key, x in second.items()}:
                return None
            differences.append(sign * np.concatenate([first[key] - second[key] for key in sorted(first)]))
        return two_level_bootstrap(differences)


@dataclass(frozen=True)
class CellValues:
    """The measurements of several cells as claims read them."""

    study: Study
    cells: Sequence[Cell]

    @cached_property
    def _by_arm(self) -> dict[tuple[str, str], list[tuple[int, list[Measurement]]]]:
        """(arm, metric) -> (seed, measurements), so that a claim does not read all of a cell."""
        found: dict[tuple[str, str], list[tuple[int, list[Measurement]]]] = defaultdict(list)
        for cell in self.cells:
            own: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
            for m in cell.measurements:
                own[m.arm, m.metric].append(m)
            for key, measurements in own.items():
                found[key].append((cell.spec.seed, measurements))
        return dict(found)

    @cached_property
    def _means(self) -> dict[tuple[str, str, frozenset[tuple[str, Any]]], dict[int, float]]:
        return {}  # what `by_seed` has worked out: claims and the report ask for the same arms many times

    def better(self, metric: str) -> str:
        return self.study.metrics[metric].better

    def by_seed(self, arm: str, metric: str, where: Mapping[str, Any]) -> dict[int, float]:
        """Per seed, the mean over the final measurements that match."""
        key = (arm, metric, frozenset(where.items()))
        if key not in self._means:
            self._means[key] = {
                seed: math.fsum(values) / len(values)
                for seed, measurements in self._by_arm.get((arm, metric), ())
                if (values := [m.value for m in matching(measurements, arm, metric, where) if m.step is None])
            }
        return dict(self._means[key])

    def along(self, arm: str, metric: str, where: Mapping[str, Any], key: str) -> dict[int, list[tuple[Any, float]]]:
        """Per seed, (position, mean value) in order of position."""
        curves: dict[int, list[tuple[Any, float]]] = {}
        for seed, measurements in self._by_arm.get((arm, metric), ()):
            points: dict[Any, list[float]] = defaultdict(list)
            for m in matching(measurements, arm, metric, where):
                if key == "step" and m.step is not None:
                    points[m.step].append(m.value)
                elif key in m.where and m.step is None:
                    points[m.where[key]].append(m.value)
            if points:
                curves[seed] = [(x, math.fsum(points[x]) / len(points[x])) for x in sorted(points)]
        return curves


def matching(
    measurements: Iterable[Measurement], arm: str, metric: str, where: Mapping[str, Condition]
) -> list[Measurement]:
    """The measurements of an arm and metric whose conditions include `where`."""
    asked = where.items()
    return [m for m in measurements if m.arm == arm and m.metric == metric and asked <= m.where.items()]


def _samples(cell: Cell, arm: str, claim: Claim) -> dict[str, np.ndarray]:
    """Per-sample values of an arm by condition, as floats so that shares of yes and no can be subtracted."""
    stored = read_samples(cell)
    return {
        json.dumps(dict(m.where), sort_keys=True): stored[sample_name(m)].astype(np.float64)
        for m in matching(cell.measurements, arm, claim.on, claim.where)
        if m.step is None and sample_name(m) in stored
    }


def gather(store: Store, registry: Registry, studies: Sequence[str] | None = None) -> list[Evidence]:
    """All evidence in a store, grouped; cells of methods that are no longer known are left out.

    Where both current and stale cells of a group are there, the current ones are taken.
    """
    groups: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    for cell in chain.from_iterable(store.cells(study) for study in ([None] if studies is None else studies)):
        known = registry.entries.get(cell.spec.study)
        if known and known.study_module:
            settings = json.dumps([cell.spec.settings, cell.spec.data], sort_keys=True)
            groups[cell.spec.study, cell.spec.scale, settings].append(cell)
    order = ("quick", "small", "public", "full")
    found = []
    for (study_id, scale, _), cells in groups.items():
        entry = registry[study_id]
        code = fingerprint(entry.study_module or "")
        current = [cell for cell in cells if cell.spec.code == code]
        chosen = tuple(sorted(_newest(current or cells), key=lambda cell: cell.spec.seed))
        found.append(Evidence(entry, read_study(entry), scale, chosen, code))
    return sorted(found, key=lambda e: (e.entry.card.family, e.study.id, order.index(e.scale), -len(e.cells)))


def _newest(cells: Sequence[Cell]) -> list[Cell]:
    """One cell a seed; of several stale ones the last written."""
    by_seed: dict[int, Cell] = {}
    for cell in sorted(cells, key=_written):
        by_seed[cell.spec.seed] = cell
    return list(by_seed.values())


def _written(cell: Cell) -> float:
    """When a cell was written; another run may have replaced the file since it was read."""
    try:
        return cell.path.stat().st_mtime if cell.path else 0.0
    except OSError:
        return 0.0
