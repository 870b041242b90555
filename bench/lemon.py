"""Negatives per second: LEMON's table look-up against PyKEEN's uniform sampler and a per-row KD-tree sampler.

python bench/lemon.py [--json] [--calls 1000]

The work is the same for all: batches of 512 positives, 32 negatives each, on UMLS and on a random graph of the size of
WN18RR with random embeddings. False-negative rates stand beside the speed. The per-row form is the usual way to write a
nearest-neighbour sampler: for each row of the batch a Python step looks up a KD-tree's neighbours and draws from them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from pykeen.sampling import BasicNegativeSampler, BernoulliNegativeSampler, NegativeSampler
from pykeen.sampling.filtering import BloomFilterer, PythonSetFilterer
from sklearn.neighbors import KDTree

from transfuse.data.graphs import load_graph
from transfuse.hosts.sentence_encoder import encode_texts, tfidf_encoder
from transfuse.methods.negatives.false_negative_audit import TripleIndex, profile_negatives
from transfuse.methods.negatives.lemon import LemonNegativeSampler
from transfuse.methods.negatives.pool_sampler import ExactFilterer

BATCH, NEGATIVES, REPETITIONS = 512, 32, 5


class RowwiseNeighbourSampler(NegativeSampler):
    """The per-row form: one tree query a row, a set of candidates, draws without replacement, uniform filling."""

    def __init__(self, *, embeddings: np.ndarray, neighbours: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.embeddings, self.neighbours = embeddings, neighbours
        self.tree = KDTree(embeddings)

    def corrupt_batch(self, positive_batch: torch.Tensor) -> torch.Tensor:
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        rows = []
        for head, relation, tail in positive_batch.tolist():
            half = self.num_negs_per_pos // 2
            for entity, count in ((head, half), (tail, self.num_negs_per_pos - half)):
                near = self.tree.query(self.embeddings[entity : entity + 1], self.neighbours + 1)[1][0]
                pool = [int(other) for other in near if other != entity]
                drawn = list(rng.choice(pool, size=min(count, len(pool)), replace=False))
                drawn += list(rng.integers(self.num_entities, size=count - len(drawn)))
                rows += [(d, relation, tail) if entity == head else (head, relation, d) for d in drawn]
        return torch.tensor(rows).reshape(*positive_batch.shape[:-1], self.num_negs_per_pos, 3)


def graphs() -> dict[str, tuple[torch.Tensor, torch.Tensor, int, int, np.ndarray]]:
    """Name -> training triples, held-out triples, number of entities and relations, embeddings."""
    umls = load_graph("umls")
    rng = np.random.default_rng(0)
    n, r = 40_559, 11
    columns = [rng.integers(size, size=93_000) for size in (n, r, n)]
    large = torch.from_numpy(np.unique(np.stack(columns, 1), axis=0))
    centres = rng.normal(size=(n // 50, 32))
    z = (centres[rng.integers(len(centres), size=n)] + 0.3 * rng.normal(size=(n, 32))).astype(np.float32)
    small = encode_texts(umls.texts, tfidf_encoder(32))
    return {
        "umls": (torch.from_numpy(umls.train), torch.from_numpy(umls.held_out), 135, 46, small),
        "wn18rr-sized": (large[:-6000], large[-6000:], n, r, z),
    }


def seconds(draw: Callable[[torch.Tensor], torch.Tensor], batches: list[torch.Tensor], calls: int) -> float:
    start = time.perf_counter()
    for call in range(calls):
        draw(batches[call % len(batches)])
    return (time.perf_counter() - start) / calls


def measure(calls: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, (train, held, n, r, z) in graphs().items():
        shared = {
            "mapped_triples": train, "num_entities": n, "num_relations": r, "num_negs_per_pos": NEGATIVES,
            "filtered": False,
        }  # fmt: skip
        samplers: dict[str, NegativeSampler] = {
            "uniform (PyKEEN)": BasicNegativeSampler(**shared),
            "bernoulli (PyKEEN)": BernoulliNegativeSampler(**shared),
            "lemon": LemonNegativeSampler(embeddings=z, **shared),
            "lemon, no mixing": LemonNegativeSampler(embeddings=z, mix=0.0, **shared),
            "lemon knn, weighted": LemonNegativeSampler(embeddings=z, mode="knn", neighbours=min(64, n // 8), **shared),
            "per-row KD-tree": RowwiseNeighbourSampler(embeddings=z, neighbours=min(64, n // 8), **shared),
        }
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(train), generator=generator)
        batches = [train[part] for part in order.split(BATCH) if len(part) == BATCH][:50]
        times: dict[str, list[float]] = {label: [] for label in samplers}
        for _ in range(REPETITIONS):  # alternating, so that a slow minute of the machine hits all
            for label, sampler in samplers.items():
                slow = label.startswith("per-row")
                times[label].append(seconds(sampler.corrupt_batch, batches, 2 if slow else calls // REPETITIONS))
        base = statistics.median(times["uniform (PyKEEN)"])
        known, held_index = TripleIndex(train, n, r), TripleIndex(held, n, r)
        for label, sampler in samplers.items():
            torch.manual_seed(0)
            profile = profile_negatives(sampler.corrupt_batch, torch.cat(batches[:2]), known, held_index)
            median = statistics.median(times[label])
            rows.append(
                {
                    "graph": name,
                    "sampler": label,
                    "us_per_call": round(median * 1e6, 1),
                    "million_negatives_per_s": round(BATCH * NEGATIVES / median / 1e6, 3),
                    "times_uniform": round(median / base, 2),
                    "fnr_train": round(profile.fnr_train, 4),
                    "fnr_held": round(profile.fnr_held, 4),
                }
            )
    return rows


def filter_times(calls: int = 50) -> dict[str, float]:
    """Microseconds to mask one batch of negatives of UMLS, by filter."""
    train = graphs()["umls"][0]
    sampler = BasicNegativeSampler(mapped_triples=train, num_negs_per_pos=NEGATIVES)
    negatives = sampler.corrupt_batch(train[:BATCH])
    filters = {"exact (ours)": ExactFilterer(train), "bloom (PyKEEN)": BloomFilterer(train)}
    filters["python-set (PyKEEN)"] = PythonSetFilterer(train)
    return {name: round(seconds(each, [negatives], calls) * 1e6, 1) for name, each in filters.items()}


def epoch_ratio(epochs: int = 3) -> float:
    """Time of a training epoch (TransE, UMLS, filtered) with LEMON over that with uniform negatives."""
    from transfuse.studies.negatives.link_prediction import Training, train_model
    from transfuse.study.streams import Streams

    graph = load_graph("umls")
    train = torch.from_numpy(graph.train)
    shared = {"mapped_triples": train, "num_negs_per_pos": 8, "filtered": True}
    samplers = [
        BasicNegativeSampler(**shared),
        LemonNegativeSampler(embeddings=encode_texts(graph.texts, tfidf_encoder(32)), **shared),
    ]
    training = Training("transe", 32, epochs, 256, 0.01, 3.0)
    times: list[list[float]] = [[], []]
    for _ in range(REPETITIONS):
        for index, sampler in enumerate(samplers):
            start = time.perf_counter()
            train_model(graph, sampler, training, Streams(0))
            times[index].append(time.perf_counter() - start)
    return statistics.median(times[1]) / statistics.median(times[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, ratio, filters = measure(arguments.calls), epoch_ratio(), filter_times()
    if arguments.json:
        print(json.dumps({"samplers": rows, "epoch_time_ratio": ratio, "filter_us": filters}, indent=2))
        return
    print(*(f"{key:>24}" for key in rows[0]))
    for row in rows:
        print(*(f"{value!s:>24}" for value in row.values()))
    print("filter, us a batch:", *(f"{name} {value}" for name, value in filters.items()), sep="  ")
    print(f"training epoch, LEMON over uniform (TransE, UMLS): {ratio:.2f}")


if __name__ == "__main__":
    main()
