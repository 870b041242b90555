"""Factors on the server step of a federated round, made from an indicator of how far the clients disagree.

Knows nothing of Flower or of any other host, so any training loop can use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from transfuse.errors import UserError


class StepAdapter(Protocol):
    """What turns a round's indicators into factors on the server step."""

    def update(self, indicators: np.ndarray, round_index: int) -> np.ndarray: ...


class ServerStepAdapter:
    """Smoothed baseline and opening bound: factors on the server step, one a group.

    In round t: ratio r = GSI_t / B_{t-1} (1 in the first round); then B_t = beta B_{t-1} + (1 - beta) GSI_t; the factor
    is r, clipped to (1 - gamma t, 1 + gamma t). Knows nothing of Flower, so any training loop can use it.

    Args:
        beta: weight of the past in the baseline.
        gamma: growth of the bound a round; infinity means no bound.
        gamma_max: largest half-width of the bound; None means none.
        groups: how many indicators come each round.

    Attributes:
        baseline: B after the latest round, (groups,); None before the first.
        ratio: r of the latest round before clipping, (groups,).
    """

    def __init__(self, beta: float = 0.9, gamma: float = 0.02, gamma_max: float | None = None, groups: int = 1) -> None:
        self.beta, self.gamma, self.gamma_max, self.groups = beta, gamma, gamma_max, groups
        self.baseline: np.ndarray | None = None
        self.ratio = np.ones(groups)
        self.rounds = 0

    def update(self, indicators: np.ndarray | float, round_index: int | None = None) -> np.ndarray:
        """Factors of this round, (groups,).

        Args:
            indicators: GSI of each group, (groups,).
            round_index: t, from 0; None counts the calls.
        """
        values = np.atleast_1d(np.asarray(indicators, dtype=np.float64))
        if values.shape != (self.groups,) or not np.isfinite(values).all():
            raise UserError(f"indicators of shape {values.shape}", f"{self.groups} finite numbers")
        t = self.rounds if round_index is None else round_index
        self.rounds = t + 1
        if self.baseline is None:
            self.ratio, self.baseline = np.ones(self.groups), values.copy()
        else:
            self.ratio = values / self.baseline
            self.baseline = self.beta * self.baseline + (1.0 - self.beta) * values
        width = self.gamma * t if t > 0 else 0.0  # infinity times zero would be NaN
        width = width if self.gamma_max is None else min(width, self.gamma_max)
        return np.clip(self.ratio, 1.0 - width, 1.0 + width)

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint must hold."""
        baseline = np.empty(0) if self.baseline is None else self.baseline.copy()
        return {"baseline": baseline, "rounds": np.array(self.rounds)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from `state`."""
        baseline = np.asarray(state["baseline"], dtype=np.float64)
        if baseline.size not in (0, self.groups):
            raise UserError(f"a state of {baseline.size} groups", f"{self.groups} groups")
        self.baseline, self.rounds = (baseline.copy() if baseline.size else None), int(state["rounds"])
