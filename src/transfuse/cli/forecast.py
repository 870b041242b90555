"""How long the rest will take: expected seconds of each cell, corrected by those that are done."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Forecast:
    """Time left, for cells that differ much in length.

    Attributes:
        expected: seconds of each cell, by its name ``study/scale/...``.
        jobs: how many run at once.
        now: when a cell last ended, on the monotonic clock.
    """

    expected: Mapping[str, float]
    jobs: int
    now: float = field(default_factory=time.monotonic)
    _ended: set[str] = field(default_factory=set)
    _took: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def finished(self, name: str, seconds: float | None, now: float | None = None) -> None:
        """A cell ended after so many seconds; None where it failed, which says nothing about the others."""
        self.now = time.monotonic() if now is None else now
        self._ended.add(name)
        if seconds is not None:
            self._took[_study(name)].append((seconds, self.expected[name]))

    @property
    def share(self) -> float:
        """Finished share of the expected work, in 0 .. 1."""
        total = sum(self.expected.values())
        return sum(self.expected[name] for name in self._ended) / total if total else 1.0

    def left(self, now: float | None = None) -> float:
        """Seconds until all are done; cells under way count as if they had begun when the last one ended."""
        overall = _pace([pair for pairs in self._took.values() for pair in pairs])
        rest = [
            seconds * (_pace(self._took[_study(name)]) if _study(name) in self._took else overall)
            for name, seconds in self.expected.items()
            if name not in self._ended
        ]
        if not rest:
            return 0.0
        work = max(sum(rest) / max(1, min(self.jobs, len(rest))), max(rest))
        return max(0.0, work - ((time.monotonic() if now is None else now) - self.now))


def _study(name: str) -> str:
    return name.rpartition("/")[0]


def _pace(pairs: list[tuple[float, float]]) -> float:
    """Seconds that an expected second takes."""
    expected = sum(expected for _, expected in pairs)
    return sum(seconds for seconds, _ in pairs) / expected if expected else 1.0
