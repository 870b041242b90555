"""How the hyperparameters of the LEMON study were chosen: uniform negatives, validation MRR, seeds outside the study.

python bench/lemon_tuning.py            # prints the grid; the best of each block stands in the study's settings
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json

import numpy as np
import torch
from pykeen.sampling import BasicNegativeSampler

from transfuse.data.graphs import TextGraph, load_graph
from transfuse.methods.negatives.pool_sampler import ExactFilterer
from transfuse.studies.negatives.link_prediction import Training, train_model
from transfuse.study.streams import Streams

SEEDS = (100, 101)
SHAPES = {"umls": (32, 24, 256), "wn18rr-text": (64, 5, 1024)}  # dimension, epochs, batch size of the study
VALID = 500  # validation triples ranked
GRIDS: dict[tuple[str, float | None], dict[str, tuple[float, ...]]] = {
    ("transe", None): {"lr": (0.003, 0.01, 0.03), "margin": (1.0, 3.0, 6.0)},
    ("distmult", None): {"lr": (0.01, 0.03, 0.1), "margin": (0.25, 0.5, 1.0, 3.0)},
    ("transe", 1.0): {"lr": (0.003, 0.01, 0.03), "margin": (3.0, 6.0, 9.0)},
    ("distmult", 1.0): {"lr": (0.01, 0.03, 0.1), "margin": (0.0, 1.0, 3.0)},
}


# WN18RR takes half a minute a run: DistMult and the margin loss only, around the values of UMLS, first tuning seed
WORDNET_GRIDS: dict[tuple[str, float | None], dict[str, tuple[float, ...]]] = {
    ("distmult", None): {"lr": (0.01, 0.03), "margin": (0.5, 1.0, 3.0)},
}


def valid_mrr(graph: TextGraph, model: str, temperature: float | None, lr: float, margin: float) -> float:
    """Mean over the tuning seeds of the validation MRR after the last epoch."""
    dim, epochs, batch_size = SHAPES[graph.name]
    training = Training(
        model,
        dim,
        epochs,
        batch_size,
        lr,
        margin,
        nssa_temperature=temperature,
        nssa_margin=margin,
        evaluate_every=epochs,
    )
    values = []
    for seed in SEEDS if graph.name == "umls" else SEEDS[:1]:
        sampler = BasicNegativeSampler(
            mapped_triples=torch.from_numpy(graph.train),
            num_entities=len(graph.entities),
            num_relations=len(graph.relations),
            num_negs_per_pos=8,
            filterer=ExactFilterer,
        )
        _, curve = train_model(graph, sampler, training, Streams(seed), valid_curve=VALID)
        values.append(curve[-1][1])
    return float(np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", default="umls", choices=tuple(SHAPES))
    parser.add_argument("--model", choices=("transe", "distmult"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    gc.freeze()
    graph = load_graph(arguments.graph)
    rows = []
    for (model, temperature), grid in (GRIDS if graph.name == "umls" else WORDNET_GRIDS).items():
        if arguments.model not in (None, model):
            continue
        for lr, margin in itertools.product(grid["lr"], grid["margin"]):
            mrr = valid_mrr(graph, model, temperature, lr, margin)
            loss = "margin" if temperature is None else "nssa"
            rows.append({"model": model, "loss": loss, "lr": lr, "margin": margin, "valid_mrr": round(mrr, 4)})
            if not arguments.json:
                print(*rows[-1].values(), sep="\t", flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
