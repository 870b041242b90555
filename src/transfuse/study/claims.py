"""Claims, declared as data before a study runs, and the verdicts that measurements give them.

How a verdict is reached. Each claim is reduced to one number a seed (a paired difference, a distance to a
threshold, a rank correlation). *Supported* and *contradicted* need three things: at least `MIN_PAIRS` seeds,
a t test at the two-sided 5 % level after Holm's correction over the claims of the study, and an exact
sign-flip test that agrees at 5 %. The last guards against skewed or heavy-tailed differences, on which a t
test with few seeds cannot be trusted. All else is *inconclusive*, or *too few seeds*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

    from transfuse.statistics import Estimate

# NumPy and SciPy are imported by the functions that judge: `transfuse show` reads claims without them.

Curve = list[tuple[Any, float]]
Outcome = Literal["supported", "contradicted", "inconclusive", "too few seeds"]
OUTCOMES: tuple[Outcome, ...] = ("supported", "contradicted", "inconclusive", "too few seeds")


class Values(Protocol):
    """What a claim reads: per seed, the mean over the measurements that match."""

    def by_seed(self, arm: str, metric: str, where: Mapping[str, Any]) -> dict[int, float]: ...

    def along(
        self, arm: str, metric: str, where: Mapping[str, Any], key: str
    ) -> dict[int, list[tuple[Any, float]]]: ...

    def better(self, metric: str) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What all claims share.

    Attributes:
        on: the metric.
        where: the conditions that count; measurements that match several are averaged within the seed.
        paper: what the paper says, in our words, with the place.
        published: the paper's own figure, shown beside ours and never used for the verdict.
        scales: the scales at which the claim is tested.
        control: whether it checks the study itself (a placebo, a negative control) rather than the paper.
        likely: the likely reason, should the verdict go against the paper.
    """

    on: str
    where: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    published: str = ""
    scales: tuple[str, ...] = ("small", "public", "full")
    control: bool = False
    likely: str = ""

    @property
    def arms(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def along(self) -> str | None:
        return None

    def text(self) -> str:
        raise NotImplementedError

    def effects(self, values: Values) -> dict[int, float]:
        """One number a seed; positive is in favour, beyond `margin` is what the claim says."""
        raise NotImplementedError

    @property
    def margin(self) -> float:
        return 0.0

    def _where_text(self) -> str:
        return "".join(f", {key} {value}" for key, value in self.where.items())


@dataclass(frozen=True)
class Beats(Claim):
    """`arm` is better than `other` by more than `by`, in the direction in which the metric is better."""

    arm: str
    other: str
    by: float = field(default=0.0, kw_only=True)

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm, self.other)

    @property
    def margin(self) -> float:
        return self.by

    def text(self) -> str:
        lead = f" by more than {self.by:g}" if self.by else ""
        return f"{self.arm} beats {self.other}{lead} on {self.on}{self._where_text()}"

    def effects(self, values: Values) -> dict[int, float]:
        sign = -1.0 if values.better(self.on) == "lower" else 1.0
        return {seed: sign * diff for seed, diff in _paired(self, values, self.arm, self.other).items()}


@dataclass(frozen=True)
class Within(Claim):
    """`arm` differs from `other` (an arm or a number) by less than `margin`: two one-sided tests."""

    arm: str
    other: str | float
    width: float = field(kw_only=True)

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm, self.other) if isinstance(self.other, str) else (self.arm,)

    @property
    def margin(self) -> float:
        return self.width

    def text(self) -> str:
        other = self.other if isinstance(self.other, str) else f"{self.other:g}"
        return f"{self.arm} is within {self.width:g} of {other} on {self.on}{self._where_text()}"

    def effects(self, values: Values) -> dict[int, float]:
        if isinstance(self.other, str):
            return _paired(self, values, self.arm, self.other)
        return {seed: v - self.other for seed, v in values.by_seed(self.arm, self.on, self.where).items()}


@dataclass(frozen=True)
class Trend(Claim):
    """The metric of `arm` rises (or falls) along a condition: Spearman's rho a seed, above `by`."""

    arm: str
    key: str
    direction: Literal["rises", "falls"] = "rises"
    by: float = field(default=0.0, kw_only=True)

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,)

    @property
    def along(self) -> str | None:
        return self.key

    @property
    def margin(self) -> float:
        return self.by

    def text(self) -> str:
        return f"{self.on} of {self.arm} {self.direction} along {self.key}{self._where_text()}"

    def effects(self, values: Values) -> dict[int, float]:
        sign = 1.0 if self.direction == "rises" else -1.0
        curves = values.along(self.arm, self.on, self.where, self.key)
        return {seed: sign * _spearman(curve) for seed, curve in curves.items() if len(curve) > 1}


@dataclass(frozen=True)
class AtLeast(Claim):
    """The metric of one arm lies above a threshold."""

    arm: str
    threshold: float

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,)

    def text(self) -> str:
        return f"{self.on} of {self.arm} is at least {self.threshold:g}{self._where_text()}"

    def effects(self, values: Values) -> dict[int, float]:
        return {seed: v - self.threshold for seed, v in values.by_seed(self.arm, self.on, self.where).items()}


@dataclass(frozen=True)
class AtMost(AtLeast):
    """The metric of one arm lies below a threshold."""

    def text(self) -> str:
        return f"{self.on} of {self.arm} is at most {self.threshold:g}{self._where_text()}"

    def effects(self, values: Values) -> dict[int, float]:
        return {seed: -distance for seed, distance in super().effects(values).items()}


def _paired(claim: Claim, values: Values, arm: str, other: str) -> dict[int, float]:
    first = values.by_seed(arm, claim.on, claim.where)
    second = values.by_seed(other, claim.on, claim.where)
    return {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}


def _spearman(curve: Sequence[tuple[Any, float]]) -> float:
    x, y = zip(*curve, strict=True)
    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0  # a flat curve does not rise
    a, b = _ranks(x), _ranks(y)
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def _ranks(values: Sequence[Any]) -> np.ndarray:
    """Ranks about their mean; ties share the middle one."""
    import numpy as np

    _, place, count = np.unique(np.array(values), return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count - 1) / 2
    return middle[place] - (len(values) + 1) / 2


@dataclass(frozen=True)
class Verdict:
    """What the measurements say about one claim.

    Attributes:
        claim: the claim.
        outcome: supported, contradicted, inconclusive or too few seeds.
        estimate: mean effect, 95 % interval (uncorrected) and number of pairs; None without any pair.
        effects: the effect of each seed.
        p: two-sided p value of the deciding t test, before correction.
        p_holm: after Holm's correction over the claims of the study.
        p_sign_flip: one-sided exact sign-flip p value, in the direction of the effect.
        meaning: the verdict in plain words.
        tested: how many claims were corrected together.
    """

    claim: Claim
    outcome: Outcome
    estimate: Estimate | None
    effects: Mapping[int, float]
    p: float
    p_holm: float
    p_sign_flip: float
    meaning: str
    tested: int = 1


def judge(claims: Sequence[Claim], values: Values) -> list[Verdict]:
    """Verdicts of all claims of one study at one scale, corrected together by Holm's procedure."""
    import numpy as np

    from transfuse.statistics import holm

    effects = [claim.effects(values) for claim in claims]
    tests = [_test(claim, np.array(list(e.values()))) for claim, e in zip(claims, effects, strict=True)]
    adjusted = holm([p for p, _, _ in tests])
    return [
        replace(_verdict(claim, e, test, p_holm), tested=len(claims))
        for claim, e, test, p_holm in zip(claims, effects, tests, adjusted, strict=True)
    ]


def _test(claim: Claim, x: np.ndarray) -> tuple[float, float, bool]:
    """Two-sided p of the t test, one-sided p of the sign flip, and whether the effect is in favour.

    Values that all agree leave the t test without a spread. Their agreement is then all the evidence there is, so the
    sign flip's p, which is at least 2**-n, stands in for it; Holm's procedure can correct that, but not a zero.
    """
    from transfuse.statistics import MIN_PAIRS, p_equivalent, p_greater, sign_flip, standard_error

    if len(x) < MIN_PAIRS:
        return 1.0, 1.0, False
    if isinstance(claim, Within):
        inside = 2 * p_equivalent(x, claim.margin)
        outside = 2 * min(p_greater(x, claim.margin), p_greater(-x, claim.margin))
        if inside <= outside:
            return min(1.0, inside), max(sign_flip(x, -claim.margin), sign_flip(-x, -claim.margin)), True
        return min(1.0, outside), min(sign_flip(x, claim.margin), sign_flip(-x, claim.margin)), False
    in_favour = float(x.mean()) >= claim.margin
    direction = 1.0 if in_favour else -1.0
    flip = sign_flip(direction * x, direction * claim.margin)
    p = 2 * p_greater(direction * x, direction * claim.margin)
    return min(1.0, flip if standard_error(x) == 0.0 else p), flip, in_favour


def _verdict(claim: Claim, effects: dict[int, float], test: tuple[float, float, bool], p_holm: float) -> Verdict:
    from transfuse.statistics import ALPHA, MIN_PAIRS, t_interval

    p, p_flip, in_favour = test
    estimate = t_interval(list(effects.values())) if effects else None
    if estimate and isinstance(claim, Trend) and estimate.pairs > 1:  # a rank correlation lies within 1
        estimate = replace(estimate, low=max(-1.0, estimate.low), high=min(1.0, estimate.high))
    outcome: Outcome
    if len(effects) < MIN_PAIRS:
        outcome = "too few seeds"
        meaning = f"{len(effects)} seeds; a verdict needs at least {MIN_PAIRS}"
    elif p_holm < ALPHA and p_flip <= ALPHA:
        outcome = "supported" if in_favour else "contradicted"
        meaning = _plain(claim, outcome)
    else:
        outcome = "inconclusive"
        meaning = _why_inconclusive(p, p_holm, p_flip)
    return Verdict(claim, outcome, estimate, effects, p, p_holm, p_flip, meaning)


def _plain(claim: Claim, outcome: Outcome) -> str:
    if outcome == "supported":
        return "the data agree, beyond what seeds alone would do"
    if isinstance(claim, Beats) and claim.by > 0:
        return f"the advantage is reliably smaller than {claim.by:g}, or is none"
    if isinstance(claim, Within):
        return "the difference is reliably larger than the margin"
    return "the data point the other way, beyond what seeds alone would do"


def _why_inconclusive(p: float, p_holm: float, p_flip: float) -> str:
    from transfuse.statistics import ALPHA

    if p >= ALPHA:
        return "the seeds differ too much, or the effect is too small, to say"
    if p_holm >= ALPHA:
        return "visible alone, not after correction for the number of claims"
    return "the t test sees it, but single seeds disagree" if p_flip > ALPHA else "undecided"


def needed_note(verdict: Verdict) -> str:
    """How many seeds the observed effect would need, for an inconclusive claim; empty where none can say.

    At the level that Holm's procedure asks of the first of the claims, so that what is said is enough for any of them.
    """
    import numpy as np

    from transfuse.statistics import ALPHA, pairs_needed

    if verdict.outcome != "inconclusive" or len(verdict.effects) < 2 or isinstance(verdict.claim, Within):
        return ""
    x = np.array(list(verdict.effects.values())) - verdict.claim.margin
    spread = float(x.std(ddof=1))
    if spread == 0.0 or math.isclose(float(x.mean()), 0.0):
        return ""
    needed = pairs_needed(abs(float(x.mean())) / spread, alpha=ALPHA / verdict.tested)
    return f"about {needed} seeds would be needed for an effect of this size" if needed < 1000 else ""
