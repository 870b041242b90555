"""Clients of the RedGrape study: many small perceptrons trained at once, by the local rule of each arm.

The arithmetic of `redgrape_client` for a perceptron of two layers, batched over the clients of a round in NumPy, as
`hosts.flower.cohort` does for FedAvg; a test holds the two against each other. The clients answer through a real
`ClientApp`, so the strategies are the ones of a deployment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

# Both names are of the other cohort alone; making them public there would make FedGLAD's cells stale.
from transfuse.hosts.flower.cohort import LocalTraining, Params, _batches, _views
from transfuse.methods.federated.creff import CLASSIFIER, softmax
from transfuse.methods.federated.gradient_prototypes import (
    RECORD,
    MissingMean,
    Prototypes,
    class_gradients,
    read_download,
    write_upload,
)
from transfuse.methods.federated.redgrape import Config
from transfuse.methods.federated.redgrape_client import SECOND

Examples = tuple[np.ndarray, np.ndarray]
_W, _B = "fc2.weight", "fc2.bias"


@dataclass(frozen=True)
class LocalRule:
    """What a client does beside plain training.

    Attributes:
        redgrape: settings of the balancing, None for the other arms.
        loss: of the natural batches.
        gamma: of the focal loss.
        offset: added to the logits in training by logit adjustment, (C,).
        uploads: whether class-wise gradients are sent.
        placebo: rows of the balancing gradient are permuted, so that it has its size but not its sense.
    """

    redgrape: Config | None = None
    loss: Literal["cross-entropy", "focal", "adjusted"] = "cross-entropy"
    gamma: float = 2.0
    offset: np.ndarray | None = None
    uploads: bool = False
    placebo: bool = False


@dataclass
class Balancing:
    """Balanced sets and missing means of the clients of a round, stacked.

    Attributes:
        features: of the balanced sets, (clients, n, inputs).
        labels: (clients, n).
        share: one over the size of a client's set at each of its examples, 0 at padding, (clients, n).
        local: classes in each set, (clients, 1, 1).
        lacking: classes that the mean stands for, (clients, 1, 1).
        weight: missing means, (clients, C, d).
        bias: (clients, C).
        rows: order of the rows of the gradient, (clients, C).
    """

    features: np.ndarray
    labels: np.ndarray
    share: np.ndarray
    local: np.ndarray
    lacking: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    rows: np.ndarray

    def direction(self, params: Params) -> tuple[np.ndarray, np.ndarray]:
        """G of each client at its current weights, (clients, C, d) and (clients, C); zero where there is none."""
        weight, bias = self.lacking * self.weight, self.lacking[:, :, 0] * self.bias
        if self.share.any():
            hidden = _hidden(params, self.features)
            error = softmax(hidden @ params[_W].transpose(0, 2, 1) + params[_B][:, None])
            clients, n = self.labels.shape
            error[np.arange(clients)[:, None], np.arange(n), self.labels] -= 1.0
            error *= self.share[:, :, None]
            weight = weight + self.local * (error.transpose(0, 2, 1) @ hidden)
            bias = bias + self.local[:, :, 0] * error.sum(axis=1)
        total = np.maximum(self.local + self.lacking, 1.0)
        clients_ = np.arange(len(self.rows))[:, None]
        return (weight / total)[clients_, self.rows], (bias / total[:, :, 0])[clients_, self.rows]


def balancing(
    config: Config,
    data: Sequence[Examples],
    missing: Sequence[Callable[[np.ndarray], MissingMean | None] | None],
    generators: Sequence[np.random.Generator],
    shape: tuple[int, int],
    placebo: bool,
) -> Balancing | None:
    """Draw the balanced sets and stack what the server sent; None in a round without prototypes."""
    if all(each is None for each in missing):
        return None
    classes, width = shape
    counts = np.array([np.bincount(y, minlength=classes) for _, y in data])
    size = max(1, config.samples_per_class * int((counts >= config.samples_per_class).sum(axis=1).max()))
    clients, inputs = len(data), data[0][0].shape[1]
    found = Balancing(
        np.zeros((clients, size, inputs), np.float32),
        np.zeros((clients, size), np.int64),
        np.zeros((clients, size), np.float32),
        np.zeros((clients, 1, 1), np.float32),
        np.zeros((clients, 1, 1), np.float32),
        np.zeros((clients, classes, width), np.float32),
        np.zeros((clients, classes), np.float32),
        np.tile(np.arange(classes), (clients, 1)),
    )
    for c, ((x, y), mean_for, rng) in enumerate(zip(data, missing, generators, strict=True)):
        if placebo:
            found.rows[c] = rng.permutation(classes)
        if mean_for is None:
            continue
        balanced = counts[c] >= config.samples_per_class
        chosen = [rng.permutation(np.flatnonzero(y == k))[: config.samples_per_class] for k in np.flatnonzero(balanced)]
        if chosen and config.direction != "prototypes":
            rows = np.concatenate(chosen)
            found.features[c, : len(rows)], found.labels[c, : len(rows)] = x[rows], y[rows]
            found.share[c, : len(rows)], found.local[c] = 1.0 / len(rows), balanced.sum()
        if config.direction == "prototypes":
            balanced = np.zeros(classes, dtype=bool)
        mean = mean_for(balanced) if config.direction != "local" else None
        if mean is not None:
            known = int(mean.averaged.sum())
            found.lacking[c] = known if config.count_missing == "known" else classes - int(found.local[c, 0, 0])
            found.weight[c], found.bias[c] = mean.weight, mean.bias
    return found


def train_clients(
    start: Params,
    data: Sequence[Examples],
    how: LocalTraining,
    generators: Sequence[np.random.Generator],
    rule: LocalRule,
    balance: Balancing | None = None,
) -> Params:
    """Weights after local training from `start`, one row a client.

    Args:
        start: `fc1`, `fc2` and, for arms with a second classifier, its arrays.
        data: features and labels of each client.
        how: the optimiser.
        generators: one a client, for its batch order.
        rule: of the arm.
        balance: for RedGrape, from its second round on.
    """
    sizes = np.array([len(labels) for _, labels in data])
    features = np.zeros((len(data), sizes.max(), data[0][0].shape[1]), dtype=np.float32)
    labels = np.zeros((len(data), sizes.max()), dtype=np.int64)
    for c, (x, y) in enumerate(data):
        features[c, : len(y)], labels[c, : len(y)] = x, y
    flat = np.repeat(np.concatenate([value.ravel() for value in start.values()]).astype(np.float32)[None], len(data), 0)
    gradient, speed = np.zeros_like(flat), np.zeros_like(flat)
    params, slots = _views(flat, start), _views(gradient, start)
    rows = np.arange(len(data))[:, None]
    for index, mask in _batches(sizes, how, generators):
        g = None if balance is None else balance.direction(params)
        _gradient(params, features[rows, index], labels[rows, index], mask, rule, slots)
        if g is not None:
            scales = [_norms(slots[key]) / np.maximum(_norms(g[i]), 1e-30) for i, key in enumerate((_W, _B))]
        factor = np.minimum(1.0, how.clip / (_norms(gradient) + 1e-6))
        gradient *= factor[:, None]
        speed *= how.momentum
        speed += gradient
        active = mask.any(axis=1).astype(np.float32)  # clients that still have batches
        flat -= (how.rate * active)[:, None] * speed
        if g is not None and rule.redgrape is not None:
            step = how.rate * rule.redgrape.balance_rate * active
            step = step * factor if rule.redgrape.match == "clipped" else step
            params[_W] -= (step * scales[0])[:, None, None] * g[0]
            params[_B] -= (step * scales[1])[:, None] * g[1]
    return params


def _norms(values: np.ndarray) -> np.ndarray:
    """Euclidean norm of each client's part, (clients,)."""
    flat = values.reshape(len(values), -1)
    return np.sqrt(np.einsum("cd,cd->c", flat, flat))


def _hidden(params: Params, x: np.ndarray) -> np.ndarray:
    hidden = x @ params["fc1.weight"].transpose(0, 2, 1)
    hidden += params["fc1.bias"][:, None]
    return np.maximum(hidden, 0.0, out=hidden)


def _gradient(params: Params, x: np.ndarray, y: np.ndarray, mask: np.ndarray, rule: LocalRule, out: Params) -> None:
    """Write the gradient of each client's mean loss over its batch into `out`, (clients, ...)."""
    two = f"{SECOND}weight" in params
    weight = params[_W] + params[f"{SECOND}weight"] if two else params[_W]
    bias = params[_B] + params[f"{SECOND}bias"] if two else params[_B]
    hidden = _hidden(params, x)  # (clients, batch, d)
    logits = hidden @ weight.transpose(0, 2, 1) + bias[:, None]
    error = softmax(logits if rule.offset is None else logits + rule.offset)
    here = np.arange(len(y))[:, None], np.arange(y.shape[1]), y
    share = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1.0)  # (clients, batch)
    if rule.loss == "focal":
        share = share * focal_factor(error[here], rule.gamma)
    error[here] -= 1.0
    error *= share[:, :, None].astype(np.float32)
    back = error @ weight
    back *= hidden > 0
    np.matmul(back.transpose(0, 2, 1), x, out=out["fc1.weight"])
    np.sum(back, axis=1, out=out["fc1.bias"])
    np.matmul(error.transpose(0, 2, 1), hidden, out=out[_W])
    np.sum(error, axis=1, out=out[_B])
    if two:
        out[f"{SECOND}weight"][...], out[f"{SECOND}bias"][...] = out[_W], out[_B]


def focal_factor(p: np.ndarray, gamma: float) -> np.ndarray:
    """What the focal loss -(1-p)^gamma log p multiplies the gradient of the cross-entropy by."""
    rest = 1.0 - p
    return rest**gamma - gamma * p * rest ** max(gamma - 1.0, 0.0) * np.log(np.maximum(p, 1e-12))


class RuleCohort:
    """Clients with data, the rule by which they train, and their application.

    Pass ``cohort.app`` and ``before_round=cohort.prepare`` to a `LocalGrid`.

    Args:
        data: features and labels of each client, by partition id.
        how: the optimiser of all clients.
        rule: of the arm.
        seed: of batch order and balanced sets.
    """

    def __init__(self, data: Sequence[Examples], how: LocalTraining, rule: LocalRule, seed: int) -> None:
        self.data, self.how, self.rule, self.seed = list(data), how, rule, seed
        self._replies: dict[int, RecordDict] = {}
        self.app = ClientApp()
        self.app.train()(self._answer)

    def prepare(self, pairs: Sequence[tuple[Message, Context]]) -> None:
        """Train all clients that a round's messages address."""
        pairs = [pair for pair in pairs if pair[0].metadata.message_type == "train"]
        self._replies = {}
        if not pairs:
            return
        first: Any = pairs[0][0].content
        start = {key: array.numpy() for key, array in first["arrays"].items()}
        server_round = int(first["config"]["server-round"])
        clients = [int(context.node_config["partition-id"]) for _, context in pairs]
        data = [self.data[c] for c in clients]
        balance = None
        if self.rule.redgrape is not None:
            missing = [_reader(message) for message, _ in pairs]
            rngs = [np.random.default_rng((self.seed, server_round, c, 1)) for c in clients]
            balance = balancing(self.rule.redgrape, data, missing, rngs, start[_W].shape, self.rule.placebo)
        orders = [np.random.default_rng((self.seed, server_round, c)) for c in clients]
        trained = train_clients(start, data, self.how, orders, self.rule, balance)
        point = {key: array.numpy() for key, array in first[CLASSIFIER].items()} if CLASSIFIER in first else None
        for row, (client, (x, y)) in enumerate(zip(clients, data, strict=True)):
            arrays = ArrayRecord()
            for key, value in trained.items():
                arrays[key] = Array(value[row])
            self._replies[client] = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": len(y)})})
            if self.rule.uploads:
                self._replies[client][RECORD] = self._upload(start, x, y, point)

    def _upload(self, start: Params, x: np.ndarray, y: np.ndarray, point: Params | None) -> ArrayRecord:
        """Class-wise gradients at the received model, or, for CReFF, at its re-trained classifier."""
        weight, bias = (start[_W], start[_B]) if point is None else (point["weight"], point["bias"])
        hidden = np.maximum(x @ start["fc1.weight"].T + start["fc1.bias"], 0.0)
        tensors = torch.from_numpy(hidden @ weight.T + bias), torch.from_numpy(hidden), torch.from_numpy(y)
        by_weight, by_bias, counts = (part.numpy() for part in class_gradients(*tensors))
        held = np.flatnonzero(counts)
        enough = counts >= (self.rule.redgrape.samples_per_class if self.rule.redgrape else 1)
        return write_upload(Prototypes(held, by_weight[held], by_bias[held]), enough, dense=False)

    def _answer(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        if client not in self._replies:
            self.prepare([(message, context)])
        return Message(self._replies[client], reply_to=message)


def _reader(message: Message) -> Callable[[np.ndarray], MissingMean | None] | None:
    if RECORD not in message.content:
        return None
    record: Any = message.content[RECORD]
    return lambda balanced: read_download(record, balanced)
