"""Local training of many small clients at once: one batched NumPy step serves all clients of a round.

The clients answer one by one through a real `ClientApp`; only the arithmetic is shared. What a client computes depends
on the arrays it received, its data, the round and the seed, not on who else takes part, so the same client in two
strategies trains alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

Params = dict[str, np.ndarray]


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains: SGD with fresh state each round, on shuffled batches, with gradient clipping."""

    epochs: int = 5
    batch: int = 8
    rate: float = 0.1
    momentum: float = 0.0
    clip: float = 1.0


def init_mlp(sizes: Sequence[int], rng: np.random.Generator) -> Params:
    """A multilayer perceptron of two layers under PyTorch's names and initial ranges.

    Args:
        sizes: (inputs, hidden, classes).
        rng: source of the weights.
    """
    inputs, hidden, classes = sizes

    def uniform(fan_in: int, *shape: int) -> np.ndarray:
        return rng.uniform(-1.0, 1.0, shape).astype(np.float32) / np.float32(np.sqrt(fan_in))

    return {
        "fc1.weight": uniform(inputs, hidden, inputs),
        "fc1.bias": uniform(inputs, hidden),
        "fc2.weight": uniform(hidden, classes, hidden),
        "fc2.bias": uniform(hidden, classes),
    }


def predict(params: Mapping[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """Logits, (n, classes)."""
    hidden = np.maximum(features @ params["fc1.weight"].T + params["fc1.bias"], 0.0)
    return hidden @ params["fc2.weight"].T + params["fc2.bias"]


def accuracy(params: Mapping[str, np.ndarray], features: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples whose largest logit is their class."""
    return float((predict(params, features).argmax(axis=1) == labels).mean())


def train_together(
    start: Params,
    data: Sequence[tuple[np.ndarray, np.ndarray]],
    how: LocalTraining,
    generators: Sequence[np.random.Generator],
    proximal: float = 0.0,
) -> Params:
    """Train every client from the same weights; row c of each result is client c's, (clients, ...).

    Args:
        start: weights that all clients received.
        data: features (n, inputs) and labels (n,) of each client; sizes may differ.
        how: the optimiser.
        generators: one a client, for its batch order.
        proximal: weight mu of FedProx's term mu/2 |w - start|^2.
    """
    sizes = np.array([len(labels) for _, labels in data])
    features = np.zeros((len(data), sizes.max(), data[0][0].shape[1]), dtype=np.float32)
    labels = np.zeros((len(data), sizes.max()), dtype=np.int64)
    for c, (x, y) in enumerate(data):
        features[c, : len(y)], labels[c, : len(y)] = x, y
    anchor = np.concatenate([value.ravel() for value in start.values()]).astype(np.float32)  # (size,)
    flat = np.repeat(anchor[None], len(data), axis=0)  # (clients, size); all steps work on it in place
    gradient, speed, step = np.empty_like(flat), np.zeros_like(flat), np.empty_like(flat)
    params, slots = _views(flat, start), _views(gradient, start)
    rows = np.arange(len(data))[:, None]
    for index, mask in _batches(sizes, how, generators):
        _gradient(params, features[rows, index], labels[rows, index], mask, slots)
        if proximal:
            gradient += proximal * (flat - anchor)
        norms = np.sqrt(np.einsum("cd,cd->c", gradient, gradient))
        gradient *= np.minimum(1.0, how.clip / (norms + 1e-6))[:, None]
        speed *= how.momentum
        speed += gradient
        active = mask.any(axis=1)  # clients that still have batches
        np.multiply(speed, (how.rate * active.astype(np.float32))[:, None], out=step)
        flat -= step
    return params


def _views(flat: np.ndarray, like: Params) -> Params:
    """Parts of (clients, size) in the shapes of `like`, without a copy."""
    ends = np.cumsum([value.size for value in like.values()])
    parts = np.split(flat, ends[:-1], axis=1)
    return {key: part.reshape(len(flat), *like[key].shape) for key, part in zip(like, parts, strict=True)}


def _batches(sizes: np.ndarray, how: LocalTraining, generators: Sequence[np.random.Generator]):
    """Indices and 0/1 masks of each step, (clients, batch) each; short and finished clients are padded."""
    steps = -(-sizes // how.batch)  # batches an epoch
    total = int(steps.max()) * how.epochs
    index = np.zeros((len(sizes), total, how.batch), dtype=np.int64)
    mask = np.zeros((len(sizes), total, how.batch), dtype=np.float32)
    for c, (n, per_epoch, rng) in enumerate(zip(sizes, steps, generators, strict=True)):
        orders = rng.permuted(np.tile(np.arange(n), (how.epochs, 1)), axis=1)  # (epochs, n)
        padded = np.zeros((how.epochs, per_epoch * how.batch), dtype=np.int64)
        padded[:, :n] = orders
        there = np.zeros_like(padded, dtype=np.float32)
        there[:, :n] = 1.0
        index[c, : how.epochs * per_epoch] = padded.reshape(-1, how.batch)
        mask[c, : how.epochs * per_epoch] = there.reshape(-1, how.batch)
    for step in range(total):
        yield index[:, step], mask[:, step]


def _gradient(params: Params, x: np.ndarray, y: np.ndarray, mask: np.ndarray, out: Params) -> None:
    """Write the gradient of each client's mean cross-entropy over its batch into `out`, (clients, ...)."""
    hidden = x @ params["fc1.weight"].transpose(0, 2, 1)  # (clients, batch, hidden)
    hidden += params["fc1.bias"][:, None]
    np.maximum(hidden, 0.0, out=hidden)
    error = hidden @ params["fc2.weight"].transpose(0, 2, 1)
    error += params["fc2.bias"][:, None]
    error -= error.max(axis=2, keepdims=True)
    np.exp(error, out=error)
    error /= error.sum(axis=2, keepdims=True)
    clients, batch = y.shape
    error[np.arange(clients)[:, None], np.arange(batch)[None], y] -= 1.0
    error *= (mask / np.maximum(mask.sum(axis=1, keepdims=True), 1.0))[:, :, None]
    back = error @ params["fc2.weight"]
    back *= hidden > 0
    np.matmul(back.transpose(0, 2, 1), x, out=out["fc1.weight"])
    np.sum(back, axis=1, out=out["fc1.bias"])
    np.matmul(error.transpose(0, 2, 1), hidden, out=out["fc2.weight"])
    np.sum(error, axis=1, out=out["fc2.bias"])


class Cohort:
    """Clients with data, their application, and the shared training.

    Pass ``cohort.app`` and ``before_round=cohort.prepare`` to a `LocalGrid`.

    Args:
        data: features and labels of each client, by partition id.
        how: the optimiser of all clients.
        seed: of the batch order.
    """

    def __init__(self, data: Sequence[tuple[np.ndarray, np.ndarray]], how: LocalTraining, seed: int = 0) -> None:
        self.data, self.how, self.seed = list(data), how, seed
        self.sizes = np.array([len(labels) for _, labels in self.data])
        self._trained: dict[int, Params] = {}
        self.app = ClientApp()
        self.app.train()(self._answer)

    def train(self, start: Params, clients: Sequence[int], server_round: int, proximal: float = 0.0) -> Params:
        """Weights after local training from `start`, one row a client of `clients`."""
        generators = [np.random.default_rng((self.seed, server_round, int(c))) for c in clients]
        return train_together(start, [self.data[c] for c in clients], self.how, generators, proximal)

    def prepare(self, pairs: Sequence[tuple[Message, Context]]) -> None:
        """Train all clients that a round's messages address; they share arrays and settings."""
        pairs = [pair for pair in pairs if pair[0].metadata.message_type == "train"]
        self._trained = {}
        if not pairs:
            return
        content = pairs[0][0].content
        start = {key: array.numpy() for key, array in content["arrays"].items()}  # type: ignore[union-attr]
        config = content["config"]
        clients = [int(context.node_config["partition-id"]) for _, context in pairs]
        trained = self.train(start, clients, int(config["server-round"]), float(config.get("proximal-mu", 0.0)))  # type: ignore[arg-type]
        for row, client in enumerate(clients):
            self._trained[client] = {key: value[row] for key, value in trained.items()}

    def _answer(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        if client not in self._trained:
            self.prepare([(message, context)])
        arrays = ArrayRecord()
        for key, value in self._trained[client].items():
            arrays[key] = Array(value)
        metrics = MetricRecord({"num-examples": int(self.sizes[client])})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
