"""What a study is: arms, controls, metrics, claims, settings, and a function that yields measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from transfuse.study.claims import Claim

if TYPE_CHECKING:
    import numpy as np

    from transfuse.study.stage import Stages
    from transfuse.study.streams import Streams

SCALES = ("quick", "small", "public", "full")
Condition = str | int | float | bool


@dataclass(frozen=True)
class Metric:
    """A measured quantity.

    Attributes:
        better: which way is better; "neither" for diagnostics such as a ratio that should be one.
        unit: "1" for shares, "s", "MB", "rounds", ...
        meaning: what it is, in plain words.
        per_sample: whether values are means over items whose values are kept, so that items can be resampled.
    """

    better: Literal["higher", "lower", "neither"]
    unit: str = "1"
    meaning: str = ""
    per_sample: bool = False


@dataclass(frozen=True)
class Measurement:
    """One number of one arm.

    Attributes:
        arm: who was measured.
        metric: what was measured.
        value: a finite number.
        where: the conditions it was measured under, for example ``{"shift": "background"}``.
        step: position on a learning curve; claims other than those along "step" leave such points out.
        per_sample: values of the single items, in an order that all arms of the seed share.
    """

    arm: str
    metric: str
    value: float
    where: Mapping[str, Condition] = field(default_factory=dict)
    step: float | None = None
    per_sample: np.ndarray | None = None


@dataclass(frozen=True)
class Study:
    """A declared experiment. The module that holds it also holds ``run(settings, seed, streams, stage)``.

    Attributes:
        id: the method's id.
        question: what the study asks, in one sentence.
        arms: everything that is measured, the controls among them.
        controls: the arms that must show no effect, or that the method must beat to count (placebo, no transfer).
        metrics: by name.
        conditions: the values that a measurement's `where` may take.
        claims: declared before running, as data.
        settings: a frozen dataclass whose defaults are the scale "small".
        scales: what the other scales change in the settings.
        seeds: how many seeds unless the user says otherwise, by scale or for all scales.
        data: the data sets that a scale needs in the data folder.
        seconds: expected time of one cell by scale, for the plan; the stored cells correct it.
        maps: metrics that the report draws as a map of arms by a condition, with one panel for each value of another:
            metric -> (condition of the columns, condition of the panels).
        notes: what a reader of the verdicts must know (choice of encoder, likely reason of a contradiction, ...).
    """

    id: str
    question: str
    arms: tuple[str, ...]
    controls: tuple[str, ...]
    metrics: Mapping[str, Metric]
    claims: tuple[Claim, ...]
    settings: type
    conditions: Mapping[str, tuple[Condition, ...]] = field(default_factory=dict)
    scales: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: int | Mapping[str, int] = 5
    data: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError(f"study {self.id!r}: " + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if not self.controls:
            yield "a study needs a control"
        yield from (f"control {arm!r} is not an arm" for arm in self.controls if arm not in self.arms)
        yield from (f"unknown scale {scale!r}" for scale in self.scales if scale not in SCALES)
        for claim in self.claims:
            yield from (f"claim names unknown arm {arm!r}" for arm in claim.arms if arm not in self.arms)
            if claim.on not in self.metrics:
                yield f"claim names unknown metric {claim.on!r}"
            for key, value in claim.where.items():
                if value not in self.conditions.get(key, ()):
                    yield f"claim names unknown condition {key}={value!r}"
            if claim.along not in (None, "step", *self.conditions):
                yield f"claim names unknown condition {claim.along!r}"

        for metric, keys in self.maps.items():
            if metric not in self.metrics:
                yield f"map of unknown metric {metric!r}"
            yield from (f"map along unknown condition {key!r}" for key in keys if key not in self.conditions)

    def seed_count(self, scale: str) -> int:
        """How many seeds the scale has by default; quick has one, being there for the plumbing."""
        if isinstance(self.seeds, int):
            return 1 if scale == "quick" else self.seeds
        return self.seeds.get(scale, 1 if scale == "quick" else 5)


RunFunction = Callable[[Any, int, "Streams", "Stages"], Iterator[Measurement]]
