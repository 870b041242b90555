"""Federations of the RedGrape study: long-tailed clients, balanced held-out data, one run of a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg, Strategy

from transfuse.data.images import Labelled, digits, office_caltech
from transfuse.data.mnist import mnist_5k
from transfuse.hosts.flower.client_sampling import SampledStrategy
from transfuse.hosts.flower.cohort import LocalTraining, Params, init_mlp, predict
from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.hosts.flower.long_tail import cut_long_tail, exponential_sizes
from transfuse.hosts.flower.partition import label_counts, prior_dirichlet
from transfuse.methods.federated.creff import CReFF, train_classifier
from transfuse.methods.federated.redgrape import RedGrapeMixin
from transfuse.methods.federated.redgrape_client import SECOND
from transfuse.studies.federated.redgrape_cohort import Examples, LocalRule, RuleCohort
from transfuse.study.streams import Streams

LOADERS = {"digits": digits, "mnist": mnist_5k, "office": office_caltech}


class PairedAvg(SampledStrategy, FedAvg):
    """Flower's FedAvg."""


class PairedRedGrape(SampledStrategy, RedGrapeMixin, FedAvg):
    """RedGrape."""


class PairedCReFF(SampledStrategy, CReFF):
    """CReFF."""


@dataclass(frozen=True)
class World:
    """Clients, held-out data and initial weights: what all arms of a condition share.

    Attributes:
        data: features and labels of each client.
        counts: examples of each class at each client, (clients, C).
        order: classes from head to tail, (C,).
        validation: as many of each class.
        test: likewise.
        initial: two layers.
        seed: of batch order.
    """

    data: list[Examples]
    counts: np.ndarray
    order: np.ndarray
    validation: Labelled
    test: Labelled
    initial: Params
    seed: int


@dataclass(frozen=True)
class Task:
    """A data set's federation, and the values that each arm was tuned to on it.

    Attributes:
        ratio: examples of the most frequent class over those of the rarest.
        test: examples of each class held out for the test.
        validation: and for tuning (on other seeds) and for the oracle.
        largest: examples of the most frequent class.
        clients: how many, of equal size.
        clients_a_round: of these.
        rate: local learning rate of FedAvg.
        focal: local learning rate and gamma of the focal loss.
        adjusted: local learning rate and tau of logit adjustment.
        creff_rate: local learning rate of CReFF.
        creff: rates at which its features and its classifier descend.
        redgrape: local learning rate and lambda.
        tau_norm: local learning rate and tau of tau-normalisation.
        oracle: local learning rate, and the rate at which the oracle's classifier descends.
    """

    ratio: float
    test: int
    validation: int
    largest: int
    clients: int
    clients_a_round: int
    rate: float
    focal: tuple[float, float]
    adjusted: tuple[float, float]
    creff_rate: float
    creff: tuple[float, float]
    redgrape: tuple[float, float]
    tau_norm: tuple[float, float]
    oracle: tuple[float, float]


@dataclass
class Trajectory:
    """One run: recall of each class on held-out data from round 0 on, (rounds + 1, C), and the latest models."""

    validation: list[np.ndarray] = field(default_factory=list)
    test: list[np.ndarray] = field(default_factory=list)
    models: list[Params] = field(default_factory=list)


def make_world(source: str, task: Task, alpha: float, hidden: int, streams: Streams, long_tail: bool = True) -> World:
    """Cut a long tail from balanced data, and deal it to clients of equal size with label mixes around the prior.

    Args:
        source: "digits", "mnist" or "office".
        task: sizes.
        alpha: concentration, on the prior.
        hidden: units of the perceptron.
        streams: of the seed.
        long_tail: without, every class has the mean size of the long tail's classes.
    """
    data = LOADERS[source]()
    rng = streams.split.numpy()
    test, validation, pool = [], [], []
    for label in range(data.classes):
        mine = rng.permutation(np.flatnonzero(data.labels == label))
        test.append(mine[: task.test])
        validation.append(mine[task.test : task.test + task.validation])
        pool.append(mine[task.test + task.validation :])
    left = np.sort(np.concatenate(pool))
    sizes = exponential_sizes(task.largest, task.ratio, data.classes)
    if not long_tail:
        sizes = np.full(data.classes, round(sizes.mean()))
    kept, order = cut_long_tail(data.labels[left], sizes, streams.split.child("tail").numpy())
    train = left[kept]
    split = streams.split.child("clients", alpha, long_tail).numpy()
    parts = [train[part] for part in prior_dirichlet(data.labels[train], task.clients, alpha, split)]
    initial = init_mlp((data.features.shape[1], hidden, data.classes), streams.init.numpy())
    return World(
        [(data.features[part], data.labels[part]) for part in parts],
        label_counts(parts, data.labels, data.classes),
        order,
        data.take(np.concatenate(validation)),
        data.take(np.concatenate(test)),
        initial,
        streams.order.integer(),
    )


def federate(
    strategy: Strategy, world: World, rounds: int, how: LocalTraining, rule: LocalRule, keep: int = 0
) -> Trajectory:
    """Run a strategy in a world, through Flower's own loop, and evaluate what it would deploy after each round.

    Args:
        strategy: any of this module's.
        world: the clients.
        rounds: how many.
        how: the clients' optimiser.
        rule: what else they do.
        keep: models of so many last rounds are kept.
    """
    trajectory = Trajectory()

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        params = {key: array.numpy() for key, array in arrays.items()}
        if isinstance(strategy, CReFF) and strategy.classifier is not None:
            params["fc2.weight"], params["fc2.bias"] = strategy.classifier
        trajectory.validation.append(recall(params, world.validation))
        trajectory.test.append(recall(params, world.test))
        if server_round > rounds - keep:
            trajectory.models.append(params)

    cohort = RuleCohort(world.data, how, rule, world.seed)
    grid = LocalGrid(cohort.app, len(world.data), before_round=cohort.prepare, on_error="raise")
    start = dict(world.initial)
    if rule.redgrape is not None and rule.redgrape.second_classifier:
        start |= {f"{SECOND}{key}": np.zeros_like(start[f"fc2.{key}"]) for key in ("weight", "bias")}
    record = ArrayRecord({key: Array(value) for key, value in start.items()})
    with quiet_flower():
        strategy.start(grid, record, num_rounds=rounds, evaluate_fn=evaluate)
    return trajectory


def recall(params: Params, data: Labelled) -> np.ndarray:
    """Share of each class's examples that are recognised, (C,)."""
    right = predict(params, data.features).argmax(axis=1) == data.labels
    return np.bincount(data.labels, weights=right, minlength=data.classes) / np.bincount(data.labels)


def tau_normalised(params: Params, tau: float) -> Params:
    """The classifier with the norm of each row taken to the power 1 - tau, and no bias."""
    norms = np.linalg.norm(params["fc2.weight"], axis=1, keepdims=True)
    return {**params, "fc2.weight": params["fc2.weight"] / norms**tau, "fc2.bias": np.zeros_like(params["fc2.bias"])}


def retrained(params: Params, data: Labelled, steps: int, rate: float, rng: np.random.Generator) -> Params:
    """The classifier re-trained on balanced data (cRT), which no federation of this study has."""
    hidden = np.maximum(data.features @ params["fc1.weight"].T + params["fc1.bias"], 0.0)
    weight, bias = train_classifier(hidden, data.labels, data.classes, steps, rate, rng)
    return {**params, "fc2.weight": weight, "fc2.bias": bias}


def late(recalls: Sequence[np.ndarray], classes: np.ndarray, rounds: int) -> float:
    """Mean recall over some classes and the last rounds: neither the best round nor the last alone."""
    return float(np.mean([row[classes] for row in recalls[-rounds:]]))
