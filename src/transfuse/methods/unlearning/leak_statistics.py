"""Rates over questions that are not independent: facts are drawn anew, never single questions.

>>> rate = over_facts([1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1])
>>> rate.value, rate.low, rate.high                                           # two facts, so anything may be
(0.5, 0.0, 1.0)
>>> round(mcnemar([True] * 6, [False] * 6), 4)
0.0312
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.05  # two-sided, of intervals; one-sided, of the test that a verdict needs


@dataclass(frozen=True)
class Rate:
    """A rate or a difference of rates, its 95 % interval, and what it rests on."""

    value: float
    low: float
    high: float
    questions: int
    facts: int

    @property
    def interval(self) -> tuple[float, float]:
        return (self.low, self.high)


def over_facts(hits: ArrayLike, asked: ArrayLike, fact: ArrayLike, draws: int = 2000, seed: int = 0) -> Rate:
    """Sum of hits over sum of asked, with a percentile interval over facts drawn anew.

    Args:
        hits: a number a question, (n,): 0 or 1, or a difference of two such.
        asked: how much each question counts, 0 or 1, (n,).
        fact: which fact it belongs to, (n,).
        draws: of facts.
        seed: of the draws.

    Returns:
        The rate; 0 within [-1, 1] where nothing was asked.
    """
    hits, asked = np.asarray(hits, float), np.asarray(asked, float)
    _, place = np.unique(np.asarray(fact), return_inverse=True)
    top = np.bincount(place, hits * asked) if len(place) else np.zeros(0)  # (facts,)
    bottom = np.bincount(place, asked) if len(place) else np.zeros(0)
    top, bottom = top[bottom > 0], bottom[bottom > 0]
    if not len(bottom):
        return Rate(0.0, -1.0, 1.0, 0, 0)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(top), np.full(len(top), 1 / len(top)), size=draws)  # (draws, facts)
    low, high = np.quantile(weights @ top / (weights @ bottom), (LEVEL / 2, 1 - LEVEL / 2))
    return Rate(float(top.sum() / bottom.sum()), float(low), float(high), int(asked.sum()), len(top))


def any_by_fact(hits: ArrayLike, fact: ArrayLike, count: int) -> np.ndarray:
    """Whether any question of each of `count` facts hit, (count,)."""
    return np.bincount(np.asarray(fact, int), np.asarray(hits, float), minlength=count) > 0


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """Exact two-sided p value that two paired answers are right equally often."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    more, fewer = int((a & ~b).sum()), int((~a & b).sum())
    return float(stats.binomtest(more, more + fewer).pvalue) if more + fewer else 1.0


def first_leak(hits: ArrayLike, fact: ArrayLike, count: int) -> tuple[float, int]:
    """Median number of questions up to a fact's first leak, in the order asked, and how many facts never leaked.

    A fact that never leaked counts as infinite; the median is infinite where half of them did not.
    """
    hits, fact = np.asarray(hits, bool), np.asarray(fact, int)
    needed = np.full(count, math.inf)
    for index in range(count):
        places = np.flatnonzero(hits[fact == index])
        if len(places):
            needed[index] = places[0] + 1
    return float(np.median(needed)) if count else math.inf, int(np.isinf(needed).sum())


@dataclass(frozen=True)
class Excess:
    """Facts that leak from a model beyond those that leak from one that never knew them.

    Attributes:
        rate: difference of the shares of facts, with its interval over facts.
        p: exact one-sided p value of the sign test on facts that differ.
        beyond: whether the interval lies above the margin and p is at most 5 %.
        false_alarms: how often `beyond` would be true if the two models were exchangeable.
    """

    rate: Rate
    p: float
    beyond: bool
    false_alarms: float


def excess(own: ArrayLike, other: ArrayLike, margin: float, draws: int = 2000, seed: int = 0) -> Excess:
    """Compare two models on the same facts, (facts,) booleans each.

    The null exchanges the two models fact by fact: as often as that would be flagged, a model that knows no more than
    the other is.
    """
    d = np.asarray(own, int) - np.asarray(other, int)
    rate = over_facts(d, np.ones(len(d)), np.arange(len(d)), draws, seed)
    p = _sign_test(int((d > 0).sum()), int((d < 0).sum()))
    differ, n = int((d != 0).sum()), len(d)
    rng = np.random.default_rng([seed, 1])
    flips = np.bincount(rng.binomial(differ, 0.5, size=4000), minlength=differ + 1) / 4000
    alarms = 0.0
    for more in np.flatnonzero(flips):
        if _sign_test(int(more), differ - int(more)) <= LEVEL and n:
            shares = np.array([more, differ - more, n - differ]) / n
            counts = np.random.default_rng([seed, int(more)]).multinomial(n, shares, size=draws)
            low = np.quantile((counts[:, 0] - counts[:, 1]) / n, LEVEL / 2)
            alarms += float(flips[more]) * bool(low > margin)
    return Excess(rate, p, rate.low > margin and p <= LEVEL, alarms)


def _sign_test(more: int, fewer: int) -> float:
    return float(stats.binom.sf(more - 1, more + fewer, 0.5)) if more + fewer else 1.0


def smallest_detectable(facts: int) -> float:
    """The rate of leaking facts that so many facts would miss with 5 % probability: the rule of three.

    >>> smallest_detectable(60), smallest_detectable(2)
    (0.05, 1.0)
    """
    return min(1.0, 3 / facts) if facts else 1.0


def shares(kinds: Sequence[str], of: str) -> float:
    """Share of one kind of reply."""
    return sum(kind == of for kind in kinds) / len(kinds) if kinds else 0.0
