"""CReFF, RedGrape's strongest baseline: the server re-trains the classifier on features that it makes up.

The clients train as under FedAvg and send class-wise gradients of the classifier. The server moves synthetic features
of each class until they give the same gradient, then trains a fresh classifier on them. This one is deployed, and at it
the clients take their next gradients.

Shang, Lu, Huang, Wang: Federated Learning on Heterogeneous and Long-Tailed Data via Classifier Re-Training with
Federated Features. IJCAI 2022. Here weight and bias of the re-trained classifier are deployed; the port in RedGrape's
reference code deploys the weight with FedAvg's bias.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from transfuse.hosts.flower.reply_check import reply_problem, usable
from transfuse.methods.federated.gradient_prototypes import RECORD, PrototypeTable, read_upload, upload_problem

CLASSIFIER = "classifier"  # the record that carries the re-trained classifier to the clients


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Probabilities along an axis."""
    shifted = np.exp(logits - logits.max(axis=axis, keepdims=True))
    shifted /= shifted.sum(axis=axis, keepdims=True)
    return shifted


def feature_gradients(
    features: np.ndarray, classes: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The classifier's mean gradient on each class's features, and the errors q - e_c.

    Args:
        features: (held, m, d).
        classes: (held,).
        weight: (C, d).
        bias: (C,).

    Returns:
        (held, C, d) and (held, C, m); NumPy sums over few classes faster when they are not the last axis.
    """
    error = softmax(weight @ features.transpose(0, 2, 1) + bias[:, None], axis=1)
    error[np.arange(len(classes)), classes] -= 1.0
    return error @ features / features.shape[1], error


def match_features(
    features: np.ndarray,
    classes: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    steps: int,
    rate: float,
) -> np.ndarray:
    """Features whose gradients point as `target` does, row by row: descent on the sum over rows of 1 - cosine.

    The derivative is taken in closed form, for all classes at once; the published way differentiates twice through the
    loss of one class after the other.

    Args:
        features: (held, m, d), where to start.
        classes: (held,).
        target: averaged gradients of real features, (held, C, d).
        weight: of the classifier at which they were taken, (C, d).
        bias: (C,).
        steps: of descent.
        rate: its rate.
    """
    features, m, held = features.copy(), features.shape[1], np.arange(len(classes))
    lengths = np.linalg.norm(target, axis=2, keepdims=True)  # (held, C, 1)
    unit = target / np.maximum(lengths, 1e-12)
    for _ in range(steps):
        gradient, error = feature_gradients(features, classes, weight, bias)
        norm = np.maximum(np.linalg.norm(gradient, axis=2, keepdims=True), 1e-12)
        cosine = (gradient * unit).sum(axis=2, keepdims=True) / norm
        outer = (cosine * gradient / norm - unit) / norm  # derivative by the gradient's rows, (held, C, d)
        by_error = outer @ features.transpose(0, 2, 1)  # (held, C, m)
        by_logits = error.copy()
        by_logits[held, classes] += 1.0  # probabilities
        by_logits *= by_error - (by_error * by_logits).sum(axis=1, keepdims=True)
        features -= (rate / m) * (error.transpose(0, 2, 1) @ outer + by_logits.transpose(0, 2, 1) @ weight)
    return features


def train_classifier(
    features: np.ndarray, labels: np.ndarray, classes: int, steps: int, rate: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A fresh linear classifier by gradient descent on the mean cross-entropy, (C, d) and (C,)."""
    bound = 1.0 / np.sqrt(features.shape[1])
    weight = rng.uniform(-bound, bound, (classes, features.shape[1])).astype(features.dtype)
    bias = rng.uniform(-bound, bound, classes).astype(features.dtype)
    columns, rows = np.ascontiguousarray(features.T), np.arange(len(labels))
    for _ in range(steps):
        error = softmax(weight @ columns + bias[:, None], axis=0)  # (C, n)
        error[labels, rows] -= 1.0
        weight -= rate / len(labels) * (error @ features)
        bias -= rate * error.mean(axis=1)
    return weight, bias


class CReFF(FedAvg):
    """FedAvg whose classifier is re-trained on federated features after each round.

    The clients get, beside the model, a record `classifier` (`weight`, `bias`) from the second round on, take their
    class-wise gradients with it, and reply with the record `prototypes` that RedGrape's clients send.

    Args:
        head: name of the classifier, as in the model's state dict.
        features_per_class: m.
        match_steps: of descent on the features a round.
        match_rate: its rate.
        train_steps: of descent for the classifier a round, over all features at once. CReFF's own 300 epochs of batches
            of 32 at rate 0.01 go as far as 300 steps at 0.3 over 1000 features do.
        train_rate: its rate.
        seed: of the first features and of each round's fresh classifier.
        **kwargs: those of Flower's FedAvg.

    Attributes:
        classifier: weight (C, d) and bias (C,), the ones to deploy; None before the first round.
    """

    def __init__(
        self,
        *,
        head: str,
        features_per_class: int = 100,
        match_steps: int = 100,
        match_rate: float = 0.1,
        train_steps: int = 300,
        train_rate: float = 0.3,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.head, self.features_per_class = head, features_per_class
        self.match_steps, self.match_rate = match_steps, match_rate
        self.train_steps, self.train_rate = train_steps, train_rate
        self.rng = np.random.default_rng(seed)
        self.classifier: tuple[np.ndarray, np.ndarray] | None = None
        self.features = np.empty(0)
        self._point: tuple[np.ndarray, np.ndarray] | None = None  # where this round's gradients are taken
        self._shapes: dict[str, tuple[int, ...]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The parent's messages, with the re-trained classifier."""
        self._shapes = {key: tuple(array.shape) for key, array in arrays.items()}
        own = arrays[f"{self.head}.weight"].numpy(), arrays[f"{self.head}.bias"].numpy()
        self._point = self.classifier or own
        if not self.features.size:
            classes, width = own[0].shape
            shape = (classes, self.features_per_class, width)
            self.features = self.rng.normal(size=shape).astype(own[0].dtype)
            self.table = PrototypeTable(classes, width)
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if self.classifier is not None:
            record = ArrayRecord(
                {key: Array(part) for key, part in zip(("weight", "bias"), self.classifier, strict=True)}
            )
            for message in messages:
                message.content[CLASSIFIER] = record  # all messages of a round share their records
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The parent's aggregate; then features and classifier move on."""
        kept, _ = usable(replies, self._problem)
        uploads = []
        for message in kept:
            if message.has_content():
                record: Any = message.content.pop(RECORD)
                uploads.append(read_upload(record))
        arrays, metrics = super().aggregate_train(server_round, kept)
        if uploads:
            self._retrain(np.flatnonzero(self.table.update(uploads)))
        return arrays, metrics

    def _problem(self, message: Message) -> str:
        own = RecordDict({name: record for name, record in message.content.items() if name != RECORD})
        if len(own.array_records) != 1:
            return "its records are not those of the other clients"
        record = message.content.array_records.get(RECORD)
        name, shape = next(iter(own.array_records)), self._shapes[f"{self.head}.weight"]
        return reply_problem(message, self._shapes, name, self.weighted_by_key) or upload_problem(
            record, shape[0], shape[1]
        )

    def _retrain(self, renewed: np.ndarray) -> None:
        """Only classes that somebody held this round have a gradient at this round's classifier."""
        assert self._point is not None
        weight, bias = self._point
        self.features[renewed] = match_features(
            self.features[renewed], renewed, self.table.weight[renewed], weight, bias, self.match_steps, self.match_rate
        )
        m, width = self.features_per_class, weight.shape[1]
        seen = np.flatnonzero(self.table.have)  # features of the others are still noise
        flat, labels = self.features[seen].reshape(-1, width), np.repeat(seen, m)
        self.classifier = train_classifier(flat, labels, len(bias), self.train_steps, self.train_rate, self.rng)
