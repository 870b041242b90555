"""The measurements of one group of cells, arranged by metric, condition and arm in a single pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from transfuse.study.evidence import Evidence

Where = tuple[tuple[str, Any], ...]
Finals = dict[str, dict[Where, dict[str, dict[int, list[float]]]]]  # metric, where, arm, seed -> values
Curves = dict[str, dict[Where, dict[str, dict[float, list[float]]]]]  # metric, where, arm, step -> one value a seed


@dataclass(frozen=True)
class Arranged:
    """Final numbers and learning curves of one group of cells.

    Attributes:
        finals: metric -> condition -> arm -> seed -> mean, in order of seed.
        curves: metric -> condition -> arm -> step -> value of each seed that has the step.
        undeclared: arms or metrics in the cells that today's declaration does not name (stale cells).
    """

    finals: Mapping[str, Mapping[Where, Mapping[str, Mapping[int, float]]]]
    curves: Mapping[str, Mapping[Where, Mapping[str, Mapping[float, list[float]]]]]
    undeclared: tuple[str, ...] = field(default=())


def arrange(evidence: Evidence) -> Arranged:
    """Sort all measurements once; tables and curves read from the result."""
    finals: Finals = defaultdict(lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list))))
    curves: Curves = defaultdict(lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list))))
    undeclared: set[str] = set()
    arms, metrics = set(evidence.study.arms), evidence.study.metrics
    in_order = _KeyOrder(tuple(evidence.study.conditions))
    for cell in evidence.cells:
        for m in cell.measurements:
            if m.arm not in arms or m.metric not in metrics:
                undeclared.add(m.arm if m.arm not in arms else m.metric)
            elif m.step is None:
                finals[m.metric][in_order(m.where)][m.arm][cell.spec.seed].append(m.value)
            else:
                curves[m.metric][in_order(m.where)][m.arm][m.step].append(m.value)
    return Arranged(
        {metric: dict(_in_order(evidence, _seed_means(by_where))) for metric, by_where in _declared(evidence, finals)},
        {metric: dict(_in_order(evidence, by_where)) for metric, by_where in _declared(evidence, curves)},
        tuple(sorted(undeclared)),
    )


def _declared(evidence: Evidence, table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Metrics in the order of declaration, not of measurement."""
    return ((metric, table[metric]) for metric in evidence.study.metrics if metric in table)


class _KeyOrder:
    """Conditions with their keys in the order of declaration: arms may be measured in another."""

    def __init__(self, declared: tuple[str, ...]) -> None:
        self.place = {key: index for index, key in enumerate(declared)}
        self.known: dict[Where, Where] = {}

    def __call__(self, where: Mapping[str, Any]) -> Where:
        given = tuple(where.items())
        if given not in self.known:
            last = len(self.place)
            self.known[given] = tuple(sorted(given, key=lambda pair: (self.place.get(pair[0], last), pair[0])))
        return self.known[given]


def _seed_means(by_where: Mapping[Where, Any]) -> dict[Where, dict[str, dict[int, float]]]:
    return {
        where: {arm: {seed: sum(v) / len(v) for seed, v in by_seed.items()} for arm, by_seed in by_arm.items()}
        for where, by_arm in by_where.items()
    }


def _in_order(evidence: Evidence, by_where: Mapping[Where, Any]) -> list[tuple[Where, Any]]:
    """Conditions as the study declares them; those that it no longer declares come last."""
    positions = {
        (key, value): index for key, values in evidence.study.conditions.items() for index, value in enumerate(values)
    }
    last = len(positions)
    return sorted(by_where.items(), key=lambda item: ([positions.get(pair, last) for pair in item[0]], str(item[0])))
