"""How the rates of the unlearning methods on FactWorld were chosen, on seeds outside the studies.

    python bench/unlearning_tuning.py                     # the best of each stands in unlearned_models.TUNED
    TRANSFUSE_DATA=... python bench/unlearning_tuning.py --source json
    python bench/unlearning_tuning.py npo simnpo

Every method has the same grid of rates and at most 60 steps. The best rate is the one at which it reaches matched
forgetting in most seeds and, among these, leaves most questions to keep answered at the match. These questions are in
the wordings of training, so that no score of a study is looked at.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch

from transfuse.cache import cache_folder
from transfuse.studies.unlearning.fact_pretraining import WorldSettings
from transfuse.studies.unlearning.fact_world import FactWorld, make_world
from transfuse.studies.unlearning.unlearned_models import Matching, questions, run_method, target
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams

SEEDS = (100, 101)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # below the first none reaches the match in its steps
METHODS = (
    "gradient_ascent", "grad_diff", "grad_kl", "npo", "simnpo", "idk_dpo", "rmu", "eul", "kga", "task_vector",
    "adapter_negation", "reinforced_contrast",
)  # fmt: skip


def at_match(world: FactWorld, method: str, rate: float) -> tuple[int, float]:
    """The step of the match, 0 if there is none, and the share of questions to keep that is answered there."""
    kept: list[float] = []
    encoded = questions(world, world.retain)

    class Watch(Matching):
        def __call__(self, step: int, model: torch.nn.Module) -> bool:
            found = super().__call__(step, model)
            if self.step == step:
                kept.append(world.share_known(model, encoded))
            return found

    watch = Watch(world, target(world), to_end=False)
    run_method(world, method, {"rate": rate}, watch)
    return watch.step, kept[0] if kept else 0.0


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
    best: dict[str, Any] = {}
    for method in arguments.methods:
        grid = {rate: [at_match(world, method, rate) for world in worlds] for rate in RATES}
        scores = {
            rate: (sum(step > 0 for step, _ in found), float(np.mean([kept for _, kept in found])))
            for rate, found in grid.items()
        }
        best[method] = max(scores, key=lambda rate: scores[rate])
        if not arguments.json:
            cells = (f"{r:g}: {scores[r][1]:.3f} {[step for step, _ in found]}" for r, found in grid.items())
            print(f"{method}: best {best[method]:g}   " + "   ".join(cells), flush=True)
    if arguments.json:
        print(json.dumps(best))


if __name__ == "__main__":
    main()
