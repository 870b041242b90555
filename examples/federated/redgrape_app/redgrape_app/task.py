"""What server and clients share: the data, its partition, the model and the settings. Everything follows from seeds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from transfuse.data.images import Labelled, digits, stratified_split
from transfuse.hosts.flower.long_tail import cut_long_tail, exponential_sizes
from transfuse.hosts.flower.partition import prior_dirichlet
from transfuse.methods.federated.redgrape import Config

HEAD = "head"  # the name of the final layer


class Classifier(nn.Module):
    """A perceptron; RedGrape asks nothing of a model but that its last layer is linear."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, (n, 10)."""
        return self.head(self.body(x))


def settings(config: Mapping[str, Any]) -> Config:
    """RedGrape's settings from those of the run; server and clients must agree on them."""
    return Config(
        balance_rate=float(config["balance-rate"]), samples_per_class=int(config["samples-per-class"]), epochs=2
    )


@cache
def split(ratio: float) -> tuple[Labelled, Labelled]:
    """Long-tailed training data and balanced test data; a real client would hold its own data instead."""
    data = digits()
    (test,), train = stratified_split(data.labels, (397,), np.random.default_rng(0))
    kept, _ = cut_long_tail(data.labels[train], exponential_sizes(130, ratio, 10), np.random.default_rng(1))
    return data.take(train[kept]), data.take(test)


def client_loader(partition: int, partitions: int, config: Mapping[str, Any], server_round: int) -> DataLoader:
    """Batches of one client, in an order that follows from the round."""
    train, _ = split(float(config["ratio"]))
    parts = prior_dirichlet(train.labels, partitions, float(config["alpha"]), np.random.default_rng(2))
    mine = train.take(parts[partition])
    order = torch.Generator().manual_seed(1000 * server_round + partition)
    dataset = TensorDataset(torch.from_numpy(mine.features), torch.from_numpy(mine.labels))
    return DataLoader(dataset, batch_size=16, shuffle=True, generator=order)


def initial_model() -> Classifier:
    """The model before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Classifier()
