"""Claims on numbers made by hand, and how often verdicts are wrong when there is nothing to find."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from scipy import stats

from transfuse.statistics import pairs_needed, t_interval
from transfuse.study.claims import AtLeast, AtMost, Beats, Claim, Outcome, Trend, Verdict, Within, judge, needed_note


@dataclass(frozen=True)
class ByHand:
    """Values as claims read them: arm -> one number a seed, or one curve a seed."""

    finals: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    curves: Mapping[str, Mapping[int, list[tuple[Any, float]]]] = field(default_factory=dict)
    way: str = "higher"

    def by_seed(self, arm: str, metric: str, where: Mapping[str, Any]) -> dict[int, float]:
        return dict(self.finals.get(arm, {}))

    def along(self, arm: str, metric: str, where: Mapping[str, Any], key: str) -> dict[int, list[tuple[Any, float]]]:
        return dict(self.curves.get(arm, {}))

    def better(self, metric: str) -> str:
        return self.way


def seeds(values: Any) -> dict[int, float]:
    return {seed: float(value) for seed, value in enumerate(values)}


def verdict(claim: Claim, way: str = "higher", **arms: Any) -> Verdict:
    return judge([claim], ByHand({arm: seeds(values) for arm, values in arms.items()}, way=way))[0]


SPREAD = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])
WIDE = np.array([-0.5, 0.5, -0.2, 0.3, -0.1])
ZERO = np.zeros(5)


@pytest.mark.parametrize(
    ("claim", "a", "b", "outcome"),
    [
        (Beats("a", "b", on="m"), 0.3 + SPREAD, ZERO, "supported"),
        (Beats("a", "b", on="m"), SPREAD - 0.3, ZERO, "contradicted"),
        (Beats("a", "b", on="m"), WIDE, ZERO, "inconclusive"),
        (Beats("a", "b", on="m"), 0.3 + SPREAD[:4], ZERO, "too few seeds"),
        (Beats("a", "b", on="m", by=0.2), 0.3 + SPREAD, ZERO, "supported"),
        (Beats("a", "b", on="m", by=0.4), 0.3 + SPREAD, ZERO, "contradicted"),
        (Beats("a", "b", on="m", by=0.31), 0.3 + SPREAD, ZERO, "inconclusive"),
        (Within("a", "b", on="m", width=0.1), SPREAD, ZERO, "supported"),
        (Within("a", "b", on="m", width=0.1), 0.3 + SPREAD, ZERO, "contradicted"),
        (Within("a", "b", on="m", width=0.1), SPREAD - 0.3, ZERO, "contradicted"),
        (Within("a", "b", on="m", width=0.1), 0.1 + SPREAD, ZERO, "inconclusive"),
        (Within("a", "b", on="m", width=0.1), SPREAD[:4], ZERO, "too few seeds"),
        (Within("a", 0.5, on="m", width=0.1), 0.5 + SPREAD, ZERO, "supported"),
        (Within("a", 0.5, on="m", width=0.1), SPREAD, ZERO, "contradicted"),
        (AtLeast("a", 0.5, on="m"), 0.6 + SPREAD, ZERO, "supported"),
        (AtLeast("a", 0.5, on="m"), 0.4 + SPREAD, ZERO, "contradicted"),
        (AtLeast("a", 0.5, on="m"), 0.5 + SPREAD, ZERO, "inconclusive"),
        (AtLeast("a", 0.5, on="m"), [0.6], ZERO, "too few seeds"),
        (AtMost("a", 0.5, on="m"), 0.4 + SPREAD, ZERO, "supported"),
        (AtMost("a", 0.5, on="m"), 0.6 + SPREAD, ZERO, "contradicted"),
        (AtMost("a", 0.5, on="m"), 0.5 + WIDE, ZERO, "inconclusive"),
        (AtMost("a", 0.5, on="m"), [], ZERO, "too few seeds"),
    ],
)
def test_every_outcome_of_every_claim(claim: Claim, a: Any, b: Any, outcome: Outcome) -> None:
    found = verdict(claim, a=a, b=b)
    assert found.outcome == outcome
    assert found.meaning
    assert all(math.isfinite(p) and 0 <= p <= 1 for p in (found.p, found.p_holm, found.p_sign_flip))


def test_effects_are_paired_and_turned_to_the_better_side() -> None:
    higher = verdict(Beats("a", "b", on="m"), a=[3, 5], b=[1, 2])
    lower = verdict(Beats("a", "b", on="m"), "lower", a=[3, 5], b=[1, 2])
    assert higher.effects == {0: 2, 1: 3}
    assert lower.effects == {0: -2, 1: -3}
    assert higher.estimate == t_interval([2, 3])
    assert lower.estimate is not None and lower.estimate.mean == -2.5


def test_where_lower_is_better_lower_wins() -> None:
    assert verdict(Beats("a", "b", on="m"), "lower", a=SPREAD - 0.3, b=ZERO).outcome == "supported"
    # thresholds and equivalence speak of the value itself, whatever way is better
    assert verdict(AtMost("a", 0.5, on="m"), "lower", a=0.4 + SPREAD, b=ZERO).outcome == "supported"
    assert verdict(Within("a", "b", on="m", width=0.1), "lower", a=SPREAD, b=ZERO).outcome == "supported"


def test_only_seeds_that_both_arms_have_are_pairs() -> None:
    values = ByHand({"a": {0: 1.0, 1: 2.0, 3: 5.0}, "b": {1: 1.0, 2: 9.0, 3: 1.0}})
    assert judge([Beats("a", "b", on="m")], values)[0].effects == {1: 1.0, 3: 4.0}


def test_an_arm_that_was_never_measured_is_too_few_seeds_without_an_estimate() -> None:
    found = verdict(Beats("a", "b", on="m"), a=SPREAD)
    assert (found.outcome, found.estimate, found.effects) == ("too few seeds", None, {})


def trend(claim: Trend, *curves: list[tuple[Any, float]]) -> Verdict:
    return judge([claim], ByHand(curves={"a": dict(enumerate(curves))}))[0]


@pytest.mark.parametrize("key", ["step", "noise"])
def test_trends_are_rank_correlations_of_each_seed(key: str) -> None:
    rising = [(1, 0.1), (2, 0.2), (3, 0.9), (4, 1.0)]
    bent = [(1, 0.1), (2, 0.3), (3, 0.2), (4, 0.4)]
    found = trend(Trend("a", key, on="m"), rising, bent)
    assert found.effects == pytest.approx({0: 1.0, 1: 0.8})
    assert trend(Trend("a", key, "falls", on="m"), rising).effects == pytest.approx({0: -1.0})
    assert trend(Trend("a", key, on="m"), *[rising] * 5).outcome == "supported"
    assert trend(Trend("a", key, "falls", on="m"), *[rising] * 5).outcome == "contradicted"
    assert trend(Trend("a", key, on="m", by=0.9), *[bent] * 5).outcome == "contradicted"
    assert trend(Trend("a", key, on="m"), *[rising] * 4).outcome == "too few seeds"


def test_flat_and_single_point_curves_do_not_rise() -> None:
    assert trend(Trend("a", "step", on="m"), [(1, 0.5), (2, 0.5)]).effects == {0: 0.0}
    assert trend(Trend("a", "step", on="m"), [(1, 0.5)]).effects == {}
    assert trend(Trend("a", "step", on="m"), *[[(1, 0.5), (2, 0.5)]] * 5).outcome == "inconclusive"


def test_rank_correlation_with_ties_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = rng.integers(0, 5, 8).tolist(), rng.integers(0, 4, 8).tolist()
        if len(set(x)) > 1 and len(set(y)) > 1:
            ours = trend(Trend("a", "step", on="m"), list(zip(x, y, strict=True))).effects[0]
            assert ours == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_holm_counts_all_claims_of_the_study() -> None:
    edge = np.array([0.05, 0.15, 0.10, 0.02, 0.20])  # p = 0.036 alone
    one = judge([AtLeast("a", 0.0, on="m")], ByHand({"a": seeds(edge)}))
    three = judge([AtLeast("a", 0.0, on="m")] * 3, ByHand({"a": seeds(edge)}))
    assert one[0].outcome == "supported"
    assert [v.outcome for v in three] == ["inconclusive"] * 3
    assert three[0].p_holm == pytest.approx(3 * three[0].p)
    assert "correction" in three[0].meaning


def test_sign_flip_guards_where_the_t_test_alone_would_say_yes() -> None:
    # one seed against four: t 3.2 would be significant, but a sign pattern in sixteen is as extreme
    one_against = np.array([1.0, 1.1, 0.9, 1.0, -0.05])
    found = verdict(AtLeast("a", 0.0, on="m"), a=one_against)
    assert found.p < 0.05 < found.p_sign_flip
    assert (found.outcome, found.meaning) == ("inconclusive", "the t test sees it, but single seeds disagree")


def test_number_of_seeds_that_an_effect_would_need() -> None:
    x = np.array([0.3, -0.1, 0.2, 0.1, 0.0])
    found = verdict(AtLeast("a", 0.0, on="m"), a=x)
    assert str(pairs_needed(float(x.mean() / x.std(ddof=1)))) in needed_note(found)
    assert needed_note(verdict(AtLeast("a", 0.0, on="m"), a=0.3 + SPREAD)) == ""
    assert needed_note(verdict(AtLeast("a", 0.0, on="m"), a=ZERO)) == ""


Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]

# Without an effect a paired difference is as likely positive as negative: arms that do the same are exchangeable.
SYMMETRIC: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t with 3 degrees": lambda rng, shape: rng.standard_t(3, shape),
    "Cauchy": lambda rng, shape: rng.standard_cauchy(shape),
    "difference of two log-normals": lambda rng, shape: rng.lognormal(0, 1, shape) - rng.lognormal(0, 1, shape),
    "difference of two accuracies of 100 items": lambda rng, shape: (
        (rng.binomial(100, 0.9, shape) - rng.binomial(100, 0.9, shape)) / 100
    ),
    "tied: -1, 0 or 1": lambda rng, shape: rng.integers(-1, 2, shape).astype(float),
    "tied: -1 or 1": lambda rng, shape: rng.choice([-1.0, 1.0], shape),
}
RUNS = 800
ERROR = math.sqrt(0.05 * 0.95 / RUNS)  # of a rate of 5 %


def outcomes(claim: Claim, x: np.ndarray) -> dict[Outcome, float]:
    """Share of each outcome over simulated studies of one claim, one row a study."""
    found = [judge([claim], ByHand({"a": seeds(row), "b": seeds(0 * row)}))[0].outcome for row in x]
    return {outcome: found.count(outcome) / len(found) for outcome in set(found)}


@pytest.mark.parametrize("name", SYMMETRIC)
def test_no_effect_is_seldom_taken_for_one(name: str) -> None:
    shares = outcomes(Beats("a", "b", on="m"), SYMMETRIC[name](np.random.default_rng(1), (RUNS, 5)))
    assert shares.get("supported", 0) <= 0.05 + 3 * ERROR
    assert shares.get("contradicted", 0) <= 0.05 + 3 * ERROR


@pytest.mark.parametrize("name", ["normal", "t with 3 degrees", "difference of two log-normals"])
def test_a_difference_at_the_margin_is_seldom_called_within_it(name: str) -> None:
    x = 0.5 + 0.1 * SYMMETRIC[name](np.random.default_rng(2), (RUNS, 6))
    shares = outcomes(Within("a", "b", on="m", width=0.5), x)
    assert shares.get("supported", 0) <= 0.05 + 3 * ERROR
    assert shares.get("contradicted", 0) <= 0.05 + 3 * ERROR


@pytest.mark.parametrize("points", [2, 3, 5, 10])
def test_a_curve_without_trend_is_seldom_called_one(points: int) -> None:
    rng = np.random.default_rng(points)
    runs = RUNS // 2
    claim = Trend("a", "step", on="m")
    found = [
        trend(claim, *[list(enumerate(curve)) for curve in curves]).outcome for curves in rng.random((runs, 5, points))
    ]
    for outcome in ("supported", "contradicted"):
        assert found.count(outcome) / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_a_known_effect_is_found_as_often_as_computed() -> None:
    effect, pairs = 1.2, pairs_needed(1.2)
    x = effect + np.random.default_rng(4).standard_normal((RUNS, pairs))
    computed = stats.nct.sf(stats.t.ppf(0.975, pairs - 1), pairs - 1, effect * math.sqrt(pairs))
    assert computed >= 0.8
    # the sign flip must agree as well, which costs a little power and never gains any
    assert computed - 0.06 <= outcomes(Beats("a", "b", on="m"), x)["supported"] <= computed + 3 * ERROR


def family(claims: int, runs: int, draw: Draw) -> float:
    """Share of studies without any effect in which some claim of several is called supported."""
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(runs):
        rows = {str(index): seeds(row) for index, row in enumerate(draw(rng, (claims, 5)))}
        found = judge([AtLeast(arm, 0.0, on="m") for arm in rows], ByHand(rows))
        wrong += any(v.outcome == "supported" for v in found)
    return wrong / runs


@pytest.mark.parametrize("name", ["normal", "Cauchy", "difference of two accuracies of 100 items"])
def test_ten_claims_without_effect_seldom_yield_one(name: str) -> None:
    runs = 300
    assert family(10, runs, SYMMETRIC[name]) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_ten_tied_claims_without_effect_seldom_yield_one() -> None:
    assert family(10, 300, SYMMETRIC["tied: -1 or 1"]) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


@pytest.mark.xfail(
    reason="no test of a mean over five seeds holds its level for any skew: distances to a threshold that are "
    "exponential about mean 0 are called contradicted in 10 % (5 % is asked), log-normal ones in 15 %"
)
@pytest.mark.parametrize("name", ["exponential", "log-normal"])
def test_skewed_distances_to_a_threshold_are_seldom_taken_for_an_effect(name: str) -> None:
    rng = np.random.default_rng(6)
    x = rng.exponential(1, (RUNS, 5)) - 1 if name == "exponential" else rng.lognormal(0, 1, (RUNS, 5)) - math.exp(0.5)
    assert outcomes(AtLeast("a", 0.0, on="m"), x).get("contradicted", 0) <= 0.05 + 3 * ERROR
