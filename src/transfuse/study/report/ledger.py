"""The transfer ledger: where transfer helped, where it hurt, by how much, and at what cost.

Two kinds of entries: the comparisons that claims ask for, and, asked for by nobody, every method arm against
the study's first control on every metric that has a better way. An entry reads "helped" or "hurt" under the
same rule as a verdict (t interval and sign flip over seeds), but without correction for the number of
entries: the ledger is for looking, the verdicts are for concluding.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transfuse.statistics import ALPHA, MIN_PAIRS, p_greater, sign_flip, t_interval
from transfuse.study.claims import Beats
from transfuse.study.evidence import Evidence
from transfuse.study.report.arrange import Arranged
from transfuse.study.report.figures import conditions, duration, effect, interval, signed
from transfuse.study.report.provenance import mean_wall
from transfuse.study.report.tables import anchor, label

# Metrics in these units are what an arm costs, not what it achieves.
COST_UNITS = frozenset(
    (
        "s",
        "ms",
        "min",
        "h",
        "B",
        "kB",
        "MB",
        "GB",
        "KiB",
        "MiB",
        "GiB",
        "bytes",
        "rounds",
        "epochs",
        "steps",
        "tokens",
        "parameters",
    )
)


@dataclass(frozen=True)
class LedgerRow:
    """One comparison; positive effects are for the better, whatever way the metric runs."""

    anchor: str
    study: str
    scale: str
    arm: str
    against: str
    metric: str
    where: str
    effect: str
    interval: str
    pairs: int
    reading: str  # helped, hurt, unclear, too few seeds
    by_condition: str
    cost: str
    asked: bool  # by a claim
    stale: bool
    sort_effect: float


def ledger(group: Evidence, arranged: Arranged) -> list[LedgerRow]:
    """All entries of one group of cells; those that claims ask for come first."""
    if group.scale == "quick":
        return []  # there for the plumbing
    study = group.study
    rows = []
    told = set()
    for verdict in group.verdicts:
        claim = verdict.claim
        if isinstance(claim, Beats) and not claim.control and verdict.effects:
            by_condition = "" if claim.where else _by_condition(group, arranged, claim)
            rows.append(_row(group, claim, list(verdict.effects.values()), by_condition, True))
            told.add((claim.arms, claim.on, bool(claim.where)))
    for arm in (arm for arm in study.arms if arm not in study.controls):
        for metric in _metrics(group):
            comparison = Beats(arm, study.controls[0], on=metric)
            differences = _differences(group, arranged, comparison, {})
            if differences and (comparison.arms, metric, False) not in told:
                by_condition = _by_condition(group, arranged, comparison)
                rows.append(_row(group, comparison, differences, by_condition, False))
    return rows


def _metrics(group: Evidence) -> list[str]:
    """What arms are compared on: the metrics of the study's comparisons, else all that have a better way."""
    metrics = group.study.metrics
    claimed = {claim.on for claim in group.claims if isinstance(claim, Beats) and not claim.control}
    able = [name for name, m in metrics.items() if m.better != "neither" and m.unit not in COST_UNITS]
    return [name for name in able if name in claimed] or able


def _row(group: Evidence, pair: Beats, differences: list[float], by_condition: str, asked: bool) -> LedgerRow:
    estimate = t_interval(differences)
    return LedgerRow(
        anchor=anchor(group),
        study=group.study.id,
        scale=label(group),
        arm=pair.arm,
        against=pair.other,
        metric=pair.on,
        where=conditions(pair.where),
        effect=effect(estimate),
        interval=interval(estimate),
        pairs=estimate.pairs,
        reading=reading(differences),
        by_condition=by_condition,
        cost=_cost(group, pair),
        asked=asked,
        stale=bool(group.stale),
        sort_effect=estimate.mean,
    )


def _differences(group: Evidence, arranged: Arranged, pair: Beats, where: Mapping[str, Any]) -> list[float]:
    """One paired difference a seed, positive where `arm` is better: the mean over conditions that both have."""
    sign = -1.0 if group.study.metrics[pair.on].better == "lower" else 1.0
    by_seed: dict[int, list[float]] = defaultdict(list)
    for condition, by_arm in arranged.finals.get(pair.on, {}).items():
        if where.items() <= dict(condition).items() and pair.arm in by_arm and pair.other in by_arm:
            first, second = by_arm[pair.arm], by_arm[pair.other]
            for seed in first.keys() & second.keys():
                by_seed[seed].append(sign * (first[seed] - second[seed]))
    return [math.fsum(by_seed[seed]) / len(by_seed[seed]) for seed in sorted(by_seed)]


def reading(differences: Sequence[float]) -> str:
    """Helped or hurt where the t test and the sign flip both say so; else unclear."""
    if len(differences) < MIN_PAIRS:
        return "too few seeds"
    for word, sign in (("helped", 1.0), ("hurt", -1.0)):
        x = [sign * value for value in differences]
        if p_greater(x) < ALPHA / 2 and sign_flip(x) <= ALPHA:
            return word
    return "unclear"


def _by_condition(group: Evidence, arranged: Arranged, pair: Beats) -> str:
    """The same comparison under each value of each condition: whom it helped, whom it hurt.

    A condition of which only one value was measured says nothing, nor one that repeats another.
    """
    told = [_differences(group, arranged, pair, {})]
    parts = []
    for key, values in group.study.conditions.items():
        for value in values:
            differences = _differences(group, arranged, pair, {key: value})
            if differences and differences not in told:
                told.append(differences)
                mean = effect(t_interval(differences))
                judged = f" ({reading(differences)})" if len(differences) >= MIN_PAIRS else ""
                parts.append(f"{key} {value}: {mean}{judged}")
    return "; ".join(parts)


def _cost(group: Evidence, pair: Beats) -> str:
    """What the arm cost over the other where the study measures that; else what a cell took for all arms."""
    parts = []
    for metric, declared in group.study.metrics.items():
        if declared.unit in COST_UNITS:
            first, second = (list(group.values.by_seed(name, metric, {}).values()) for name in pair.arms)
            if first and second:
                more = sum(first) / len(first) - sum(second) / len(second)
                parts.append(f"{metric} {signed(more)} {declared.unit}")
    return ", ".join(parts) or f"{duration(mean_wall(group))} a cell, all arms"
