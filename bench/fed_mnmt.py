"""Clustered aggregation against the published loops, bytes a round, and local training with bucketed batches.

    python bench/fed_mnmt.py [--json] [--repeats 3]

(a) 12 clients of 8 million parameters in 60 adapters and the layer norms of an mBART-large, 4 encoder and 4 decoder
clusters: the published loops call state_dict() for every name, client and cluster. (b) Bytes a client sends. (c) One
local epoch over the same sentences, batches padded to the longest of a random batch against bucketed ones. (d) Memory
of twelve clients, from the counts of (b). Times are
medians of alternating repetitions in one process; their ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.adapter_client import LocalTraining, Pair, train_locally
from transfuse.methods.federated.bottleneck_adapters import attach_adapters, exchanged_parameters, exchanged_share
from transfuse.methods.federated.fed_mnmt import ClusteredFedAvg
from transfuse.methods.federated.node_queries import answer_describe
from transfuse.nets.tiny_translator import mbart_large_50, subword_tokenizer, tiny_mbart

CLIENTS = 12
GROUPS = {  # the families of the paper's twelve Europarl directions, by source and by target
    "encoder": [[0, 1, 2, 9], [3, 4, 5, 7], [6, 8], [10, 11]],
    "decoder": [[0, 4, 7], [1, 6, 11], [2, 5, 8], [3, 9, 10]],
}


def median_seconds(repeats: int, **candidates: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each candidate, in alternation after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, function in candidates.items():
            start = time.perf_counter()
            function()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def as_module(shapes: dict[str, tuple[int, ...]], frozen: int, rng: np.random.Generator) -> nn.Module:
    """A module with these parameters and as many tiny frozen ones: its state_dict has as many entries as mBART's."""
    model = nn.Module()
    names = [*shapes, *(f"frozen.{i}.weight" for i in range(frozen))]
    for name in names:
        parent = model
        *path, last = name.split(".")
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]  # type: ignore[assignment]
        values = rng.standard_normal(shapes.get(name, (1,)), np.float32)
        parent.register_parameter(last, nn.Parameter(torch.from_numpy(values), requires_grad=False))
    return model


def published_loops(models: list[nn.Module], names: list[str]) -> None:
    """The published form's work: for each part and cluster a mean tensor by tensor, state_dict() at every access."""
    for part, groups in GROUPS.items():
        for group in groups:
            for name in models[0].state_dict():
                if name not in names or part not in name.split("."):
                    continue
                mean = torch.zeros_like(models[0].state_dict()[name])
                for client in group:
                    mean += models[client].state_dict()[name]
                mean /= len(group)
                for client in group:
                    models[client].state_dict()[name].copy_(mean)


def aggregation(repeats: int) -> dict[str, float]:
    """One round's aggregation by each way, equal outputs checked to 1e-5."""
    large = mbart_large_50()
    entries = len(large.state_dict())
    attach_adapters(large)
    shapes = {name: tuple(p.shape) for name, p in exchanged_parameters(large).items()}
    rng = np.random.default_rng(0)
    models = [as_module(shapes, entries, rng) for _ in range(CLIENTS)]
    states = [{name: model.state_dict()[name].numpy().copy() for name in shapes} for model in models]
    app = answer_describe(ClientApp(), lambda context: {})
    grid = LocalGrid(app, CLIENTS)
    arrays = ArrayRecord({name: Array(np.zeros(shape, np.float32)) for name, shape in shapes.items()})
    strategies = {
        "ours": ClusteredFedAvg(clusters=GROUPS, record=False, fraction_evaluate=0.0),
        "recorded": ClusteredFedAvg(clusters=GROUPS, fraction_evaluate=0.0),
    }
    for strategy in strategies.values():
        messages = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    messages = sorted(messages, key=lambda message: message.metadata.dst_node_id)
    replies = []
    for message, state in zip(messages, states, strict=True):
        record = ArrayRecord({name: Array(value) for name, value in state.items()})
        content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 1})})
        replies.append(Message(content, reply_to=message))
    published_loops(models, list(shapes))
    for strategy in strategies.values():
        strategy.aggregate_train(1, replies)
        for client, model in enumerate(models):
            own, theirs = strategy.node_arrays(client + 1), model.state_dict()
            for name in shapes:
                np.testing.assert_allclose(own[name].numpy(), theirs[name].numpy(), atol=1e-5)
    seconds = median_seconds(
        repeats,
        published=lambda: published_loops(models, list(shapes)),
        ours=lambda: strategies["ours"].aggregate_train(1, replies),
        recorded=lambda: strategies["recorded"].aggregate_train(1, replies),
    )
    sent = sum(int(np.prod(shape)) for shape in shapes.values())
    return {
        "parameters": sent,
        "published_ms": 1e3 * seconds["published"],
        "ours_ms": 1e3 * seconds["ours"],
        "with_record_ms": 1e3 * seconds["recorded"],
        "published_over_ours": seconds["published"] / seconds["ours"],
        "published_over_with_record": seconds["published"] / seconds["recorded"],
    }


def bytes_a_round() -> dict[str, float]:
    """What one client of mBART-large-50 sends a round, in megabytes, and its share of the whole model."""
    large = mbart_large_50()
    whole = sum(p.numel() for p in large.parameters())
    attach_adapters(large)
    sent = sum(p.numel() for p in exchanged_parameters(large).values())
    return {"whole_mb": 4 * whole / 1e6, "sent_mb": 4 * sent / 1e6, "share": exchanged_share(large)}


def epoch(repeats: int) -> dict[str, float]:
    """One local epoch over 600 sentences of 4 to 40 tokens, padded and bucketed, from the same parameters."""
    torch.manual_seed(0)
    tokenizer = subword_tokenizer(["a b c d"], ["de", "fr"], 60)
    model = tiny_mbart(tokenizer, width=64, layers=3)
    attach_adapters(model)
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(2.5, 0.5, 600).astype(int), 4, 40)
    pairs = [Pair(tuple(rng.integers(4, 12, n)), tuple(rng.integers(4, 12, n))) for n in lengths]

    def train(bucketed: bool) -> Callable[[], Any]:
        how = LocalTraining(batch=32, bucketed=bucketed)
        return lambda: train_locally(model, pairs, how, np.random.default_rng(0), tokenizer.pad_token_id)

    seconds = median_seconds(repeats, padded=train(False), bucketed=train(True))
    return {
        **{f"{k}_s": v for k, v in seconds.items()},
        "padded_over_bucketed": seconds["padded"] / seconds["bucketed"],
    }


def memory() -> dict[str, float]:
    """Megabytes of twelve clients of mBART-large-50: a copy of the model each, against one base and twelve adapters."""
    figures = bytes_a_round()
    return {
        "copies_mb": CLIENTS * (figures["whole_mb"] + figures["sent_mb"]),
        "swapped_mb": figures["whole_mb"] + (CLIENTS + 1) * figures["sent_mb"],
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with quiet_flower():
        found = {
            "aggregation": aggregation(arguments.repeats),
            "bytes": bytes_a_round(),
            "epoch": epoch(arguments.repeats),
            "memory": memory(),
        }
    if arguments.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
