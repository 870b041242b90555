"""Maps: arms by a condition, the mean over seeds as depth of colour and as a number, a panel for each of another one.

Above zero and below it have colours of their own; the number in the cell says it without colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import escape

from transfuse.study.evidence import Evidence
from transfuse.study.report.arrange import Arranged
from transfuse.study.report.axis import WIDTH, Panel, drawing, text
from transfuse.study.report.figures import number

_LEFT, _ROW, _HEAD = 88.0, 16.0, 86.0  # room for the names of arms, height of a row, room for the names of columns
_MOST_DEEP = 0.85  # opacity of the largest value: ink on it stays legible

Cells = Mapping[tuple[str, Any], float]  # arm, column -> mean over seeds


def heat_maps(evidence: Evidence, arranged: Arranged) -> list[Panel]:
    """All maps that a study declares and its cells can fill; panels and columns in the order of declaration."""
    study, found = evidence.study, []
    for metric, (column, panel) in study.maps.items():
        tables: dict[Any, dict[tuple[str, Any], float]] = {value: {} for value in study.conditions[panel]}
        for where, by_arm in arranged.finals.get(metric, {}).items():
            conditions = dict(where)
            if conditions.get(panel) in tables and column in conditions:
                for arm, seeds in by_arm.items():
                    tables[conditions[panel]][arm, conditions[column]] = sum(seeds.values()) / len(seeds)
        largest = max((abs(value) for cells in tables.values() for value in cells.values()), default=0.0)
        deepest = min(largest, 1.0) or 1.0  # shares beyond 1 are as deep as 1
        for value, cells in tables.items():
            columns = [name for name in study.conditions[column] if any(key[1] == name for key in cells)]
            if columns:
                arms = [arm for arm in study.arms if any(key[0] == arm for key in cells)]
                found.append(_panel(f"{metric}, {panel} {value}", arms, columns, cells, deepest))
    return found


def _panel(title: str, arms: list[str], columns: list[Any], cells: Cells, deepest: float) -> Panel:
    width = min(30.0, (WIDTH - _LEFT - 20) / len(columns))
    parts = []
    for place, column in enumerate(columns):
        x = _LEFT + (place + 0.5) * width
        parts.append(
            f'<text x="{x:g}" y="{_HEAD - 5:g}" class="tick" transform="rotate(-50 {x:g} {_HEAD - 5:g})">'
            f"{escape(column)}</text>"
        )
    for row, arm in enumerate(arms):
        y = _HEAD + row * _ROW
        parts.append(text(_LEFT - 4, y + 11.5, arm, "tick", "end"))
        for place, column in enumerate(columns):
            if (value := cells.get((arm, column))) is not None:
                parts.append(_cell(_LEFT + place * width, y, width, value, deepest, f"{arm}, {column}"))
    caption = "Mean over seeds. The deeper a cell, the further from zero; the other colour is below zero."
    return Panel(title, drawing(_HEAD + len(arms) * _ROW + 4, f"map: {title}", parts, 'role="img"'), caption)


def _cell(x: float, y: float, width: float, value: float, deepest: float, name: str) -> str:
    """A rectangle with its number, shortened as far as it stays clear: .87, -.05."""
    depth = _MOST_DEEP * min(abs(value) / deepest, 1.0)
    kind = "cell below" if value < 0 else "cell"
    short = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.1f}"
    return (
        f'<g><title>{escape(name)}: {number(value)}</title><rect x="{x:.1f}" y="{y:g}" width="{width - 1:.1f}" '
        f'height="{_ROW - 1:g}" class="{kind}" fill-opacity="{depth:.2f}"/>'
        f'<text x="{x + width / 2 - 0.5:.1f}" y="{y + 10.5:g}" class="cell-value">{short}</text></g>'
    )
