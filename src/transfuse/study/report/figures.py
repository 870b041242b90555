"""How numbers are written: few digits, a sign where direction matters, never NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transfuse.statistics import Estimate

_NOTHING = 1e-12  # what sums of floating-point numbers leave of a zero


def number(value: float, digits: int = 4) -> str:
    """Four significant digits, thousands apart, no negative zero."""
    if abs(value) < _NOTHING:
        return "0"
    if 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def signed(value: float) -> str:
    """An effect: three significant digits, and the sign that says which way."""
    return f"+{number(value, 3)}" if value > 0 else number(value, 3)


def effect(estimate: Estimate) -> str:
    """The mean of an estimate, with as many decimals as its interval deserves."""
    return _rounded(estimate.mean, _decimals((estimate.high - estimate.low) / 2))


def interval(estimate: Estimate) -> str:
    """The 95 % interval, or why there is none."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return "no interval from one seed"
    decimals = _decimals((estimate.high - estimate.low) / 2)
    return f"{_rounded(estimate.low, decimals)} to {_rounded(estimate.high, decimals)}"


def _decimals(uncertainty: float) -> int | None:
    """Decimals that show two digits of an uncertainty: more would be noise; None where nothing is uncertain."""
    if not _NOTHING < uncertainty < math.inf:
        return None
    return max(0, 1 - math.floor(math.log10(uncertainty)))


def _rounded(value: float, decimals: int | None) -> str:
    """With its sign, which a bound keeps even where all digits that are shown are zero."""
    if decimals is None or decimals > 9 or abs(value) < _NOTHING:
        return signed(value)
    return f"{value:+,.{decimals}f}"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; the deviation of one value is 0."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def with_deviation(values: list[float]) -> str:
    """``mean ± sd`` over seeds, with the decimals of the deviation; the mean alone for a single seed."""
    mean, deviation = spread(values)
    if len(values) < 2:
        return number(mean)
    decimals = _decimals(deviation)
    if decimals is None or decimals > 9:
        return f"{number(mean)} ± {number(float(f'{deviation:.2g}'))}"
    return f"{0.0 if abs(mean) < _NOTHING else mean:,.{decimals}f} ± {deviation:,.{decimals}f}"


def duration(seconds: float) -> str:
    """Seconds below two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def conditions(where: Mapping[str, Any]) -> str:
    """``shift background, noise 0.1``; empty for none."""
    return ", ".join(f"{key} {value}" for key, value in where.items())


def seed_list(seeds: list[int]) -> str:
    """Runs of seeds written short: ``0-4, 7``."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
