"""Does centring help? The study of the tests, with switches for what can go wrong with a worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

from transfuse.study import Beats, Measurement, Metric, Study, Within


@dataclass(frozen=True)
class Settings:
    """Scale small."""

    samples: int = 40  # enough for a stable mean
    spread: float = 1.0  # standard deviation of the sites


STUDY = Study(
    id="mean_shift",
    question="Does centring bring two sites together?",
    arms=("centred", "raw", "placebo"),
    controls=("placebo",),
    metrics={"gap": Metric("lower", "mm", per_sample=True)},
    claims=(
        Beats("centred", "raw", on="gap", by=0.1, paper="Table 1", published="0.4"),
        Within("placebo", "raw", on="gap", width=0.5, control=True),
    ),
    settings=Settings,
    scales={"quick": {"samples": 5}, "public": {"samples": 50}},
    seconds={"small": 0.1},
    data={"public": ("clinc150",)},
    notes=("A toy.",),
)


def run(settings: Settings, seed: int, streams, stage) -> Iterator[Measurement]:
    os.write(2, b"a host that chatters\n")
    if os.environ.get("TOYPLUG_KILL") == str(seed):
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("TOYPLUG_FAIL") == str(seed):
        raise RuntimeError("the toy is broken")
    noise = streams.noise.numpy().normal(0.0, settings.spread, settings.samples)
    base = stage("base", lambda: {"shift": noise * 0 + 2.0}, inputs={"samples": settings.samples, "seed": seed})[
        "shift"
    ]
    time.sleep(float(os.environ.get("TOYPLUG_SLEEP", "0")))
    for arm, offset in (("centred", 0.0), ("raw", base), ("placebo", base + 0.01 * noise)):
        values = abs(noise + offset)
        yield Measurement(arm, "gap", float(values.mean()), per_sample=values)
    yield Measurement("raw", "gap", 3.0, step=1)
