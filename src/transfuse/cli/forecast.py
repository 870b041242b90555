"""How long the rest will take: expected seconds of each cell, corrected by those that are done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Forecast:
    """Time left, for cells that differ much in length.

    Attributes:
        expected: seconds of each cell, by its name.
        jobs: how many run at once.
    """

    expected: Mapping[str, float]
    jobs: int
    now: float = field(default_factory=time.monotonic)  # when a cell last ended
    _names: set[str] = field(default_factory=set)
    _done: float = 0.0  # expected seconds of the finished cells
    _spent: float = 0.0  # what they took

    def finished(self, name: str, seconds: float | None, now: float | None = None) -> None:
        """A cell ended after so many seconds; None where it failed, which says nothing about the others."""
        self.now = time.monotonic() if now is None else now
        self._names.add(name)
        self._spent += self.expected[name] * self.pace if seconds is None else seconds
        self._done += self.expected[name]

    @property
    def pace(self) -> float:
        """Seconds that an expected second takes."""
        return self._spent / self._done if self._done else 1.0

    @property
    def share(self) -> float:
        """Finished share of the expected work, in 0 .. 1."""
        total = sum(self.expected.values())
        return self._done / total if total else 1.0

    def left(self, now: float | None = None) -> float:
        """Seconds until all are done; cells under way count as if they had begun when the last one ended."""
        rest = [seconds for name, seconds in self.expected.items() if name not in self._names]
        if not rest:
            return 0.0
        work = self.pace * max(sum(rest) / max(1, min(self.jobs, len(rest))), max(rest))
        return max(0.0, work - ((time.monotonic() if now is None else now) - self.now))
