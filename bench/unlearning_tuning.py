"""How the rates of the unlearning methods on FactWorld were chosen, on seeds outside the studies.

    python bench/unlearning_tuning.py                     # the best of each stands in unlearned_models.TUNED
    TRANSFUSE_DATA=... python bench/unlearning_tuning.py --source json
    python bench/unlearning_tuning.py npo simnpo

Every method has the same grid of rates and at most 60 steps; a grid whose best point lies at its end is extended once.
The best rate is the one at which the method reaches matched forgetting in most seeds and, among these, leaves most
questions to keep answered at the match; where it never does, the one after which fewest questions to forget are
answered. These questions are in the wordings of training, so that no score of a study is looked at.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from transfuse.cache import cache_folder
from transfuse.studies.unlearning.fact_pretraining import WorldSettings
from transfuse.studies.unlearning.fact_world import FactWorld, make_world
from transfuse.studies.unlearning.unlearned_models import Matching, questions, run_method, target, tuned
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams

SEEDS = (100, 101)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # below the first none reaches the match in its steps
FURTHER = 3e-2  # for those that are best at the end of the grid, or never reach the match
METHODS = (
    "gradient_ascent", "grad_diff", "grad_kl", "npo", "npo_alone", "simnpo", "idk_dpo", "rmu", "eul", "kga",
    "task_vector", "adapter_negation", "reinforced_contrast",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """Of one rate in one seed: step of the match (0 if there is none), what is kept there, what is left to forget."""

    step: int
    kept: float
    left: float


def at_match(world: FactWorld, method: str, rate: float) -> Point:
    """Unlearn until the match."""
    kept: list[float] = []
    encoded = questions(world, world.retain)

    class Watch(Matching):
        def __call__(self, step: int, model: torch.nn.Module) -> bool:
            found = super().__call__(step, model)
            if self.step == step:
                kept.append(world.share_known(model, encoded))
            return found

    watch = Watch(world, target(world), to_end=False)
    last = run_method(world, method, {**tuned(method), "rate": rate}, watch)
    return Point(watch.step, kept[0] if kept else 0.0, world.share_known(last, watch.asked))


def order(points: Sequence[Point]) -> tuple[float, float, float]:
    """Larger is better."""
    matches = sum(point.step > 0 for point in points)
    return matches, float(np.mean([p.kept for p in points])), -float(np.mean([p.left for p in points]))


def main() -> None:
    """Tune every method, and print the grid or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--source", choices=("geonames", "json"), default="geonames")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stage = Stages(cache_folder())
    settings = WorldSettings(source=arguments.source)
    worlds = [make_world(settings, Streams(seed), stage) for seed in SEEDS]
    best: dict[str, float] = {}
    for method in arguments.methods:
        grid: dict[float, list[Point]] = {}
        for rate in (*RATES, FURTHER):
            if rate == FURTHER and max(grid, key=lambda r: order(grid[r])) != RATES[-1]:
                break
            grid[rate] = [at_match(world, method, rate) for world in worlds]
        best[method] = max(grid, key=lambda rate: order(grid[rate]))
        if not arguments.json:
            print(f"{method}: best {best[method]:g}")
            for rate, points in grid.items():
                shown = "  ".join(f"step {p.step:2} keeps {p.kept:.3f} left {p.left:.2f}" for p in points)
                print(f"  {rate:g}: {shown}", flush=True)
    if arguments.json:
        print(json.dumps(best))


if __name__ == "__main__":
    main()
