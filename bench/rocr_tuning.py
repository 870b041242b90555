"""How the layers of the ROCR study were chosen: forgetting and what is retained, on seeds outside the study.

    python bench/rocr_tuning.py [--json]

ROCR over early layers and the share of the trace that counts as free, ROME over single layers. Chosen is what forgets
most, on average over the forms and the seeds, among what loses at most five points of the retained accuracy on average;
if nothing does, what loses least. Everything else is the method's default. Last come the step sizes of the trained
baselines, by the rule of bench/unlearning_tuning.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from transfuse.cache import cache_folder
from transfuse.studies.unlearning.late_world import make_late_world
from transfuse.studies.unlearning.rocr import Settings
from transfuse.studies.unlearning.rocr_arms import BASELINES, Arms, Seen
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams
from unlearning_tuning import FURTHER, RATES, at_match, order

SEEDS = (100, 101)
LAYERS = ((0,), (1,), (0, 1), (1, 2), (0, 1, 2))
GRIDS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "rocr": [{"layers": layers, "null_share": share} for layers in LAYERS for share in (0.005, 0.02, 0.05)],
    "rome": [{"rome_layer": layer} for layer in range(4)],
}


def edited(arms: Arms, arm: str) -> Seen:
    """What an arm shows with the settings that `arms` has."""
    if arm == "rome":
        return arms.seen(arms.rewritten())
    redirector = arms.redirector()
    redirector.redirect_all(dict.fromkeys(arms.world.forget, arms.to))
    return arms.seen(redirector.model)


def row(arm: str, values: Mapping[str, Any], worlds: Sequence[Arms], bases: Sequence[Seen]) -> dict[str, Any]:
    """Means over the seeds."""
    found = []
    for arms, base in zip(worlds, bases, strict=True):
        arms.settings = replace(arms.settings, **values)
        after = edited(arms, arm)
        bias = arms.bias(base, after)
        found.append((bias.mean, bias.spread, base.retain - after.retain, after.valid))
    names = ("mean_reduction", "spread", "retain_drop", "valid_share")
    return {"values": dict(values), **dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))}


def best(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rule of the docstring."""
    kept = [each for each in rows if each["retain_drop"] <= 0.05]
    return (
        max(kept, key=lambda each: each["mean_reduction"]) if kept else min(rows, key=lambda each: each["retain_drop"])
    )


def best_rate(method: str, worlds: Sequence[Arms]) -> float:
    """The step size at which a baseline keeps most at matched forgetting."""
    grid: dict[float, Any] = {}
    for rate in (*RATES, FURTHER):
        if rate == FURTHER and max(grid, key=grid.__getitem__) != RATES[-1]:
            break
        grid[rate] = order([at_match(arms.world, method, rate) for arms in worlds])
    return max(grid, key=grid.__getitem__)


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stage = Stages(cache_folder())
    worlds = [Arms(make_late_world(Settings().late, Streams(seed), stage), Settings(), "late") for seed in SEEDS]
    bases = [arms.seen(arms.world.model()) for arms in worlds]
    for arm, grid in GRIDS.items():
        rows = [row(arm, values, worlds, bases) for values in grid]
        if arguments.json:
            print(json.dumps({"arm": arm, "rows": rows, "best": best(rows)["values"]}))
            continue
        print(f"{arm:<40}{'mean reduction':>16}{'spread':>16}{'retain drop':>16}{'valid share':>16}")
        for each in rows:
            numbers = "".join(f"{each[name]:>16.3f}" for name in list(each)[1:])
            print(f"{json.dumps(each['values']):<40}{numbers}")
        print(f"best: {json.dumps(best(rows)['values'])}")
    for method in BASELINES:
        print(json.dumps({"arm": method, "best": {"rate": best_rate(method, worlds)}}), flush=True)


if __name__ == "__main__":
    main()
