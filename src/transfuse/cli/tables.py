"""Plain tables and short forms of numbers: no dependency that would slow `transfuse list` down."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer

COLOURS = {
    "supported": "green",
    "ok": "green",
    "contradicted": "red",
    "finding": "red",
    "broken": "red",
    "inconclusive": "yellow",
    "too few seeds": "yellow",
    "missing": "yellow",
    "stale": "yellow",
}
_GAP = "  "
_LEAST = 16  # a column is not made narrower than this for the sake of the others


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], indent: str = "") -> str:
    """Columns as wide as their content; in a terminal the widest are wrapped to fit, elsewhere a row is a line."""
    body = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(headings, *body, strict=True)]
    if (room := _terminal_width()) is not None:
        widths = _fitted(widths, room - len(indent) - len(_GAP) * (len(widths) - 1))
    lines = [_line(headings, widths, heading=True)]
    for row in body:
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
        height = max(len(cell) for cell in cells)
        lines += [_line([c[i] if i < len(c) else "" for c in cells], widths) for i in range(height)]
    return "\n".join(indent + line for line in lines)


def facts(pairs: Mapping[str, str]) -> str:
    """Names and values, one a line, values aligned and wrapped in a terminal."""
    margin = max(len(name) for name in pairs) + len(_GAP)
    return "\n".join(paragraph(value, f"{name:<{margin}}", " " * margin) for name, value in pairs.items())


def paragraph(text: str, first: str = "", rest: str = "") -> str:
    """Running text, wrapped in a terminal only."""
    room = _terminal_width()
    if room is None:
        return first + text
    return textwrap.fill(text, max(room, 40), initial_indent=first, subsequent_indent=rest or first)


def heading(text: str) -> str:
    """A line that stands out in a terminal."""
    return typer.style(text, bold=True)


def print_json(value: Any) -> None:
    """For programs that read along; one value a call, never NaN."""
    typer.echo(json.dumps(value, indent=1, allow_nan=False))


def duration(seconds: float) -> str:
    """About as exact as an estimate deserves: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if 0.05 <= seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count(number: int, what: str, several: str = "") -> str:
    """ "1 cell", "2 cells"."""
    return f"{number} {what if number == 1 else several or what + 's'}"


def _line(cells: Sequence[str], widths: Sequence[int], *, heading: bool = False) -> str:
    padded = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)]
    if heading:
        return typer.style(_GAP.join(padded).rstrip(), bold=True)
    painted = [
        typer.style(text, fg=COLOURS[cell]) if cell in COLOURS else text
        for text, cell in zip(padded, cells, strict=True)
    ]
    return _GAP.join(painted).rstrip()


def _fitted(widths: Sequence[int], room: int) -> list[int]:
    """Take from the widest column until all fit."""
    fitted = list(widths)
    while sum(fitted) > room and max(fitted) > _LEAST:
        fitted[fitted.index(max(fitted))] -= 1
    return fitted


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
