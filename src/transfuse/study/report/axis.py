"""A straight axis with round ticks, and the few SVG pieces that both kinds of plot use."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 340  # units of every drawing: as wide as a phone's screen leaves, so that its text is not shrunk there


@dataclass(frozen=True)
class Panel:
    """One drawing with its heading and the sentence below it."""

    title: str
    svg: Markup
    caption: str = ""


@dataclass(frozen=True)
class Axis:
    """Maps low..high to start..end in drawing units."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, about: int = 5) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten, inside the axis."""
        raw = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def axis_around(values: Iterable[float], start: float, end: float, pad: float = 0.05) -> Axis:
    """An axis that holds all finite values with a little room; never of no width."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    width = high - low
    if width <= 1e-9 * max(abs(low), abs(high), 1e-9):
        width = abs(high) or 1.0
        low, high = low - width / 2, high + width / 2
    return Axis(low - pad * width, high + pad * width, start, end)


def drawing(height: float, label: str, parts: Iterable[str], attributes: str = 'role="group"') -> Markup:
    """The SVG element; `label` is what a screen reader says."""
    body = "".join(parts)
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" aria-label="{escape(label)}" {attributes}>'
    return Markup(f"{head}{body}</svg>")


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    attributes = f' class="{kind}"' if kind else ""
    attributes += "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}"{attributes}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{kind}"/>'
