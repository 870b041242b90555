"""The transfer ledger: where transfer helped, where it hurt, by how much, and at what cost.

Two kinds of entries: the comparisons that claims ask for, and, asked for by nobody, every method arm against
the study's first control on every metric that has a better way. An entry reads "helped" or "hurt" under the
same rule as a verdict (t interval and sign flip over seeds), but without correction for the number of
entries: the ledger is for looking, the verdicts are for concluding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transfuse.statistics import ALPHA, MIN_PAIRS, p_greater, sign_flip, t_interval
from transfuse.study.claims import Beats
from transfuse.study.evidence import Evidence
from transfuse.study.report.figures import conditions, duration, interval, signed
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
    sort_effect: float


def ledger(evidence: Sequence[Evidence]) -> list[LedgerRow]:
    """All entries, study by study; claims first."""
    return [row for group in evidence if group.scale != "quick" for row in _of_group(group)]


def _of_group(group: Evidence) -> list[LedgerRow]:
    study = group.study
    comparisons: dict[tuple[str, str, str, tuple], bool] = {}
    for claim in group.claims:
        if isinstance(claim, Beats) and not claim.control:
            comparisons.setdefault((claim.arm, claim.other, claim.on, tuple(claim.where.items())), True)
    for arm in (arm for arm in study.arms if arm not in study.controls):
        for metric, declared in study.metrics.items():
            if declared.better != "neither" and declared.unit not in COST_UNITS:
                comparisons.setdefault((arm, study.controls[0], metric, ()), False)
    rows = [_row(group, *comparison, asked) for comparison, asked in comparisons.items()]
    return [row for row in rows if row is not None]


def _row(group: Evidence, arm: str, against: str, metric: str, where: tuple, asked: bool) -> LedgerRow | None:
    differences = _differences(group, arm, against, metric, dict(where))
    if not differences:
        return None
    estimate = t_interval(differences)
    return LedgerRow(
        anchor=anchor(group),
        study=group.study.id,
        scale=label(group),
        arm=arm,
        against=against,
        metric=metric,
        where=conditions(dict(where)),
        effect=signed(estimate.mean),
        interval=interval(estimate),
        pairs=estimate.pairs,
        reading=reading(differences),
        by_condition="" if where else _by_condition(group, arm, against, metric),
        cost=_cost(group, arm, against),
        asked=asked,
        sort_effect=estimate.mean,
    )


def _differences(group: Evidence, arm: str, against: str, metric: str, where: Mapping[str, Any]) -> list[float]:
    """Paired differences over seeds, positive where `arm` is better."""
    sign = -1.0 if group.study.metrics[metric].better == "lower" else 1.0
    first, second = (group.values.by_seed(name, metric, where) for name in (arm, against))
    return [sign * (first[seed] - second[seed]) for seed in sorted(first.keys() & second.keys())]


def reading(differences: Sequence[float]) -> str:
    """Helped or hurt where the t test and the sign flip both say so; else unclear."""
    if len(differences) < MIN_PAIRS:
        return "too few seeds"
    for word, sign in (("helped", 1.0), ("hurt", -1.0)):
        x = [sign * value for value in differences]
        if p_greater(x) < ALPHA / 2 and sign_flip(x) <= ALPHA:
            return word
    return "unclear"


def _by_condition(group: Evidence, arm: str, against: str, metric: str) -> str:
    """The same comparison under each value of each condition that was measured: whom it helped, whom it hurt."""
    parts = []
    for key, values in group.study.conditions.items():
        for value in values:
            differences = _differences(group, arm, against, metric, {key: value})
            if differences:
                mean = signed(sum(differences) / len(differences))
                judged = f" ({reading(differences)})" if len(differences) >= MIN_PAIRS else ""
                parts.append(f"{key} {value}: {mean}{judged}")
    return "; ".join(parts)


def _cost(group: Evidence, arm: str, against: str) -> str:
    """What the arm cost over the other where the study measures that; else what a cell took for all arms."""
    parts = []
    for metric, declared in group.study.metrics.items():
        if declared.unit in COST_UNITS:
            first, second = (list(group.values.by_seed(name, metric, {}).values()) for name in (arm, against))
            if first and second:
                more = sum(first) / len(first) - sum(second) / len(second)
                parts.append(f"{metric} {signed(more)} {declared.unit}")
    return ", ".join(parts) or f"not measured per arm; {duration(mean_wall(group))} a cell for all arms"
