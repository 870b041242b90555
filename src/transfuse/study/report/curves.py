"""Learning curves: the mean over seeds with the range of the seeds, one panel for each metric and condition."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import escape

from transfuse.study.evidence import Evidence
from transfuse.study.report.arrange import Arranged
from transfuse.study.report.axis import WIDTH, Axis, Panel, axis_around, drawing, line, text
from transfuse.study.report.figures import conditions, number
from transfuse.study.report.palette import Look, looks

_HEIGHT, _TOP, _BOTTOM, _LEFT = 210.0, 8.0, 180.0, 46.0
_LABEL_ROOM = 112.0  # right of the curves, for the names of the arms
_LABEL_CHARACTERS = 17
_MOST_POINTS = 120  # of a line; more cannot be seen at this width and would only make the page heavy

Steps = Mapping[float, list[float]]


def curves(evidence: Evidence, arranged: Arranged) -> list[Panel]:
    """All learning curves that a group of cells has."""
    styles = looks(evidence.study)
    return [
        _panel(metric, where, by_arm, styles, evidence.study.metrics[metric].unit)
        for metric, by_where in arranged.curves.items()
        for where, by_arm in by_where.items()
    ]


def _panel(metric: str, where: tuple, by_arm: Mapping[str, Steps], styles: Mapping[str, Look], unit: str) -> Panel:
    arms = [arm for arm in styles if arm in by_arm]
    x = axis_around([step for arm in arms for step in by_arm[arm]], _LEFT, WIDTH - _LABEL_ROOM, pad=0.0)
    y = axis_around([v for arm in arms for values in by_arm[arm].values() for v in values], _BOTTOM, _TOP)
    parts = _frame(x, y)
    ends = {}
    for arm in arms:
        steps = _thinned(sorted(by_arm[arm].items()))
        parts += _curve(arm, steps, x, y, styles[arm])
        ends[arm] = y.at(_mean(steps[-1][1]))
    parts += _names(ends, styles)
    title = metric + (f" ({unit})" if unit != "1" else "") + (f", {conditions(dict(where))}" if where else "")
    most = max(len(by_arm[arm]) for arm in arms)
    caption = "Line: mean over seeds; band: lowest to highest seed; dashed: control."
    if most > _MOST_POINTS:
        caption += f" {_MOST_POINTS} of {most} points are drawn."
    return Panel(title, drawing(_HEIGHT, f"learning curves of {title}", parts), caption)


def _thinned(steps: list[tuple[float, list[float]]]) -> list[tuple[float, list[float]]]:
    """Evenly chosen points, first and last among them."""
    if len(steps) <= _MOST_POINTS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (_MOST_POINTS - 1))] for i in range(_MOST_POINTS)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _curve(arm: str, steps: list[tuple[float, list[float]]], x: Axis, y: Axis, look: Look) -> list[str]:
    mean = [(x.at(step), y.at(_mean(values))) for step, values in steps]
    upper = [f"{x.at(step):g} {y.at(max(values)):g}" for step, values in steps]
    lower = [f"{x.at(step):g} {y.at(min(values)):g}" for step, values in reversed(steps)]
    dash = f' stroke-dasharray="{look.dash}"' if look.dash else ""
    last = number(_mean(steps[-1][1]))
    title = f"<title>{escape(arm)}: {last} at {number(steps[-1][0])}, {len(steps[-1][1])} seeds</title>"
    path = "L".join(f"{px:g} {py:g}" for px, py in mean)
    parts = [f'<g class="{look.colour}">{title}']
    if any(len(values) > 1 for _, values in steps):
        parts.append(f'<path d="M{"L".join([*upper, *lower])}Z" class="range"/>')
    parts.append(f'<path d="M{path}" class="curve"{dash}/>')
    if len(mean) <= 30:
        parts += [
            f'<circle cx="{px:g}" cy="{py:g}" r="2" class="point">'
            f"<title>{escape(arm)}, {number(step)}: {number(_mean(values))}</title></circle>"
            for (px, py), (step, values) in zip(mean, steps, strict=True)
        ]
    return [*parts, "</g>"]


def _frame(x: Axis, y: Axis) -> list[str]:
    parts = []
    for tick in y.ticks(4):
        parts.append(line(x.start, y.at(tick), x.end, y.at(tick), "grid"))
        parts.append(text(x.start - 5, y.at(tick) + 3.5, number(tick), "tick", "end"))
    parts += [text(x.at(tick), _BOTTOM + 13, number(tick), "tick", "middle") for tick in x.ticks(4)]
    parts.append(text((x.start + x.end) / 2, _BOTTOM + 26, "step", "tick", "middle"))
    return parts


def _names(ends: Mapping[str, float], styles: Mapping[str, Look]) -> list[str]:
    """Arm names at the ends of their lines, moved apart until none covers another."""
    gap = min(12.0, (_BOTTOM + 20 - _TOP) / max(1, len(ends)))
    places: list[tuple[str, float]] = []
    for arm, end in sorted(ends.items(), key=lambda item: (item[1], item[0])):
        lowest = places[-1][1] + gap if places else _TOP
        places.append((arm, max(end, lowest)))
    overhang = max(0.0, places[-1][1] - (_BOTTOM + 20))
    parts = []
    for arm, place in places:
        name = arm if len(arm) <= _LABEL_CHARACTERS else arm[: _LABEL_CHARACTERS - 1] + "…"
        x = WIDTH - _LABEL_ROOM + 5
        words = f"<title>{escape(arm)}</title>{escape(name)}"
        parts.append(
            f'<text x="{x:g}" y="{place - overhang + 3.5:.1f}" class="name {styles[arm].colour}">{words}</text>'
        )
    return parts
