"""How step sizes of the Fed-MNMT study are chosen: by the clients' development loss, on seeds that it does not use.

    python bench/fed_mnmt_tuning.py [--scale small] [--seeds 100 101]

One average over all clients (fed) chooses the rate and the initialisation that every clustered arm uses too; local,
pooled and whole-model training choose rates of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np
import torch

from transfuse.cache import cache_folder
from transfuse.config import resolve
from transfuse.studies.federated.fed_mnmt import STUDY
from transfuse.studies.federated.fed_mnmt_world import federate, make_world
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams

GRID = {
    "fed": ({"clusters": "all"}, (1e-3, 3e-3, 1e-2)),
    "local": ({"clusters": "none"}, (1e-3, 3e-3, 1e-2)),
    "pooled": ({"clusters": "all", "pooled": True}, (1e-3, 3e-3, 1e-2)),
    "full": ({"clusters": "all", "keep": None}, (3e-4, 1e-3, 3e-3)),
}


def main() -> None:
    """Print the mean development loss of every candidate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", default="small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings: Any = resolve(STUDY.settings, STUDY.scales.get(arguments.scale, {}))
    worlds = [make_world(settings, Streams(seed), Stages(cache_folder())) for seed in arguments.seeds]
    for arm, (how, rates) in GRID.items():
        for init in ("linear", "zero") if arm != "full" else ("linear",):
            for rate in rates:
                losses = []
                for world in worlds:
                    outcome = federate(
                        dataclasses.replace(world, settings=dataclasses.replace(settings, init=init)),
                        **{"rate": rate, **how},
                    )
                    losses.append(outcome.strategy.best_value)
                print(f"{arm:7s} init {init:6s} rate {rate:g}: {np.mean(losses):.4f}", flush=True)


if __name__ == "__main__":
    main()
