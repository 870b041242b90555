"""Paired inference over few seeds: t interval, exact sign flip, equivalence, Holm, two-level bootstrap.

All functions take plain arrays and return plain numbers that are never NaN. The unit of replication is
the seed: one paired difference a seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special, stats

ALPHA = 0.05  # two-sided level of intervals and of Holm's procedure
MIN_PAIRS = 5  # the least number at which an exact one-sided sign-flip test can reach 5 % (1/32)
_EXACT_PAIRS = 14  # 2**14 sign patterns are enumerated, beyond that they are drawn


@dataclass(frozen=True)
class Estimate:
    """A mean with its t interval (level 1 - ALPHA), in the unit of the metric."""

    mean: float
    low: float
    high: float
    pairs: int


def t_interval(values: Sequence[float] | np.ndarray, alpha: float = ALPHA) -> Estimate:
    """Mean and two-sided t interval. One value has no interval: its bounds are infinite.

    Raises:
        ValueError: no values, or values that are not finite.
    """
    x = _checked(values)
    mean = float(x.mean())
    if len(x) < 2:
        return Estimate(mean, -math.inf, math.inf, len(x))
    half = float(special.stdtrit(len(x) - 1, 1 - alpha / 2) * standard_error(x))
    return Estimate(mean, mean - half, mean + half, len(x))


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean; exactly zero where all values agree up to rounding."""
    spread = float(values.std(ddof=1))
    if spread <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return 0.0
    return spread / math.sqrt(len(values))


def p_greater(values: Sequence[float] | np.ndarray, threshold: float = 0.0) -> float:
    """One-sided p value of the t test of "mean <= threshold" against "mean > threshold".

    Values that all agree carry no estimate of spread: p is 0 above the threshold, 1 below it, 1/2 on it.
    """
    x = _checked(values)
    distance = float(x.mean()) - threshold
    if len(x) < 2:
        return 1.0
    error = standard_error(x)
    if error == 0.0:
        return 0.5 if abs(distance) < 1e-12 else float(distance < 0)
    return float(special.stdtr(len(x) - 1, -distance / error))


def sign_flip(values: Sequence[float] | np.ndarray, threshold: float = 0.0) -> float:
    """One-sided exact sign-flip p value of "symmetric about threshold" against "larger".

    All sign patterns are enumerated up to 14 values; beyond that 20 000 are drawn from a fixed generator and
    the observed pattern is counted among them, so that the test stays valid.
    """
    x = _checked(values) - threshold
    observed = x.sum()
    slack = 1e-12 * max(1.0, float(np.abs(x).sum()))
    reached = sign_patterns(len(x)) @ x >= observed - slack
    if len(x) <= _EXACT_PAIRS:
        return float(np.mean(reached))
    return float((1 + np.sum(reached)) / (1 + len(reached)))


@lru_cache(maxsize=4)  # a report asks for thousands of tests with the same number of seeds
def sign_patterns(count: int) -> np.ndarray:
    """Sign patterns (patterns, count): all of them, or 20 000 drawn ones where there are too many."""
    if count <= _EXACT_PAIRS:
        return np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    return np.random.default_rng(0).choice((1.0, -1.0), size=(20_000, count))


def p_equivalent(values: Sequence[float] | np.ndarray, margin: float) -> float:
    """Two one-sided t tests: p value of "mean lies outside +-margin" against "inside"."""
    x = _checked(values)
    return max(p_greater(x, -margin), p_greater(-x, -margin))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[int(index)] = running
    return adjusted


def two_level_bootstrap(
    differences: Sequence[np.ndarray], draws: int = 2000, alpha: float = ALPHA, seed: int = 0
) -> Estimate:
    """Interval of a mean difference that resamples seeds, and items within each drawn seed.

    Args:
        differences: one array a seed, one paired difference an item.
        draws: bootstrap replicates.
        alpha: two-sided level of the percentile interval.
        seed: of the resampling.
    """
    if not differences:
        raise ValueError("no differences")
    arrays = [_checked(array) for array in differences]
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(arrays), size=(draws, len(arrays)))
    means = np.empty(chosen.shape)
    for index, array in enumerate(arrays):
        means[chosen == index] = _resampled_means(array, int(np.sum(chosen == index)), rng)
    low, high = np.quantile(means.mean(1), (alpha / 2, 1 - alpha / 2))
    return Estimate(float(np.mean([array.mean() for array in arrays])), float(low), float(high), len(arrays))


def _resampled_means(items: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Means of `count` resamples of the items, in blocks that keep the memory small."""
    block = max(1, 2_000_000 // len(items))
    starts = range(0, count, block)
    sizes = [(min(block, count - start), len(items)) for start in starts]
    return np.concatenate([np.empty(0), *(items[rng.integers(len(items), size=size)].mean(1) for size in sizes)])


def pairs_needed(effect_in_sd: float, power: float = 0.8, alpha: float = ALPHA) -> int:
    """Seeds that a paired t test needs to see an effect, given in standard deviations of the difference."""
    if effect_in_sd <= 0:
        raise ValueError("the effect must be positive")
    few, enough = MIN_PAIRS - 1, 10_000  # power grows with the number of pairs, so it can be halved in on
    while enough - few > 1:
        pairs = (few + enough) // 2
        critical = special.stdtrit(pairs - 1, 1 - alpha / 2)
        if stats.nct.sf(critical, pairs - 1, effect_in_sd * math.sqrt(pairs)) >= power:
            enough = pairs
        else:
            few = pairs
    return enough


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64).ravel()
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"expected at least one value and only finite ones, got {x.size} values")
    return x
