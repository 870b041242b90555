"""Clients that each hold text of one language pair want one translator; sending a whole model every round is too much,
and one average over unrelated languages makes them fight.

Fed-MNMT sends adapters and layer norms only, and averages the encoder side among clients whose source languages belong
together, the decoder side among clients whose target languages do. Every client ends with its own combination. The
strategy works for any model and any split of its parameters into parts.

>>> from transfuse.methods.federated.bottleneck_adapters import attach_adapters     # on any transformers model
>>> strategy = ClusteredFedAvg(clusters="family")       # a Flower Strategy: strategy.start(grid, initial_arrays, ...)
>>> by_stack("model.decoder.layers.0.encoder_attn_adapter.down.weight")
'decoder'
>>> family_labels(["de", "nl", "pt"])                   # the encoder side of three clients, by their source languages
['germanic', 'germanic', 'romance']
>>> import numpy as np
>>> cluster_means(np.array([[1.0], [3.0], [5.0]]), ["germanic", "germanic", "romance"]).ravel().tolist()
[2.0, 2.0, 5.0]

Liu, Bi, Li, Chen, Yang, Sun: Communication Efficient Federated Learning for Multilingual Neural Machine Translation
with Adapter. Findings of ACL 2023. https://arxiv.org/abs/2305.12449
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from transfuse.audit import AuditReport
from transfuse.card import Card
from transfuse.methods.federated import conflict_report
from transfuse.methods.federated.client_clusters import (
    cluster_means,
    family_labels,
    gradient_labels,
    mean_of,
    random_labels,
    sketch,
)
from transfuse.methods.federated.clustered_fedavg import ClusteredFedAvg, Config, RoundBytes, by_stack
from transfuse.methods.federated.update_conflict import read_history

__all__ = [
    "CARD",
    "ClusteredFedAvg",
    "Config",
    "RoundBytes",
    "audit",
    "by_stack",
    "cluster_means",
    "family_labels",
    "gradient_labels",
    "mean_of",
    "random_labels",
    "sketch",
]

CARD = Card(
    id="fed_mnmt",
    title="Communication Efficient Federated Learning for Multilingual Neural Machine Translation with Adapter",
    summary="Federates small adapters of a frozen model, averaging each part among the clients that fit together.",
    authors="Yi Liu, Xiaohan Bi, Lei Li, Sishuo Chen, Wenkai Yang, Xu Sun",
    year=2023,
    venue="Findings of ACL",
    url="https://arxiv.org/abs/2305.12449",
    family="federated",
    host="Flower (flwr.serverapp.strategy.Strategy)",
    entry="transfuse.methods.federated.fed_mnmt.ClusteredFedAvg",
    needs=(
        "a Flower server",
        "clients that send their trainable parameters",
        "languages, or a gradient, of each client",
    ),
    data="any; parallel text of one language pair a client in the paper",
    problems=(
        "sending a whole model every round is too much",
        "one federated average makes clients of different languages or domains fight",
        "fine-tune a large translation model across institutions without pooling text",
        "do the updates of my federation's clients pull against one another",
    ),
    extra="federated",
    requires=("flwr", "torch", "transformers"),
    differs=(
        "adapters stand before the residual is added, but before and not behind the block's dropout",
        "the official code ships clusters by gradient as lists; here clients send a sketch of their gradient, and "
        "average linkage on its cosines finds as many clusters as there are families",
        "random clusters have exactly the sizes of the families, instead of equal sizes with the rest in the last",
        "pruning leaves out adapters only; the layer norms of all layers are trained and sent",
        "training sets are not cut to a multiple of the batch",
        "new: any parts and labels, late nodes, refusal of broken replies, count of bytes, audit of conflict",
    ),
    status="stable",
)


def audit(
    history: Annotated[Path, "rounds of any federation: JSON, JSONL or CSV with cosines between the clients' updates"],
    losses: Annotated[
        Path | None, "JSON file: client -> paired losses of the federated and its own local model"
    ] = None,
    draws: Annotated[int, "draws of each null calibration"] = 2000,
) -> AuditReport:
    """Do the clients of this federation pull against one another, in which part, and does an average mix camps?"""
    rounds = read_history(history)
    paired = None if losses is None else conflict_report.read_losses(losses)
    return conflict_report.report(rounds, paired, draws=draws, subject=str(history))
