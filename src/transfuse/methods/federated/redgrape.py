"""Where few classes have most examples and each client holds few classes, a federated classifier favours the frequent
classes, and no party owns the balanced data that would mend it.

RedGrape moves the classifier, step by step, along the gradient that balanced data would give. For classes that a client
holds, it takes this from a small balanced set of real examples; for those that it lacks, from global gradient
prototypes: the mean gradient of each class that the other clients sent in the rounds before. A second classifier,
dropped after training, takes up the natural distribution, so that the encoder still learns from all examples.

>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
>>> strategy = RedGrape(head="2", fraction_evaluate=0.0)               # a Flower Strategy: strategy.start(grid, start)
>>> start = initial_arrays(model, "2")                                 # the model's arrays and the second classifier's
>>> def train(message, context):                                       # what a ClientApp registers by @app.train()
...     return train_and_reply(message, context, model, loader, Config(), head="2")
>>> W, P, r = np.ones((2, 3)), np.zeros((2, 3)), np.full((2, 3), 2.0)
>>> matched(mixed(W, 1, P, 1), r)[0]                                   # half of each, then as long as r
array([2., 2., 2.])

Yang, Chen, Zhou, Meng, Zhou, Sun: Decentralized Decoupled Training for Federated Long-Tailed Learning. Transactions on
Machine Learning Research, 2024. https://arxiv.org/abs/2301.10394
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from transfuse.audit import AuditReport
from transfuse.card import Card
from transfuse.errors import UserError
from transfuse.hosts.flower.reply_check import reply_problem, usable
from transfuse.methods.federated import prototype_leakage
from transfuse.methods.federated.gradient_prototypes import (
    RECORD,
    Prototypes,
    PrototypeTable,
    matched,
    mixed,
    read_upload,
    total_bytes,
    upload_problem,
    write_download,
)
from transfuse.methods.federated.redgrape_client import (
    RebalancedHeadTrainer,
    initial_arrays,
    model_arrays,
    redgrape_train,
    train_and_reply,
)

__all__ = [
    "CARD",
    "Config",
    "RebalancedHeadTrainer",
    "RedGrape",
    "RedGrapeMixin",
    "audit",
    "initial_arrays",
    "matched",
    "mixed",
    "model_arrays",
    "redgrape_train",
    "train_and_reply",
]

CARD = Card(
    id="redgrape",
    title="Decentralized Decoupled Training for Federated Long-Tailed Learning",
    summary="Re-balances the classifier of a federation with a long tail of rare classes, without balanced data.",
    authors="Wenkai Yang, Deli Chen, Hao Zhou, Fandong Meng, Jie Zhou, Xu Sun",
    year=2024,
    venue="Transactions on Machine Learning Research",
    url="https://arxiv.org/abs/2301.10394",
    family="federated",
    host="Flower (flwr.serverapp.strategy.Strategy), PyTorch clients",
    entry="transfuse.methods.federated.redgrape.RedGrape",
    needs=(
        "a Flower server and client app",
        "a model whose head is a torch.nn.Linear",
        "that clients upload gradients",
    ),
    data="any classification; long-tailed classes, of which clients hold few",
    problems=(
        "rare classes are never predicted in federated training",
        "long-tailed or imbalanced classes spread over clients",
        "re-balance a classifier when a client lacks most classes",
        "what do class-wise gradients reveal about a client",
    ),
    extra="federated",
    requires=("flwr", "torch"),
    differs=(
        "missing classes without a prototype do not count in the mix; the reference code counts them with the others",
        "gradients are cleared before each backward pass; the reference code clears them only after a balanced one, so "
        "that its balancing gradient holds the last natural one, and natural ones add up where nothing is balanced",
        "the balanced batch passes the encoder in evaluation mode, so that it leaves normalisation statistics alone",
        "the head is named; the reference code takes every layer whose name contains fc, classifier or linear_2",
        "the mean over missing classes is a new array; the reference code adds in place onto the received prototypes",
        "once a client has told its classes, it is sent the mean over those it lacks instead of all prototypes",
        "the second classifier starts at zero, so that a round begins with the deployed model (the start is inferred)",
        "its CReFF baseline deploys the re-trained bias too; the reference code's port deploys the weight alone",
        "new: prototypes can expire, be clipped, get noise, be withheld for rare classes, or be sent for a secure sum",
        "new: broken replies are left out and named; the leakage of uploads can be audited",
    ),
    status="experimental",
)


@dataclass(frozen=True)
class Config:
    """How clients train and what is exchanged. Server and clients of a federation share it.

    Attributes:
        balance_rate: lambda, the length of the balancing step in units of the classifier's gradient step.
        samples_per_class: T; classes with at least so many local examples give exactly so many to the balanced set.
        direction: what balances: "both", "local" (real examples alone) or "prototypes" (those of all classes alone).
        second_classifier: whether W + V is trained and W deployed; without it W does both.
        share_second: whether V is averaged over clients; else each client keeps its own.
        match: the norm that the balancing gradient takes: of the classifier's "gradient", or of the "clipped" one.
        count_missing: weight of the prototypes in the mix: the classes "known" to be missing, or "all" missing ones.
        refresh: local steps for which features of the balanced set are used before they are computed anew.
        epochs: local epochs a round.
        rate: local learning rate, where the client gives no optimiser of its own.
        momentum: of that optimiser.
        clip: norm to which the gradient of a local step is clipped.
        download: "missing" sends the mean that a client needs, as far as its classes are known; "all" everything.
        upload: "held" sends the client's classes; "dense" all classes with zeros, which a secure sum can add up.
        min_count: classes with fewer local examples are not uploaded.
        prototype_clip: norm to which each uploaded prototype is clipped; None means none.
        noise_std: standard deviation of Gaussian noise on each uploaded number.
        max_age: rounds after which the prototype of a class that nobody held is forgotten; None means never.
    """

    balance_rate: float = 0.1  # reference script
    samples_per_class: int = 8  # reference script
    direction: Literal["both", "local", "prototypes"] = "both"  # the method; the others are its ablations
    second_classifier: bool = True  # the method; without is an ablation
    share_second: bool = True  # reference script (aggregate_ba)
    match: Literal["gradient", "clipped"] = "gradient"  # reference code; "clipped" is safer where gradients explode
    count_missing: Literal["known", "all"] = "known"  # "all" over-weights the few prototypes of early rounds
    refresh: int = 1  # the encoder moves at each step; the reference code computes the features at each
    epochs: int = 5  # reference script
    rate: float = 0.1  # reference script
    momentum: float = 0.9  # reference script
    clip: float = 1.0  # reference code
    download: Literal["missing", "all"] = "missing"  # C times fewer bytes than all prototypes
    upload: Literal["held", "dense"] = "held"  # fewer bytes; "dense" hides which classes a client holds
    min_count: int = 1  # the paper; a class with one example uploads that example's features
    prototype_clip: float | None = None  # the paper has none
    noise_std: float = 0.0  # the paper has none
    max_age: int | None = None  # the paper keeps prototypes for ever

    def __post_init__(self) -> None:
        if not self.balance_rate >= 0.0 or not self.noise_std >= 0.0:
            raise UserError(f"balance_rate {self.balance_rate}, noise_std {self.noise_std}", "numbers of at least 0")
        if min(self.samples_per_class, self.refresh, self.epochs, self.min_count) < 1:
            given = (self.samples_per_class, self.refresh, self.epochs, self.min_count)
            raise UserError(f"samples_per_class, refresh, epochs, min_count = {given}", "numbers of at least 1")
        if not (self.rate > 0.0 and self.clip > 0.0 and 0.0 <= self.momentum < 1.0):
            given_rates = (self.rate, self.clip, self.momentum)
            raise UserError(f"rate, clip, momentum = {given_rates}", "two positive numbers and one in [0, 1)")
        if self.prototype_clip is not None and not self.prototype_clip > 0.0:
            raise UserError(f"prototype_clip {self.prototype_clip}", "a positive norm, or None")
        if self.max_age is not None and self.max_age < 0:
            raise UserError(f"max_age {self.max_age}", "a number of rounds, or None")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name} {getattr(self, name)!r}", f"one of {', '.join(choices)}")


_CHOICES = {
    "direction": ("both", "local", "prototypes"),
    "match": ("gradient", "clipped"),
    "count_missing": ("known", "all"),
    "download": ("missing", "all"),
    "upload": ("held", "dense"),
}


class RedGrapeMixin:
    """Adds gradient prototypes to any strategy built on Flower's FedAvg: ``class X(RedGrapeMixin, FedProx)``.

    The model, with the second classifier, is aggregated by the parent. Beside it, each message carries a record
    `prototypes` down and each reply one up. A reply with other shapes or with values that are not finite is left out,
    with its prototypes, and the log says so.

    The aggregated metrics gain `redgrape_classes` (classes with a prototype), `redgrape_oldest` (rounds since the
    longest unseen of them was renewed), `redgrape_refused`, and `redgrape_down_bytes` and `redgrape_up_bytes` (of the
    prototypes, over all clients of the round).

    Args:
        head: name of the model's final `torch.nn.Linear`, as in its state dict.
        redgrape: the settings.

    Attributes:
        table: the prototypes; None before the first round.
        balanced: node id -> classes that the node said it can balance by itself, bool (C,).
    """

    weighted_by_key: str  # FedAvg's own

    def __init__(self, *args: Any, head: str, redgrape: Config | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head, self.redgrape = head, redgrape or Config()
        self.table: PrototypeTable | None = None
        self.balanced: dict[int, np.ndarray] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._down_bytes = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold (see `hosts.flower.checkpoint`): the prototypes, and who can balance what."""
        if self.table is None:
            return {}
        balanced = {f"balanced.{node}": classes for node, classes in self.balanced.items()}
        return {**self.table.state(), **balanced}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        classes, _, width = state["weight"].shape
        self.table = PrototypeTable(classes, width, self.redgrape.max_age)
        self.table.restore(state)
        told = {key: classes for key, classes in state.items() if key.startswith("balanced.")}
        self.balanced = {int(key.removeprefix("balanced.")): classes for key, classes in told.items()}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The parent's messages, each with the prototypes that its node needs."""
        self._shapes = {key: tuple(array.shape) for key, array in arrays.items()}
        if self.table is None:
            self.table = PrototypeTable(*self._head_shape(), self.redgrape.max_age)
        known = self.table.known()
        whole = write_download(known, None) if len(known.classes) else None
        messages, self._down_bytes = [], 0
        for message in super().configure_train(server_round, arrays, config, grid):  # type: ignore[misc]
            node = message.metadata.dst_node_id
            balanced = self._needs(node)
            extra = whole if balanced is None or whole is None else write_download(known, balanced)
            # Flower puts one RecordDict into all messages of a round, so each node gets a copy of its own.
            content = RecordDict(dict(message.content.items()))
            if extra is not None:
                content[RECORD] = extra
                self._down_bytes += total_bytes([extra])
            kind = message.metadata.message_type
            messages.append(Message(content=content, message_type=kind, dst_node_id=node))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The parent's aggregate of the models; the prototypes are averaged class by class."""
        if self.table is None:
            raise UserError("aggregate_train before configure_train", fix="let Strategy.start run the rounds")
        kept, refused = usable(replies, self._problem)
        uploads, up_bytes = [], 0
        for message in kept:
            if message.has_content():
                record: Any = message.content.pop(RECORD)  # Flower would average it with the model
                up_bytes += total_bytes([record])
                uploads.append(self._read(message.metadata.src_node_id, record))
        if uploads:
            self.table.update(uploads)
        arrays, metrics = super().aggregate_train(server_round, kept)  # type: ignore[misc]
        if arrays is None:
            return arrays, metrics
        metrics = MetricRecord() if metrics is None else metrics
        have = self.table.have
        metrics["redgrape_classes"] = int(have.sum())
        metrics["redgrape_oldest"] = int(self.table.age[have].max()) if have.any() else 0
        metrics["redgrape_refused"] = len(refused)
        metrics["redgrape_down_bytes"], metrics["redgrape_up_bytes"] = self._down_bytes, up_bytes
        return arrays, metrics

    def _needs(self, node: int) -> np.ndarray | None:
        """The classes that a node does not need a prototype of, bool (C,); None where it needs all, or is not known."""
        if self.redgrape.direction == "local":
            return np.ones(self._head_shape()[0], dtype=bool)
        whole = self.redgrape.download == "all" or self.redgrape.direction == "prototypes"
        return None if whole else self.balanced.get(node)

    def _head_shape(self) -> tuple[int, int]:
        shape = self._shapes.get(f"{self.head}.weight", ())
        if len(shape) != 2:
            raise UserError(
                f"head {self.head!r}, whose weight is not a matrix among {', '.join(self._shapes)}",
                "the name of the model's final torch.nn.Linear",
            )
        return shape[0], shape[1]

    def _problem(self, message: Message) -> str:
        own = RecordDict({name: record for name, record in message.content.items() if name != RECORD})
        if len(own.array_records) != 1:
            return "its records are not those of the other clients"
        name = next(iter(own.array_records))
        record = message.content.array_records.get(RECORD)
        return reply_problem(message, self._shapes, name, self.weighted_by_key) or upload_problem(
            record, *self._head_shape()
        )

    def _read(self, node: int, record: ArrayRecord) -> Prototypes:
        if "balanced" in record:
            self.balanced[node] = record["balanced"].numpy().astype(bool)
        return read_upload(record)


class RedGrape(RedGrapeMixin, FedAvg):
    """FedAvg with gradient prototypes, for clients that answer with `train_and_reply`.

    Args:
        head: name of the model's final `torch.nn.Linear`, as in its state dict.
        redgrape: the settings, the same as the clients'.
        **kwargs: those of Flower's FedAvg.
    """


def audit(
    features: Annotated[
        Path, "npz: features (n,d), labels (n), client (n), weight (C,d), bias (C); or uploads, see below"
    ],
    min_count: Annotated[
        int, "withhold classes with fewer examples, as the setting of this name would"
    ] = Config.min_count,
    prototype_clip: Annotated[float | None, "clip each prototype to this norm, likewise"] = Config.prototype_clip,
    noise_std: Annotated[float, "noise on each uploaded number, likewise"] = Config.noise_std,
    draws: Annotated[int, "draws of the null calibration"] = 300,
) -> AuditReport:
    """What do class-wise gradients reveal about the examples behind them, and does a defence help?

    With features, labels and owners of examples and the classifier, uploads are made as RedGrape or CReFF would, and
    features recovered from them are compared with the examples that went in and with ones that did not. With captured
    uploads alone (`upload_weight` (u,C,d) and `upload_bias` (u,C)), it tells which ones stem from a single example.
    """
    settings = Config(min_count=min_count, prototype_clip=prototype_clip, noise_std=noise_std)
    return prototype_leakage.report(
        prototype_leakage.read_case(features),
        min_count=settings.min_count,
        clip=settings.prototype_clip,
        noise_std=settings.noise_std,
        draws=draws,
        subject=str(features),
    )
