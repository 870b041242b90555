"""The arithmetic of verdicts against scipy, enumeration, definitions and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from transfuse.statistics import (
    MIN_PAIRS,
    holm,
    p_equivalent,
    p_greater,
    pairs_needed,
    sign_flip,
    standard_error,
    t_interval,
    two_level_bootstrap,
)

finite = st.floats(-1e6, 1e6)
samples = st.lists(finite, min_size=2, max_size=12)


def spread_out(values: list[float]) -> bool:
    """Whether the values differ by more than rounding."""
    return bool(np.std(values, ddof=1) > 1e-9 * max(1.0, np.abs(values).max()))


@given(samples.filter(spread_out), st.sampled_from([0.01, 0.05, 0.2]))
def test_t_interval_is_that_of_scipy(values: list[float], alpha: float) -> None:
    ours = t_interval(values, alpha)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(1 - alpha)
    scale = max(1.0, np.abs(values).max())
    assert ours.mean == pytest.approx(np.mean(values), abs=1e-9 * scale)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-8 * scale)
    assert ours.pairs == len(values)


@given(samples.filter(spread_out), finite)
def test_p_greater_is_the_one_sided_t_test_of_scipy(values: list[float], threshold: float) -> None:
    theirs = stats.ttest_1samp(values, threshold, alternative="greater").pvalue
    assert p_greater(values, threshold) == pytest.approx(theirs, abs=1e-8)


@given(samples.filter(spread_out), st.floats(0, 1e6))
def test_equivalence_is_two_one_sided_tests_of_scipy(values: list[float], margin: float) -> None:
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    assert p_equivalent(values, margin) == pytest.approx(max(above, below), abs=1e-8)


def flips_by_hand(values: list[float], threshold: float) -> float:
    """The sign-flip test from its definition, in exact fractions of whole numbers."""
    x = [value - threshold for value in values]
    sums = [sum(s * v for s, v in zip(signs, x, strict=True)) for signs in itertools.product((1, -1), repeat=len(x))]
    return sum(total >= sum(x) for total in sums) / len(sums)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=9), st.integers(-5, 5))
def test_sign_flip_is_the_enumeration_of_all_signs(values: list[int], threshold: int) -> None:
    assert sign_flip(values, threshold) == flips_by_hand(values, threshold)


def test_sign_flip_counts_ties_that_rounding_would_hide() -> None:
    # 0.1 + 0.2 and 0.3 are the same distance; without slack the pattern (-, -, +) would not count as reached
    assert sign_flip([0.1, 0.2, -0.3]) == flips_by_hand([1, 2, -3], 0)
    assert sign_flip([0.1] * 5) == 1 / 32


def test_drawn_sign_flips_agree_with_the_enumeration() -> None:
    x = np.random.default_rng(3).normal(0.4, 1.0, 15)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=15)))
    exact = float(np.mean(signs @ x >= x.sum() - 1e-9))
    error = math.sqrt(exact * (1 - exact) / 20_000)
    assert sign_flip(x) == pytest.approx(exact, abs=4 * error)
    assert sign_flip(np.ones(40)) == pytest.approx(1 / 20_001)  # never zero: the observed pattern is counted


def holm_by_definition(p: list[float]) -> list[float]:
    """Each p value times the number of hypotheses still open, made monotone over the sorted order."""
    order = sorted(range(len(p)), key=lambda i: (p[i], i))
    return [max(min(1.0, (len(p) - j) * p[order[j]]) for j in range(order.index(index) + 1)) for index in range(len(p))]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_by_definition_monotone_and_never_below_the_raw_value(p: list[float]) -> None:
    adjusted = holm(p)
    assert adjusted == pytest.approx(holm_by_definition(p), abs=1e-12)
    assert all(raw <= value <= 1 for raw, value in zip(p, adjusted, strict=True))
    ranked = sorted(zip(p, adjusted, strict=True))
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(ranked))


def test_holm_controls_the_family_over_independent_true_nulls() -> None:
    rng = np.random.default_rng(0)
    rejected = [min(holm(list(p))) < 0.05 for p in rng.random((4000, 10))]
    assert np.mean(rejected) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


@given(
    st.lists(st.sampled_from([0.0, 1.0, 0.1, -2.5, 1e-300, 1e15]), min_size=1, max_size=7),
    st.sampled_from([0.0, 1.0, 0.1]),
)
def test_nothing_is_ever_nan(values: list[float], threshold: float) -> None:
    interval = t_interval(values)
    numbers = [interval.mean, p_greater(values, threshold), sign_flip(values, threshold)]
    numbers += [p_equivalent(values, threshold), standard_error(np.array([*values, 0.0]))]
    assert all(math.isfinite(number) for number in numbers)
    assert not math.isnan(interval.low) and not math.isnan(interval.high)
    assert interval.low <= interval.mean <= interval.high


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_missing_or_infinite_values_are_refused(values: list[float]) -> None:
    for function in (t_interval, p_greater, sign_flip):
        with pytest.raises(ValueError, match="finite"):
            function(values)


def test_values_that_agree_decide_by_where_they_lie() -> None:
    assert p_greater([0.3] * 5, 0.1) == 0.0
    assert p_greater([0.3] * 5, 0.5) == 1.0
    assert p_greater([0.3] * 5, 0.3) == 0.5
    # the same number reached by other sums differs in the last bit; that is no spread
    assert p_greater([0.1 + 0.2, 0.3, 0.3, 0.3, 0.3], 0.3) == 0.5
    assert t_interval([0.3] * 5).low == 0.3


def test_one_value_says_nothing() -> None:
    assert p_greater([5.0]) == 1.0
    assert t_interval([5.0]).low == -math.inf


def coverage(seeds: int, items: int, between: float, within: float, runs: int = 250) -> float:
    """How often the bootstrap interval holds the true mean, 0."""
    rng = np.random.default_rng(1)
    hits = 0
    for run in range(runs):
        arrays = [rng.normal(0, between) + rng.normal(0, within, items) for _ in range(seeds)]
        interval = two_level_bootstrap(arrays, draws=300, seed=run)
        hits += interval.low <= 0 <= interval.high
    return hits / runs


def test_two_level_bootstrap_covers_with_twenty_seeds() -> None:
    # 250 runs: standard error 0.014. With five seeds any percentile bootstrap is too short (0.82 where
    # seeds dominate), which is why it is shown beside a verdict and never decides one.
    assert coverage(20, 20, between=1.0, within=1.0) == pytest.approx(0.95, abs=0.045)
    assert coverage(5, 20, between=1.0, within=1.0) >= 0.75


def test_two_level_bootstrap_sees_both_levels() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 1, 50) for _ in range(6)]
    shifted = [array + shift for array, shift in zip(noise, (-3, -2, -1, 1, 2, 3), strict=True)]
    one, two = two_level_bootstrap(noise), two_level_bootstrap(shifted)
    assert two.high - two.low > 4 * (one.high - one.low)
    assert one.mean == pytest.approx(np.mean([array.mean() for array in noise]))
    assert two_level_bootstrap([np.ones(4)] * 5) == two_level_bootstrap([np.ones(4)] * 5)
    assert two_level_bootstrap([np.ones(4)] * 5).low == 1.0
    with pytest.raises(ValueError, match="no differences"):
        two_level_bootstrap([])


@pytest.mark.parametrize("effect", [0.6, 1.0, 2.0])
def test_pairs_needed_gives_the_power_it_promises(effect: float) -> None:
    pairs = pairs_needed(effect)
    rng = np.random.default_rng(0)
    runs = 4000
    x = rng.normal(effect, 1.0, (runs, pairs))
    power = np.mean(stats.ttest_1samp(x, 0.0, axis=1, alternative="greater").pvalue < 0.025)
    error = math.sqrt(0.8 * 0.2 / runs)
    assert power >= 0.8 - 4 * error
    if pairs > MIN_PAIRS:  # one pair fewer must not be enough
        fewer = np.mean(stats.ttest_1samp(x[:, :-1], 0.0, axis=1, alternative="greater").pvalue < 0.025)
        assert fewer <= 0.8 + 4 * error


@given(st.floats(0.05, 5), st.floats(0.05, 5))
@settings(max_examples=30)
def test_larger_effects_need_no_more_pairs(a: float, b: float) -> None:
    small, large = sorted((a, b))
    assert pairs_needed(large) <= pairs_needed(small)
    with pytest.raises(ValueError, match="positive"):
        pairs_needed(-a)
