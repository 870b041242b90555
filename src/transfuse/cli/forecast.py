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
    started: float = field(default_factory=time.monotonic)
    _done: float = 0.0  # expected seconds of the finished cells
    _spent: float = 0.0  # what they took
    _names: set[str] = field(default_factory=set)

    def finished(self, name: str, seconds: float | None) -> None:
        """A cell ended after so many seconds; None where it failed."""
        self._names.add(name)
        self._done += self.expected[name]
        self._spent += self.expected[name] if seconds is None else seconds

    @property
    def share(self) -> float:
        """Finished share of the expected work, in 0 .. 1."""
        total = sum(self.expected.values())
        return self._done / total if total else 1.0

    def left(self, now: float | None = None) -> float:
        """Seconds until all are done."""
        pace = self._spent / self._done if self._done else 1.0
        jobs = max(1, min(self.jobs, len(self.expected)))
        rest = [seconds for name, seconds in self.expected.items() if name not in self._names]
        whole = pace * sum(self.expected.values()) / jobs
        elapsed = (time.monotonic() if now is None else now) - self.started
        # What is left cannot be less than nothing, nor take longer than if all the rest began now.
        return max(0.0, min(whole - elapsed, max(pace * sum(rest) / jobs, pace * max(rest, default=0.0))))
