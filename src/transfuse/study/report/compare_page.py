"""Two runs side by side as a page: each claim's effect in both, and what changed in every number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transfuse.statistics import Estimate, t_interval
from transfuse.study.claims import OUTCOMES, Verdict
from transfuse.study.evidence import Evidence
from transfuse.study.report.axis import Panel
from transfuse.study.report.figures import conditions, effect, interval, number, seed_list
from transfuse.study.report.forest import claim_row, ends, kind, mark, panel_title
from transfuse.study.report.interval_plot import Mark, Row, interval_plot
from transfuse.study.report.page import template
from transfuse.study.report.palette import SIGNS
from transfuse.study.report.tables import label

KINDS = ("higher in B", "lower in B", "not told apart", "identical", "in one run only")
_CLAIMS_CAPTION = (
    "Two estimates a claim: run A above, hollow; run B below. Each dot is one seed, the diamond their mean, the bar "
    "the 95 % interval. Two intervals that overlap may still differ: seeds are paired, see the differences below."
)
_DIFFERENCES_CAPTION = (
    "B minus A, seed by seed: each dot is one seed, the diamond their mean, the bar the 95 % interval of the paired "
    "difference, not corrected for the number of rows. Rows whose numbers are identical are left out."
)


@dataclass(frozen=True)
class NumberRow:
    """One mean of both runs, ready to print."""

    metric: str
    arm: str
    where: str
    a: str
    b: str
    difference: str
    interval: str
    kind: str
    sort_difference: float | str


def render_comparison(
    pairs: Sequence[tuple[Evidence, Evidence]], compared: Sequence[Mapping[str, Any]], names: tuple[str, str]
) -> str:
    """The page as text.

    Args:
        pairs: the groups of cells that are compared, A and B.
        compared: what `transfuse compare --json` prints of each.
        names: what the user called the two runs.
    """
    return template("compare.html.j2").render(
        title=f"{names[0]} and {names[1]}",
        names=names,
        signs=SIGNS,
        groups=[_group(*pair, values) for pair, values in zip(pairs, compared, strict=True)],
    )


def _group(a: Evidence, b: Evidence, values: Mapping[str, Any]) -> dict[str, Any]:
    rows = [_number_row(row) for row in values["rows"]]
    return {
        "study": a.study.id,
        "title": a.entry.card.title,
        "runs": [(name, label(side), seed_list(side.seeds), side.stale) for name, side in (("A", a), ("B", b))],
        "shared": seed_list(values["shared_seeds"]),
        "identical": seed_list(values["identical_seeds"]),
        "same_scale": a.scale == b.scale,
        "changed": values["verdicts_changed"],
        "counts": [
            (outcome, *(sum(v.outcome == outcome for v in side.verdicts) for side in (a, b))) for outcome in OUTCOMES
        ],
        "claims": _claim_panels(a, b),
        "claims_caption": _CLAIMS_CAPTION,
        "differences": _difference_panels(a, values["rows"]),
        "differences_caption": _DIFFERENCES_CAPTION,
        "rows": rows,
        "kinds": [(name, sum(row.kind == name for row in rows)) for name in KINDS],
    }


def _claim_panels(first: Evidence, second: Evidence) -> list[Panel]:
    """Forest plots of the claims that both runs tested."""
    before = {verdict.claim.text(): verdict for verdict in first.verdicts if verdict.effects}
    groups: dict[str, list[tuple[Verdict, Verdict]]] = defaultdict(list)
    for verdict in second.verdicts:
        if verdict.effects and verdict.claim.text() in before:
            title = panel_title(verdict.claim.on, kind(verdict.claim), second.study)
            groups[title].append((before[verdict.claim.text()], verdict))
    panels = []
    for title, verdicts in groups.items():
        rows = [
            claim_row(
                second.claim, _signs(first, second), [replace(mark(first, "A: "), hollow=True), mark(second, "B: ")]
            )
            for first, second in verdicts
        ]
        panels.append(Panel(title, interval_plot(rows, title, ends([b.claim for _, b in verdicts]))))
    return panels


def _signs(first: Verdict, second: Verdict) -> str:
    """The sign of the verdict, or of both where they differ."""
    signs = SIGNS[first.outcome], SIGNS[second.outcome]
    return " → ".join(dict.fromkeys(signs))


def _difference_panels(a: Evidence, rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Paired differences, one panel a metric."""
    by_metric: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        seeds = row["by_seed"]
        if any(seeds.values()):
            drawn = [Mark(t_interval(list(seeds.values())), seeds)]
            by_metric[row["metric"]].append(Row(row["arm"], conditions(row["where"]), drawn))
    panels = []
    for metric, drawn_rows in by_metric.items():
        declared = a.study.metrics.get(metric)
        unit = f" ({declared.unit})" if declared and declared.unit != "1" else ""
        better = f", {declared.better} is better" if declared and declared.better != "neither" else ""
        title = f"{metric}{unit}{better}"
        panels.append(Panel(title, interval_plot(drawn_rows, title, ("← lower in B", "higher in B →"))))
    return panels


def _number_row(row: Mapping[str, Any]) -> NumberRow:
    difference, told = row["difference"], ""
    words = "" if difference is None else effect(Estimate(difference, difference, difference, 1))
    if row["low"] is not None:
        estimate = Estimate(difference, row["low"], row["high"], row["pairs"])
        words, told = effect(estimate), interval(estimate)
    return NumberRow(
        metric=row["metric"],
        arm=row["arm"],
        where=conditions(row["where"]),
        a="" if row["a"] is None else number(row["a"]),
        b="" if row["b"] is None else number(row["b"]),
        difference=words,
        interval=told,
        kind=_kind(row),
        sort_difference="" if difference is None else difference,
    )


def _kind(row: Mapping[str, Any]) -> str:
    """Whether the interval of the difference leaves out zero, in words."""
    if row["difference"] is None:
        return "in one run only" if row["a"] is None or row["b"] is None else "not told apart"
    if not any(row["by_seed"].values()):
        return "identical"
    if row["low"] is None or row["low"] <= 0 <= row["high"]:
        return "not told apart"
    return "higher in B" if row["low"] > 0 else "lower in B"
