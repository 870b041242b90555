"""How often a verdict is wrong: simulated studies with a known truth, nominal rate against observed.

python bench/calibration.py [--json] [--runs 2000]     # with --json > results/calibration.json, then make docs

Each row is one kind of claim on one kind of noise. A false verdict may come in at most 5 % of studies of one claim,
and in at most 5 % of studies of ten claims (Holm). The standard error of an observed rate stands beside it. Skewed
distances to a threshold are the known weakness: no test of a mean over five seeds holds its level for any skew.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from transfuse.statistics import pairs_needed
from transfuse.study import AtLeast, Beats, Trend, Within
from transfuse.study.claims import Claim, judge

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
NOISE: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy tails (Cauchy)": lambda rng, shape: rng.standard_cauchy(shape),
    "difference of log-normals": lambda rng, shape: rng.lognormal(0, 1, shape) - rng.lognormal(0, 1, shape),
    "tied (-1, 0, 1)": lambda rng, shape: rng.integers(-1, 2, shape).astype(float),
}
SKEWED: dict[str, Draw] = {
    "exponential": lambda rng, shape: rng.exponential(1, shape) - 1,
    "log-normal": lambda rng, shape: rng.lognormal(0, 1, shape) - math.exp(0.5),
}


class Simulated:
    """One simulated study: values by arm and seed, curves by seed."""

    def __init__(self, arms: dict[str, np.ndarray], curves: np.ndarray | None = None) -> None:
        self.arms, self.curves = arms, curves

    def by_seed(self, arm: str, metric: str, where: object) -> dict[int, float]:
        return dict(enumerate(self.arms[arm]))

    def along(self, arm: str, metric: str, where: object, key: str) -> dict[int, list[tuple[float, float]]]:
        assert self.curves is not None
        return {seed: list(enumerate(curve)) for seed, curve in enumerate(self.curves)}

    def better(self, metric: str) -> str:
        return "higher"


def rates(claim: Claim, rows: np.ndarray) -> tuple[float, float]:
    """Shares of studies in which the claim came out supported, and contradicted."""
    zeros = np.zeros(rows.shape[1])
    found = [judge([claim], Simulated({"a": row, "b": zeros}))[0].outcome for row in rows]  # type: ignore[arg-type]
    return found.count("supported") / len(found), found.count("contradicted") / len(found)


def single_claims(runs: int) -> list[dict[str, object]]:
    rows = []
    for name, draw in NOISE.items():
        shares = rates(Beats("a", "b", on="m"), draw(np.random.default_rng(1), (runs, 5)))
        rows.append(_row("beats, no effect", name, 5, shares, runs))
        x = 0.5 + 0.1 * draw(np.random.default_rng(2), (runs, 6))
        rows.append(_row("within, at the margin", name, 6, rates(Within("a", "b", on="m", width=0.5), x), runs))
    for name, draw in SKEWED.items():
        shares = rates(AtLeast("a", 0.0, on="m"), draw(np.random.default_rng(3), (runs, 5)))
        rows.append(_row("at least, at the threshold", name, 5, shares, runs))
    for points in (3, 5, 10):
        curves = np.random.default_rng(points).random((runs, 5, points))
        claim = Trend("a", "step", on="m")
        found = [judge([claim], Simulated({}, curve))[0].outcome for curve in curves]  # type: ignore[arg-type]
        shares = (found.count("supported") / runs, found.count("contradicted") / runs)
        rows.append(_row("trend, no trend", f"{points} points", 5, shares, runs))
    return rows


def ten_claims(runs: int) -> list[dict[str, object]]:
    rows = []
    for name, draw in NOISE.items():
        rng, wrong = np.random.default_rng(5), [0, 0]
        for _ in range(runs):
            arms = {str(index): row for index, row in enumerate(draw(rng, (10, 5)))}
            found = {v.outcome for v in judge([AtLeast(arm, 0.0, on="m") for arm in arms], Simulated(arms))}  # type: ignore[arg-type]
            wrong[0] += "supported" in found
            wrong[1] += "contradicted" in found
        rows.append(_row("any of ten claims, no effect", name, 5, (wrong[0] / runs, wrong[1] / runs), runs))
    return rows


def power(runs: int) -> list[dict[str, object]]:
    rows = []
    for effect in (0.8, 1.2, 2.0):
        pairs = pairs_needed(effect)
        x = effect + np.random.default_rng(4).standard_normal((runs, pairs))
        nominal = stats.nct.sf(stats.t.ppf(0.975, pairs - 1), pairs - 1, effect * math.sqrt(pairs))
        row = _row(f"beats, effect of {effect} deviations", "normal", pairs, rates(Beats("a", "b", on="m"), x), runs)
        rows.append({**row, "nominal": f"{nominal:.1%}"})
    return rows


def _row(claim: str, noise: str, seeds: int, shares: tuple[float, float], runs: int) -> dict[str, object]:
    error = max(math.sqrt(share * (1 - share) / runs) for share in shares)
    supported, contradicted = (f"{share:.1%}" for share in shares)
    return {"claim": claim, "noise": noise, "seeds": seeds, "nominal": "at most 5 %", "supported": supported,
            "contradicted": contradicted, "error": f"{error:.1%}"}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=2000)
    arguments = parser.parse_args()
    rows = [*single_claims(arguments.runs), *ten_claims(arguments.runs), *power(arguments.runs)]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in (dict(zip(rows[0], rows[0], strict=True)), *rows):
        print(
            "  ".join(
                f"{value!s:<{width}}" for value, width in zip(row.values(), (36, 27, 6, 12, 10, 13, 6), strict=True)
            )
        )


if __name__ == "__main__":
    main()
