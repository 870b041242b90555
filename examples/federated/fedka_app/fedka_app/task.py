"""What server and clients share: the domains, who holds which, and the model. Everything follows from seeds."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn

from transfuse.data.images import Labelled
from transfuse.data.shifted_digits import DIGIT_DOMAINS, shifted_digits


@cache
def domains() -> Labelled:
    """All domains; a real client would hold its own data instead."""
    return shifted_digits(np.random.default_rng(0))


def domain(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and classes of one domain, in random order."""
    data = domains()
    rows = np.random.default_rng(1).permutation(np.flatnonzero(data.domains == name))
    return torch.from_numpy(data.features[rows]), torch.from_numpy(data.labels[rows])


def client_domain(partition: int, target: str) -> str:
    """The domain of a client: those that are not the server's, in order."""
    return [name for name in DIGIT_DOMAINS if name != target][partition]


class Net(nn.Module):
    """Features and a head, under the names that FedKA looks for."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)


def make_net() -> nn.Module:
    """The model before training, the same everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Net()
