"""How the values of the RedGrape study were chosen: balanced validation accuracy, on seeds outside the study.

    python bench/redgrape_tuning.py                     # digits; the best of each block stands in the study's settings
    TRANSFUSE_DATA=... python bench/redgrape_tuning.py --data mnist

Every arm is tuned over the values that it has: FedAvg over the local rate; the focal loss, logit adjustment and
RedGrape over the local rate and their own number; CReFF over the local rate and its two rates; what is done to FedAvg's
models afterwards, over their local rate and its number. RedGrape's ablations and its placebo take RedGrape's values.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from transfuse.config import resolve
from transfuse.studies.federated.redgrape import Settings
from transfuse.studies.federated.redgrape_arms import Arms
from transfuse.studies.federated.redgrape_cohort import LocalRule
from transfuse.studies.federated.redgrape_worlds import (
    Trajectory,
    late,
    make_world,
    recall,
    retrained,
    tau_normalised,
)
from transfuse.study.streams import Streams

SEEDS = (100, 101, 102)
RATES = (0.03, 0.1, 0.3, 1.0)
GRIDS: dict[str, tuple[Sequence[float], ...]] = {
    "rate": (RATES,),
    "focal": (RATES, (1.0, 2.0)),
    "adjusted": (RATES, (0.5, 1.0, 1.5, 2.0)),
    "redgrape": (RATES, (0.03, 0.1, 0.3, 1.0, 3.0)),
    "creff": ((0.3, 1.0), (0.1, 1.0), (0.1, 0.3, 1.0)),  # the two local rates at which FedAvg is best
    "tau_norm": ((0.3, 1.0), (0.25, 0.5, 0.75, 1.0, 1.5)),
    "oracle": ((0.3, 1.0), (0.1, 0.3, 1.0)),
}


def score(arms: Sequence[Arms], make: Callable[[Arms], Trajectory]) -> float:
    """Balanced validation accuracy over the last rounds, mean over the seeds."""
    every = np.arange(len(arms[0].world.order))
    return float(np.mean([late(make(each).validation, every, each.settings.last) for each in arms]))


def afterwards(each: Arms, rate: float, mend: Callable[..., dict[str, np.ndarray]]) -> Trajectory:
    """FedAvg's last models, mended; the oracle trains on one half of the validation set and is judged on the other."""
    validation = each.world.validation
    odd = np.arange(len(validation.labels)) % 2 == 1
    first, second = validation.take(np.flatnonzero(odd)), validation.take(np.flatnonzero(~odd))
    models = each.plain(rate, LocalRule()).models
    return Trajectory(validation=[recall(mend(model, first), second) for model in models])


def runner(name: str, values: tuple[float, ...]) -> Callable[[Arms], Trajectory]:
    """What one point of a grid means."""
    if name == "rate":
        return lambda each: each.plain(values[0], LocalRule())
    if name == "focal":
        return lambda each: each.focal(*values)
    if name == "adjusted":
        return lambda each: each.adjusted(*values)
    if name == "redgrape":
        return lambda each: each.redgrape(replace(each.config(), rate=values[0], balance_rate=values[1]))
    if name == "creff":
        return lambda each: each.creff(*values)
    if name == "tau_norm":
        return lambda each: afterwards(each, values[0], lambda model, _: tau_normalised(model, values[1]))
    rng = np.random.default_rng(0)
    steps = 300
    return lambda each: afterwards(each, values[0], lambda model, data: retrained(model, data, steps, values[1], rng))


def main() -> None:
    """Tune every arm, and print the grids or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=("digits", "mnist", "office"), default="digits")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    settings: Any = resolve(Settings, {})
    task = getattr(settings, arguments.data)
    arms = []
    for seed in SEEDS[: arguments.seeds]:
        streams = Streams(seed)
        world = make_world(arguments.data, task, settings.alphas[0], settings.hidden, streams)
        arms.append(Arms(settings, task, world, streams, {}))
    best: dict[str, tuple[float, ...]] = {}
    for name, grid in GRIDS.items():
        found = {values: score(arms, runner(name, values)) for values in itertools.product(*grid)}
        best[name] = max(found, key=lambda values: found[values])
        if not arguments.json:
            print(f"{name}: best {best[name]}")
            print("  " + "  ".join(f"{values}: {value:.3f}" for values, value in found.items()), flush=True)
    if arguments.json:
        print(json.dumps(best))


if __name__ == "__main__":
    main()
