"""How the layers of the ROCR study were chosen: forgetting and what is retained, on seeds outside the study.

    python bench/rocr_tuning.py [--json]

ROCR over pairs and triples of early layers, ROME over single ones. Chosen is what forgets most, on average over the
forms and the seeds, among what loses at most five points of the retained accuracy on average; if nothing does, what
loses least. Everything else is the method's default.
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
from transfuse.studies.unlearning.rocr_arms import Arms, Seen
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams

SEEDS = (100, 101)
GRIDS: Mapping[str, Sequence[Any]] = {
    "layers": ((0,), (1,), (0, 1), (1, 2), (0, 1, 2)),
    "rome_layer": (0, 1, 2, 3),
}


def edited(arms: Arms, setting: str) -> Seen:
    """What an arm shows with the settings that `arms` has."""
    if setting == "rome_layer":
        return arms.seen(arms.rewritten())
    redirector = arms.redirector()
    redirector.redirect_all(dict.fromkeys(arms.world.forget, arms.to))
    return arms.seen(redirector.model)


def row(setting: str, value: Any, worlds: Sequence[Arms], bases: Sequence[Seen]) -> dict[str, Any]:
    """Means over the seeds."""
    found = []
    for arms, base in zip(worlds, bases, strict=True):
        arms.settings = replace(arms.settings, **{setting: value})
        after = edited(arms, setting)
        bias = arms.bias(base, after)
        found.append((bias.mean, bias.spread, base.retain - after.retain, after.valid))
    names = ("mean_reduction", "spread", "retain_drop", "valid_share")
    return {"setting": setting, "value": value, **dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))}


def best(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rule of the docstring."""
    kept = [each for each in rows if each["retain_drop"] <= 0.05]
    return (
        max(kept, key=lambda each: each["mean_reduction"]) if kept else min(rows, key=lambda each: each["retain_drop"])
    )


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stage = Stages(cache_folder())
    worlds = [Arms(make_late_world(Settings().late, Streams(seed), stage), Settings(), "late") for seed in SEEDS]
    bases = [arms.seen(arms.world.model()) for arms in worlds]
    for setting, values in GRIDS.items():
        rows = [row(setting, value, worlds, bases) for value in values]
        if arguments.json:
            print(json.dumps({"rows": rows, "best": best(rows)["value"]}))
            continue
        for each in rows:
            numbers = "".join(f"{each[name]:>16.3f}" for name in list(each)[2:])
            print(f"{setting:<12}{each['value']!s:<12}{numbers}")
        print(f"best {setting}: {best(rows)['value']}  (mean reduction, spread, drop of retained, valid answers)")


if __name__ == "__main__":
    main()
