"""Did the source help the target? One audit for any learner that can be fitted and scored.

The learner with the source is compared, seed by seed, with the same learner without it, with the source's
labels shuffled, and with noise in place of the source. Help that a shuffled or random source gives as well
is regularisation or more steps, not knowledge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from transfuse.audit.finding import AuditReport, Finding, Result
from transfuse.errors import UserError
from transfuse.statistics import MIN_PAIRS, p_greater, sign_flip, sign_patterns, t_interval

FitScore = Callable[[tuple[np.ndarray, np.ndarray] | None, int], float]


def transfer_audit(
    fit_score: FitScore,
    source: tuple[np.ndarray, np.ndarray],
    *,
    seeds: Sequence[int] = tuple(range(10)),
    minimum: float = 0.0,
    higher_is_better: bool = True,
    subject: str = "transfer",
) -> AuditReport:
    """Compare fitting with `source` against no source, shuffled labels and noise.

    Args:
        fit_score: called as ``fit_score(source, seed)``, where source is ``(X, y)`` or None; it fits on the
            target with that source and returns the score on held-out target data. All randomness other than
            the source must follow from the seed.
        source: features ``(n, ...)`` and labels ``(n, ...)``.
        seeds: distinct seeds, at least five; each gives one paired comparison.
        minimum: the gain over a placebo below which transfer is not worth having, in the score's unit.
        higher_is_better: the direction of the score.
        subject: the name to print.

    Returns:
        Findings: the gain over no source, over shuffled labels and over noise, and whether transfer hurt.
        The false-alarm rate is that of the null comparison "shuffled source against noise source" by the
        same rule, over random halves of the seeds.

    Raises:
        UserError: too few or repeated seeds, or a source whose lengths disagree.
    """
    x, y = (np.asarray(part) for part in source)
    _check(x, y, seeds)
    sign = 1.0 if higher_is_better else -1.0
    arms: dict[str, list[float]] = {"source": [], "no source": [], "shuffled labels": [], "noise": []}
    for seed in seeds:
        rng = np.random.default_rng([seed, 0x7F05])
        arms["source"].append(sign * float(fit_score((x, y), seed)))
        arms["no source"].append(sign * float(fit_score(None, seed)))
        arms["shuffled labels"].append(sign * float(fit_score((x, rng.permutation(y)), seed)))
        arms["noise"].append(sign * float(fit_score((_noise_like(x, rng), y), seed)))
        for name, values in arms.items():
            if not math.isfinite(values[-1]):
                raise UserError(f"fit_score returned {values[-1]} with {name}, seed {seed}", "a finite score")
    scores = {name: np.array(values) for name, values in arms.items()}
    findings = [_compare(scores["source"] - scores[other], other, minimum) for other in list(scores)[1:]]
    findings.append(_placebo(scores["shuffled labels"] - scores["no source"]))
    rate = _null_rate(scores["shuffled labels"] - scores["noise"])
    return AuditReport(
        subject=subject,
        method="transfer_audit",
        findings=tuple(findings),
        false_alarm_rate=rate,
        calibration="share of sign patterns of 'shuffled labels against noise' that the same rule would flag",
        environment={
            "seeds": list(seeds),
            "mean scores": {name: sign * float(values.mean()) for name, values in scores.items()},
        },
    )


def _check(x: np.ndarray, y: np.ndarray, seeds: Sequence[int]) -> None:
    if x.ndim == 0 or y.ndim == 0 or len(x) == 0:
        raise UserError("the source is empty, or not made of arrays", "features (n, ...) and labels (n, ...)")
    if len(x) != len(y):
        raise UserError(f"the source has {len(x)} rows of features and {len(y)} labels", "as many of each")
    if len(set(seeds)) < MIN_PAIRS or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds {list(seeds)}", f"at least {MIN_PAIRS} distinct seeds")


def _noise_like(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise with each feature's mean and spread: same scale, no structure."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    noise = flat.mean(0) + flat.std(0) * rng.standard_normal(flat.shape)
    return noise.reshape(x.shape).astype(x.dtype if np.issubdtype(x.dtype, np.floating) else np.float64)


def _compare(differences: np.ndarray, other: str, minimum: float) -> Finding:
    estimate = t_interval(differences)
    hurts = _significant(-differences)
    helps = _significant(differences - minimum)
    verdict: Result = "ok" if helps else "finding"
    if hurts:
        meaning, remedy = f"the source is worse than {other}: negative transfer", "leave this source out"
    elif helps:
        meaning, remedy = f"the source is better than {other}", ""
    else:
        meaning = f"no gain over {other} that the seeds could show"
        remedy = "do not credit the source; try more seeds or another source"
    return Finding(
        f"gain over {other}", estimate.mean, (estimate.low, estimate.high), minimum, verdict, meaning, remedy
    )


def _placebo(differences: np.ndarray) -> Finding:
    estimate = t_interval(differences)
    moved = _significant(differences) or _significant(-differences)
    meaning = (
        "a source with shuffled labels moves the score too: part of the gain is not knowledge"
        if moved
        else "a source with shuffled labels moves nothing, as it should"
    )
    interval = (estimate.low, estimate.high)
    return Finding("placebo: shuffled labels over no source", estimate.mean, interval, None, "info", meaning)


def _significant(differences: np.ndarray) -> bool:
    return p_greater(differences) < 0.025 and sign_flip(differences) <= 0.05


def _null_rate(differences: np.ndarray) -> float:
    """How often the rule flags a difference whose signs are random: all sign patterns, or 2000 of many."""
    patterns = sign_patterns(len(differences))
    if len(patterns) > 2000:
        patterns = np.random.default_rng(0).choice(patterns, 2000, replace=False)
    return float(np.mean([_significant(pattern * differences) for pattern in patterns]))
