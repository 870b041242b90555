"""What server and clients share: the data, its partition, and the model. Everything follows from seeds."""

from __future__ import annotations

from functools import cache

import numpy as np
from flwr.app import Array, ArrayRecord

from transfuse.data.images import Labelled, digits, stratified_split
from transfuse.hosts.flower.cohort import LocalTraining, Params, init_mlp
from transfuse.hosts.flower.partition import prior_dirichlet

TRAINING = LocalTraining(epochs=1, batch=16, rate=0.1)


@cache
def split() -> tuple[Labelled, Labelled]:
    """Training and test data; a real client would hold its own data instead."""
    data = digits()
    (test,), train = stratified_split(data.labels, (397,), np.random.default_rng(0))
    return data.take(train), data.take(test)


def client_data(partition: int, partitions: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of one client."""
    train, _ = split()
    parts = prior_dirichlet(train.labels, partitions, alpha, np.random.default_rng(1))
    mine = train.take(parts[partition])
    return mine.features, mine.labels


def initial_arrays(hidden: int) -> ArrayRecord:
    """The model before training: two layers, four tensors."""
    params = init_mlp((64, hidden, 10), np.random.default_rng(2))
    return ArrayRecord({key: Array(value) for key, value in params.items()})


def to_params(arrays: ArrayRecord) -> Params:
    """Flower's record as named NumPy arrays."""
    return {key: array.numpy() for key, array in arrays.items()}
