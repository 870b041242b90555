"""Learning curves: the mean over seeds with the range of the seeds, one panel for each metric and condition."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import escape

from transfuse.study.evidence import Evidence
from transfuse.study.report.arrange import Arranged
from transfuse.study.report.axis import WIDTH, Axis, Panel, axis_around, drawing, line, text
from transfuse.study.report.figures import conditions, number
from transfuse.study.report.palette import Look, looks

_HEIGHT, _TOP, _BOTTOM, _LEFT = 210.0, 8.0, 180.0, 40.0
_LABEL_ROOM = 112.0  # right of the curves, for the names of the arms
_LABEL_CHARACTERS = 17
_MOST_POINTS = 60  # of a line; more cannot be seen at this width and would only make the page heavy
_MOST_BANDS = 4  # more ranges on top of each other hide the lines: then only that of the arm pointed at is shown

Steps = Mapping[float, list[float]]
_BETTER = {"higher": "higher is better", "lower": "lower is better", "neither": ""}


def curves(evidence: Evidence, arranged: Arranged) -> list[Panel]:
    """All learning curves that a group of cells has."""
    styles = looks(evidence.study)
    return [
        _panel(_title(evidence, metric, where), by_arm, styles)
        for metric, by_where in arranged.curves.items()
        for where, by_arm in by_where.items()
    ]


def _title(evidence: Evidence, metric: str, where: tuple) -> str:
    """Metric, unit, which way is better, conditions."""
    declared = evidence.study.metrics[metric]
    unit = f" ({declared.unit})" if declared.unit != "1" else ""
    return ", ".join(filter(None, (metric + unit, _BETTER[declared.better], conditions(dict(where)))))


def _panel(title: str, by_arm: Mapping[str, Steps], styles: Mapping[str, Look]) -> Panel:
    arms = [arm for arm in styles if arm in by_arm]
    x = axis_around([step for arm in arms for step in by_arm[arm]], _LEFT, WIDTH - _LABEL_ROOM, pad=0.0)
    y = axis_around([v for arm in arms for values in by_arm[arm].values() for v in values], _BOTTOM, _TOP)
    thinned = {arm: _thinned(sorted(by_arm[arm].items())) for arm in arms}
    drawn = sorted({step for steps in thinned.values() for step, _ in steps})
    places = _places({arm: y.at(_mean(steps[-1][1])) for arm, steps in thinned.items()})
    parts = _frame(x, y)
    for arm, steps in thinned.items():
        parts += [*_curve(arm, steps, drawn, x, y, styles[arm]), _name(arm, places[arm]), "</g>"]
    caption = "Line: mean over seeds; band: lowest to highest seed; dashed: control."
    most = max(len(by_arm[arm]) for arm in arms)
    if most > _MOST_POINTS:
        caption += f" {_MOST_POINTS} of {most} points are drawn."
    many = " many" if len(arms) > _MOST_BANDS else ""
    attributes = (
        f'class="curves{many}" tabindex="0" role="img" data-steps="{" ".join(map(number, drawn))}" '
        f'data-at="{" ".join(f"{x.at(step):g}" for step in drawn)}"'
    )
    return Panel(title, drawing(_HEIGHT, f"learning curves: {title}", parts, attributes), caption)


def _thinned(steps: list[tuple[float, list[float]]]) -> list[tuple[float, list[float]]]:
    """Evenly chosen points, first and last among them."""
    if len(steps) <= _MOST_POINTS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (_MOST_POINTS - 1))] for i in range(_MOST_POINTS)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _curve(
    arm: str, steps: list[tuple[float, list[float]]], drawn: list[float], x: Axis, y: Axis, look: Look
) -> list[str]:
    """The group of one arm, left open for its name. Its values stand beside the steps of the panel, for hovering."""
    means = {step: _mean(values) for step, values in steps}
    values = " ".join(number(means[step]) if step in means else "-" for step in drawn)
    last = f"{number(means[steps[-1][0]])} at {number(steps[-1][0])}, {len(steps[-1][1])} seeds"
    parts = [
        f'<g class="arm {look.colour}" data-arm="{escape(arm)}" data-values="{values}">'
        f"<title>{escape(arm)}: {last}</title>"
    ]
    if any(len(values) > 1 for _, values in steps):
        upper = [f"{x.at(step):g} {y.at(max(values)):g}" for step, values in steps]
        lower = [f"{x.at(step):g} {y.at(min(values)):g}" for step, values in reversed(steps)]
        parts.append(f'<path d="M{"L".join([*upper, *lower])}Z" class="range"/>')
    path = "L".join(f"{x.at(step):g} {y.at(mean):g}" for step, mean in means.items())
    dash = f' stroke-dasharray="{look.dash}"' if look.dash else ""
    parts.append(f'<path d="M{path}" class="curve"{dash}/>')
    if len(means) == 1:  # a line of one point would not be seen
        parts += [f'<circle cx="{x.at(s):g}" cy="{y.at(mean):g}" r="2.5" class="point"/>' for s, mean in means.items()]
    return parts


def _frame(x: Axis, y: Axis) -> list[str]:
    parts = []
    for tick in y.ticks(5):
        parts.append(line(x.start, y.at(tick), x.end, y.at(tick), "grid"))
        parts.append(text(x.start - 5, y.at(tick) + 3.5, number(tick), "tick", "end"))
    parts += [text(x.at(tick), _BOTTOM + 13, number(tick), "tick", "middle") for tick in x.ticks(4)]
    parts.append(text((x.start + x.end) / 2, _BOTTOM + 26, "step", "tick", "middle"))
    return parts


def _places(ends: Mapping[str, float]) -> dict[str, float]:
    """Heights of the arms' names at the ends of their lines, moved apart until none covers another."""
    gap = min(13.0, (_BOTTOM + 20 - _TOP) / max(1, len(ends)))
    places: dict[str, float] = {}
    lowest = _TOP
    for arm, end in sorted(ends.items(), key=lambda item: (item[1], item[0])):
        places[arm] = max(end, lowest)
        lowest = places[arm] + gap
    overhang = max(0.0, lowest - gap - (_BOTTOM + 20))
    return {arm: place - overhang for arm, place in places.items()}


def _name(arm: str, place: float) -> str:
    name = arm if len(arm) <= _LABEL_CHARACTERS else arm[: _LABEL_CHARACTERS - 1] + "…"
    return f'<text x="{WIDTH - _LABEL_ROOM + 5:g}" y="{place + 3.5:.1f}" class="name">{escape(name)}</text>'
