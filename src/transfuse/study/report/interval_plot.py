"""Plots of estimates with their intervals, one row below another on a common axis; the forest plot is one."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from transfuse.statistics import Estimate
from transfuse.study.report.axis import WIDTH, Axis, axis_around, drawing, line, text
from transfuse.study.report.figures import effect, interval, number, signed

_LABEL_CHARACTERS = 50  # of a label line, in the width of the drawing
_LINE = 14.0  # height of a label line
_MARK = 22.0  # height of an estimate with its seeds
_MOST_DOTS = 30  # seeds that are drawn with a value each; more would only make the page heavy


@dataclass(frozen=True)
class Mark:
    """One estimate: its interval as a bar, its mean as a diamond, the seeds as dots below.

    Attributes:
        estimate: mean and interval as they are to be shown.
        seeds: the effect of each seed.
        look: CSS class.
        name: what comes first in the words that are shown on hovering.
        hollow: drawn lighter, where two marks share a row.
    """

    estimate: Estimate
    seeds: Mapping[int, float]
    look: str = ""
    name: str = ""
    hollow: bool = False

    def words(self) -> str:
        """All values, for those who hover, tap or listen."""
        estimate = self.estimate
        told = f"{self.name}mean {effect(estimate)}, 95 % interval {interval(estimate)}, {estimate.pairs} seeds"
        if len(self.seeds) > _MOST_DOTS:
            return f"{told}, from {signed(min(self.seeds.values()))} to {signed(max(self.seeds.values()))}"
        return told


@dataclass(frozen=True)
class Row:
    """A label with what is drawn below it.

    Attributes:
        label: in ink.
        below: a second line, quiet.
        marks: one below another.
        margin: a dashed line where a claim's margin lies; 0 for none.
        within: half the width of a band in which a difference counts as none; 0 for none.
    """

    label: str
    below: str = ""
    marks: Sequence[Mark] = field(default=())
    margin: float = 0.0
    within: float = 0.0


def interval_plot(rows: Sequence[Row], title: str, ends: tuple[str, str] = ("", "")) -> Markup:
    """The drawing. `ends` says what the left and the right of the axis mean."""
    axis = _axis(rows)
    ticks = axis.ticks(5)
    parts: list[str] = []
    y = 2.0
    for row in rows:
        for kind, words in (("label", row.label), ("below", row.below)):
            for part in textwrap.wrap(words, _LABEL_CHARACTERS):
                y += _LINE
                parts.append(text(4, y, part, kind))
        bottom = y + 5 + _MARK * len(row.marks)
        parts.append(_grid(axis, ticks, y + 5, bottom))
        parts += _limits(row, axis, y + 5, bottom)
        for index, mark in enumerate(row.marks):
            parts += _mark(mark, axis, y + 14 + index * _MARK)
        y = bottom + 7
    parts += [text(axis.at(tick), y + 6, number(tick), "tick", "middle") for tick in ticks]
    if any(ends):
        parts += [text(4, y + 21, ends[0], "tick"), text(WIDTH - 4, y + 21, ends[1], "tick", "end")]
        y += 15
    return drawing(y + 12, title, parts)


def _axis(rows: Sequence[Row]) -> Axis:
    """Holds every seed and margin; an interval of two seeds may be so wide that it is cut at the edge."""
    points, bounds = [0.0], []
    for row in rows:
        points += [row.margin, -row.within, row.within]
        for mark in row.marks:
            points += [*mark.seeds.values(), mark.estimate.mean]
            bounds += [mark.estimate.low, mark.estimate.high]
    width = max(points) - min(points)
    low, high = min(points) - width / 2, max(points) + width / 2
    return axis_around([*points, *(min(high, max(low, bound)) for bound in bounds)], 12.0, WIDTH - 12.0)


def _grid(axis: Axis, ticks: Iterable[float], top: float, bottom: float) -> str:
    """Lines at the ticks, beside the marks only: through a label they would make it hard to read."""
    strokes = "".join(f"M{axis.at(tick):g} {top:g}V{bottom:g}" for tick in ticks if tick)
    zero = line(axis.at(0.0), top, axis.at(0.0), bottom, "zero")
    return (f'<path d="{strokes}" class="grid"/>' if strokes else "") + zero


def _limits(row: Row, axis: Axis, top: float, bottom: float) -> list[str]:
    if row.within:
        left, right = axis.at(-row.within), axis.at(row.within)
        return [
            f'<rect x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}" class="band">'
            f"<title>within {number(row.within)}</title></rect>"
        ]
    if row.margin == 0.0:
        return []
    x = axis.at(row.margin)
    drawn = f'<line x1="{x:g}" y1="{top:g}" x2="{x:g}" y2="{bottom:g}" class="margin">'
    return [f"{drawn}<title>margin {number(row.margin)}</title></line>"]


def _mark(mark: Mark, axis: Axis, y: float) -> list[str]:
    estimate = mark.estimate
    low, high = max(estimate.low, axis.low), min(estimate.high, axis.high)
    look = " ".join(filter(None, ("mark", mark.look, "hollow" if mark.hollow else "")))
    parts = [f'<g class="{look}" tabindex="0" role="img"><title>{mark.words()}</title>']
    if math.isfinite(estimate.low):
        strokes = f"M{axis.at(low):g} {y:g}H{axis.at(high):g}"
        for bound in (estimate.low, estimate.high):
            if axis.low <= bound <= axis.high:
                strokes += f"M{axis.at(bound):g} {y - 4:g}v8"
        parts.append(f'<path d="{strokes}" class="ci"/>')
    x = axis.at(estimate.mean)
    parts.append(f'<path d="M{x - 6:g} {y:g}l6-6 6 6-6 6z" class="mean"/></g>')
    if len(mark.seeds) > _MOST_DOTS:
        return [*parts, f'<path d="{_dots([axis.at(value) for value in mark.seeds.values()], y + 9)}" class="seeds"/>']
    parts += [
        f'<circle cx="{axis.at(value):g}" cy="{y + 9:g}" r="2.6" class="seed">'
        f"<title>{mark.name}seed {seed}: {signed(value)}</title></circle>"
        for seed, value in sorted(mark.seeds.items())
    ]
    return parts


def _dots(places: Iterable[float], y: float) -> str:
    """Many dots as one path, from left to right; of those that would cover each other one is drawn."""
    first, *others = sorted({round(place) for place in places})
    steps = [after - before for before, after in itertools.pairwise([first, *others])]
    return f"M{first} {y:g}h0" + "".join(f"m{step} 0h0" for step in steps)
