"""Forest plots: for each claim the effect of every seed, the mean, its interval and the margin."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence

from transfuse.study.claims import AtLeast, Claim, Trend, Verdict, Within
from transfuse.study.design import Study
from transfuse.study.report.axis import WIDTH, Axis, Panel, axis_around, drawing, line, text
from transfuse.study.report.figures import interval, number, signed
from transfuse.study.report.palette import SIGNS, outcome_class
from transfuse.study.report.tables import shown_estimate

_LABEL_CHARACTERS = 62  # of a label line, in the width of the drawing
_LINE = 13.0  # height of a label line
_ROW = 28.0  # height of what is drawn below a label


def forest(verdicts: Sequence[Verdict], study: Study) -> list[Panel]:
    """One panel for each scale of effects: differences in one metric share an axis, other units do not."""
    groups: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.effects:
            groups[verdict.claim.on, _kind(verdict.claim)].append(verdict)
    return [_panel(metric, kind, rows, study) for (metric, kind), rows in groups.items()]


def _kind(claim: Claim) -> str:
    if isinstance(claim, Trend):
        return "Rank correlation of {}"
    to_number = isinstance(claim, AtLeast) or (isinstance(claim, Within) and not isinstance(claim.other, str))
    return "Distance of {} from the claim's value" if to_number else "Paired difference in {}"


def _panel(metric: str, kind: str, verdicts: list[Verdict], study: Study) -> Panel:
    axis = _axis(verdicts)
    parts: list[str] = []
    y = 4.0
    for verdict in verdicts:
        label = textwrap.wrap(f"{SIGNS[verdict.outcome]} {verdict.claim.text()}", _LABEL_CHARACTERS)
        for words in label:
            y += _LINE
            parts.append(text(4, y, words, "label"))
        parts += _row(verdict, axis, y + _ROW / 2 + 2)
        y += _ROW + 4
    scale = _scale(axis, y)
    unit = study.metrics[metric].unit
    title = kind.format(metric) + (f" ({unit})" if unit != "1" and not kind.startswith("Rank") else "")
    caption = (
        "Each dot is one seed, the diamond their mean, the bar the 95 % interval. "
        "Right of the line at 0 is in favour of the claim; the dashed line is the margin that it must pass, "
        "and a shaded band the margin within which a difference counts as none."
    )
    return Panel(title, drawing(y + 20, title, [*scale, *parts]), caption)


def _axis(verdicts: list[Verdict]) -> Axis:
    """Holds every seed and margin; an interval of two seeds may be so wide that it is cut at the edge."""
    points = [0.0]
    for verdict in verdicts:
        points += [*verdict.effects.values(), verdict.claim.margin]
        points += [-verdict.claim.margin] if isinstance(verdict.claim, Within) else []
    width = max(points) - min(points)
    low, high = min(points) - width / 2, max(points) + width / 2
    bounds = [b for v in verdicts if (shown := shown_estimate(v)) for b in (shown.low, shown.high)]
    return axis_around([*points, *(min(high, max(low, bound)) for bound in bounds)], 8.0, WIDTH - 8.0)


def _row(verdict: Verdict, axis: Axis, y: float) -> list[str]:
    claim, estimate = verdict.claim, shown_estimate(verdict)
    assert estimate is not None  # rows are made of verdicts that have effects
    parts = _margin(claim, axis, y)
    low, high = max(estimate.low, axis.low), min(estimate.high, axis.high)
    words = f"mean {signed(estimate.mean)}, 95 % interval {interval(estimate)}, {estimate.pairs} seeds"
    parts.append(f'<g class="{outcome_class(verdict.outcome)}"><title>{words}</title>')
    if math.isfinite(estimate.low):
        parts.append(line(axis.at(low), y, axis.at(high), y, "ci"))
        parts += [
            line(axis.at(bound), y - 4, axis.at(bound), y + 4, "ci")
            for bound in (estimate.low, estimate.high)
            if axis.low <= bound <= axis.high
        ]
    x = axis.at(estimate.mean)
    parts.append(f'<path d="M{x - 6:g} {y:g}L{x:g} {y - 6:g}L{x + 6:g} {y:g}L{x:g} {y + 6:g}Z" class="mean"/></g>')
    parts += [
        f'<circle cx="{axis.at(effect):g}" cy="{y + 9:g}" r="2.4" class="seed">'
        f"<title>seed {seed}: {signed(effect)}</title></circle>"
        for seed, effect in sorted(verdict.effects.items())
    ]
    return parts


def _margin(claim: Claim, axis: Axis, y: float) -> list[str]:
    if isinstance(claim, Within):
        left, right = axis.at(-claim.margin), axis.at(claim.margin)
        return [
            f'<rect x="{left:g}" y="{y - 12:g}" width="{right - left:g}" height="{_ROW - 2:g}" class="band">'
            f"<title>within {number(claim.margin)}</title></rect>"
        ]
    if claim.margin == 0.0:
        return []
    x = axis.at(claim.margin)
    drawn = f'<line x1="{x:g}" y1="{y - 12:g}" x2="{x:g}" y2="{y + 14:g}" class="margin">'
    return [f"{drawn}<title>margin {number(claim.margin)}</title></line>"]


def _scale(axis: Axis, bottom: float) -> list[str]:
    """Grid lines with their values, drawn first so that all else lies above them."""
    parts = []
    for tick in axis.ticks():
        x = axis.at(tick)
        parts.append(line(x, 4, x, bottom, "zero" if tick == 0 else "grid"))
        parts.append(text(x, bottom + 12, number(tick), "tick", "middle"))
    return parts
