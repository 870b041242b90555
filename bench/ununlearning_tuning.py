"""Chooses the rate at which the study's approximate methods unlearn: by what permitted things keep, at the match.

    python bench/ununlearning_tuning.py [--seeds 100 101] [--rates 1e-4 3e-4 1e-3 3e-3]

Seeds are such as no cell has, and nothing is asked about forbidden things but whether they are forgotten.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from transfuse.cache import cache_folder
from transfuse.studies.unlearning.attribute_world import WorldSettings, make_world
from transfuse.studies.unlearning.ununlearning import Settings
from transfuse.studies.unlearning.ununlearning_arms import TOLERANCE, Unlearning, unlearned_state
from transfuse.study.run import limit_threads
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3])
    arguments = parser.parse_args()
    limit_threads(1)
    settings = Settings()
    names = ("source", "objects", "forbidden", "width", "layers", "common_steps", "own_steps")
    print("seed  method      rate     forgotten  permitted known  (before)  derived known  (before)")
    for seed in arguments.seeds:
        streams = Streams(seed)
        world = make_world(
            WorldSettings(**{name: getattr(settings, name) for name in names}), streams, Stages(cache_folder())
        )
        forget, kept = world.recall(world.concepts.forbidden), world.recall(world.concepts.permitted)
        derived = world.derived(512, streams.split.child("tuning").numpy())
        target = world.share_known(world.model("gold"), forget) + TOLERANCE
        full = world.model("full")
        for method in settings.approximate:
            for rate in arguments.rates:
                how = replace(Unlearning(), rate=rate, steps=settings.unlearning_steps)
                model = world.load(unlearned_state(world, method, how))
                print(
                    f"{seed:<6}{method:<12}{rate:<9g}{world.share_known(model, forget) <= target!s:<11}"
                    f"{world.share_known(model, kept):<17.3f}{world.share_known(full, kept):<10.3f}"
                    f"{world.share_known(model, derived):<15.3f}{world.share_known(full, derived):.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
