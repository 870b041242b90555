"""Forest plots: for each claim the effect of every seed, the mean, its interval and the margin."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from transfuse.study.claims import AtLeast, Claim, Trend, Verdict, Within
from transfuse.study.design import Study
from transfuse.study.report.axis import Panel
from transfuse.study.report.figures import conditions
from transfuse.study.report.interval_plot import Mark, Row, interval_plot
from transfuse.study.report.palette import SIGNS, outcome_class
from transfuse.study.report.tables import head

ENDS = ("← against the claim", "in favour →")
CAPTION = (
    "Each dot is one seed, the diamond their mean, the bar the 95 % interval. "
    "Right of the line at 0 is in favour of the claim; a dashed line is the margin that it must pass. "
    "In a claim of equivalence the shaded band is where a difference counts as none."
)


def forest(verdicts: Sequence[Verdict], study: Study) -> list[Panel]:
    """One panel for each scale of effects: differences in one metric share an axis, other units do not."""
    groups: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.effects:
            groups[verdict.claim.on, kind(verdict.claim)].append(verdict)
    return [_panel(panel_title(metric, how, study), rows) for (metric, how), rows in groups.items()]


def kind(claim: Claim) -> str:
    """What an effect is, with a place for the metric; effects of one kind share an axis."""
    if isinstance(claim, Trend):
        return "Rank correlation of {}"
    to_number = isinstance(claim, AtLeast) or (isinstance(claim, Within) and not isinstance(claim.other, str))
    return "Distance of {} from the claim's value" if to_number else "Paired difference in {}"


def panel_title(metric: str, how: str, study: Study) -> str:
    unit = study.metrics[metric].unit
    return how.format(metric) + (f" ({unit})" if unit != "1" and not how.startswith("Rank") else "")


def ends(claims: Sequence[Claim]) -> tuple[str, str]:
    """What left and right mean; among equivalences alone neither is better."""
    return ("", "") if all(isinstance(claim, Within) for claim in claims) else ENDS


def claim_row(claim: Claim, sign: str, marks: Sequence[Mark]) -> Row:
    within = claim.margin if isinstance(claim, Within) else 0.0
    margin = 0.0 if isinstance(claim, Within) else claim.margin
    return Row(f"{sign} {head(claim)}".strip(), conditions(claim.where), marks, margin, within)


def mark(verdict: Verdict, name: str = "") -> Mark:
    estimate = verdict.estimate
    assert estimate is not None  # rows are made of verdicts that have effects
    return Mark(estimate, verdict.effects, outcome_class(verdict.outcome), name)


def _panel(title: str, verdicts: Sequence[Verdict]) -> Panel:
    rows = [claim_row(verdict.claim, SIGNS[verdict.outcome], [mark(verdict)]) for verdict in verdicts]
    return Panel(title, interval_plot(rows, title, ends([verdict.claim for verdict in verdicts])), CAPTION)
