"""Rates over facts: bootstrap against enumeration, paired tests against closed forms, and the error rate of the verdict
when two models are exchangeable."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from transfuse.methods.unlearning.leak_statistics import (
    any_by_fact,
    excess,
    first_leak,
    mcnemar,
    over_facts,
    shares,
    smallest_detectable,
)


def test_interval_is_that_of_all_resamples() -> None:
    """Four facts have 4**4 resamples; the percentile interval of all of them is the bootstrap's."""
    hits, asked, fact = [1, 0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 3]
    top, bottom = np.array([1, 2, 0, 0]), np.array([2, 2, 2, 1])
    draws = [top[list(c)].sum() / bottom[list(c)].sum() for c in itertools.product(range(4), repeat=4)]
    rate = over_facts(hits, asked, fact, draws=20_000)
    assert rate.value == pytest.approx(3 / 7)
    assert (rate.questions, rate.facts) == (7, 4)
    assert rate.interval == pytest.approx(np.quantile(draws, (0.025, 0.975)), abs=0.02)


def test_many_questions_about_one_fact_are_no_more_evidence() -> None:
    few = over_facts([1, 0, 1, 0], [1] * 4, range(4))
    many = over_facts([1] * 50 + [0] * 50 + [1] * 50 + [0] * 50, [1] * 200, np.repeat(range(4), 50))
    assert few.interval == many.interval


def test_questions_that_do_not_count_are_left_out() -> None:
    assert over_facts([1, 1, 0], [1, 0, 1], [0, 0, 1]) == over_facts([1, 0], [1, 1], [0, 1])
    nothing = over_facts([], [], [])
    assert (nothing.value, nothing.interval, nothing.facts) == (0.0, (-1.0, 1.0), 0)
    assert over_facts([1], [0], [0]).facts == 0


def test_a_difference_can_be_negative() -> None:
    rate = over_facts([-1, -1, 0, 1], [1] * 4, range(4))
    assert rate.value == -0.25
    assert rate.low < 0 < rate.high


def test_mcnemar_is_the_binomial_test_of_what_differs() -> None:
    a, b = [1, 1, 1, 0, 0, 1, 1], [0, 0, 0, 1, 0, 1, 0]  # four more, one fewer
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(4, 5).pvalue)
    assert mcnemar(a, b) == mcnemar(b, a)
    assert mcnemar([1, 0], [1, 0]) == mcnemar([], []) == 1.0


def test_any_and_first() -> None:
    hits, fact = [0, 1, 0, 0, 0, 1], [0, 0, 1, 1, 2, 2]
    assert any_by_fact(hits, fact, 4).tolist() == [True, False, True, False]
    assert first_leak(hits, fact, 3) == (2.0, 1)
    median, never = first_leak([0, 0], [0, 1], 2)
    assert math.isinf(median)
    assert never == 2
    assert shares(["leak", "wrong"], "leak") == 0.5
    assert shares([], "leak") == 0
    assert smallest_detectable(0) == 1


def test_excess_needs_more_than_facts_that_agree() -> None:
    """Three facts of three have an interval without width; the sign test is not deceived."""
    three = excess([1] * 3, [0] * 3, 0.05)
    assert three.rate.interval == (1.0, 1.0)
    assert three.p == pytest.approx(1 / 8)
    assert not three.beyond
    five = excess([1] * 5, [0] * 5, 0.05)
    assert five.p == pytest.approx(1 / 32)
    assert five.beyond
    assert five.false_alarms == pytest.approx(1 / 32, abs=0.015)


def test_excess_of_a_model_over_itself_is_nothing() -> None:
    same = excess([1, 0, 1, 0], [1, 0, 1, 0], 0.05)
    assert same.rate.value == 0
    assert (same.p, same.beyond, same.false_alarms) == (1.0, False, 0.0)
    assert not excess([0] * 30, [1] * 30, 0.05).beyond  # fewer leaks are no leak
    assert not excess([], [], 0.05).beyond


def test_false_alarms_are_as_frequent_as_said() -> None:
    """Two exchangeable models, many times: flagged no more often than the level, and as often as the null says."""
    rng = np.random.default_rng(0)
    found, said = [], []
    for _ in range(300):
        one, other = rng.random((2, 24)) < 0.3
        result = excess(one, other, 0.05, draws=300)
        found.append(result.beyond)
        said.append(result.false_alarms)
    assert np.mean(found) <= 0.05
    assert abs(np.mean(found) - np.mean(said)) < 0.025
