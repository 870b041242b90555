"""Federations of the FedGLAD study: a world of clients, one run of a strategy in it, what a round was worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedProx, Strategy
from scipy import stats

from transfuse.data.images import Labelled, digits, office_caltech, stratified_split
from transfuse.hosts.flower.client_sampling import (
    AdaFLSampler,
    ClientSampler,
    MultinomialSampler,
    SampledStrategy,
    UniformSampler,
)
from transfuse.hosts.flower.cohort import Cohort, LocalTraining, Params, accuracy, init_mlp
from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.hosts.flower.partition import (
    by_domain_and_class,
    label_counts,
    prior_dirichlet,
    total_variation,
)
from transfuse.methods.federated.fedglad import GLADMixin, gsi
from transfuse.study.streams import Streams

OTHER_DRAWS = 50  # of the same round, judged beside the one that was made


class PairedAvg(SampledStrategy, FedAvgM):
    """Flower's FedAvg with a constant server learning rate (FedAvgM without momentum)."""


class PairedAdam(SampledStrategy, FedAdam):
    """Flower's FedAdam."""


class PairedGLAD(SampledStrategy, GLADMixin, FedAvg):
    """FedAvg with GLAD."""


class PairedGLADProx(SampledStrategy, GLADMixin, FedProx):
    """FedProx with GLAD."""


class PairedGLADAdam(SampledStrategy, GLADMixin, FedAdam):
    """FedAdam with GLAD."""


@dataclass(frozen=True)
class World:
    """Clients, held-out data and initial weights: what all arms of a condition share."""

    cohort: Cohort
    counts: np.ndarray  # examples of each class at each client, (clients, classes)
    validation: Labelled
    test: Labelled
    initial: Params


@dataclass
class Trajectory:
    """One run: accuracies from round 0 on, and what GLAD recorded where it ran."""

    validation: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    steps: list[np.ndarray] = field(default_factory=list)  # factors on the constant step, a vector a round

    def late(self, which: str, rounds: int) -> float:
        """Mean accuracy over the last rounds: neither the best one nor the last alone."""
        return float(np.mean(getattr(self, which)[-rounds:]))


def digits_world(
    alpha: float, clients: int, hidden: int, held_out: tuple[int, int], how: LocalTraining, streams: Streams
) -> World:
    """Digits on clients of equal size with label mixes around the prior; `held_out` gives test and validation sizes."""
    data = digits()
    (test, validation), train = stratified_split(data.labels, held_out, streams.split.numpy())
    parts = prior_dirichlet(data.labels[train], clients, alpha, streams.split.child("clients", alpha).numpy())
    return _world(data, [train[part] for part in parts], validation, test, hidden, how, streams)


def office_world(hidden: int, how: LocalTraining, streams: Streams) -> World:
    """Office-Caltech10: one client for each pair of domain and class; 25 % test, 15 % validation."""
    data = office_caltech()
    groups = by_domain_and_class(data.domains, data.labels)
    rng = streams.split.numpy()
    train, validation, test = [], [], []
    for group in groups:
        order = rng.permutation(group)
        cuts = round(0.25 * len(order)), round(0.25 * len(order)) + max(1, round(0.15 * len(order)))
        test.append(order[: cuts[0]])
        validation.append(order[cuts[0] : cuts[1]])
        train.append(order[cuts[1] :])
    return _world(data, train, np.concatenate(validation), np.concatenate(test), hidden, how, streams)


def _world(
    data: Labelled,
    parts: Sequence[np.ndarray],
    validation: np.ndarray,
    test: np.ndarray,
    hidden: int,
    how: LocalTraining,
    streams: Streams,
) -> World:
    cohort = Cohort([(data.features[p], data.labels[p]) for p in parts], how, streams.order.integer())
    initial = init_mlp((data.features.shape[1], hidden, data.classes), streams.init.numpy())
    counts = label_counts(parts, data.labels, data.classes)
    return World(cohort, counts, data.take(validation), data.take(test), initial)


def make_sampler(policy: str, clients: int, seed: int) -> ClientSampler:
    """The client sampler of a policy; equal seeds draw alike in every arm."""
    kinds = {"uniform": UniformSampler, "md": MultinomialSampler, "adafl": AdaFLSampler}
    return kinds[policy](clients, seed)


def federate(strategy: Strategy, world: World, rounds: int, proximal: float = 0.0) -> Trajectory:
    """Run a strategy in a world, through Flower's own loop, and evaluate the global model after each round."""
    trajectory = Trajectory()

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        params = {key: array.numpy() for key, array in arrays.items()}
        trajectory.validation.append(accuracy(params, world.validation.features, world.validation.labels))
        trajectory.test.append(accuracy(params, world.test.features, world.test.labels))

    grid = LocalGrid(world.cohort.app, len(world.counts), before_round=world.cohort.prepare, on_error="raise")
    config = ConfigRecord({"proximal-mu": proximal}) if proximal else None
    with quiet_flower():
        strategy.start(grid, to_record(world.initial), num_rounds=rounds, train_config=config, evaluate_fn=evaluate)
    return trajectory


def to_record(params: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Parameters as Flower sends them."""
    return ArrayRecord({key: Array(value) for key, value in params.items()})


class GivenSteps:
    """A step adapter that plays back factors: for controls, and for a step that looks at all clients."""

    def __init__(self, steps: Callable[[int], np.ndarray]) -> None:
        self.steps = steps

    def update(self, indicators: np.ndarray, round_index: int) -> np.ndarray:
        """The factors of a round, whatever the indicators."""
        return self.steps(round_index)


class RecordingSteps:
    """A step adapter that hands on another's factors and keeps them."""

    def __init__(self, inner, kept: list[np.ndarray]) -> None:
        self.inner, self.kept = inner, kept

    @property
    def ratio(self) -> np.ndarray:
        """Ratios before clipping, of the inner adapter."""
        return self.inner.ratio

    def update(self, indicators: np.ndarray, round_index: int) -> np.ndarray:
        """The inner adapter's factors."""
        self.kept.append(self.inner.update(indicators, round_index))
        return self.kept[-1]


@dataclass(frozen=True)
class Look:
    """What a round's draw was worth, seen with all clients trained from the same weights."""

    gsi: float
    gsi_unit: float  # the same for updates scaled to one length: disagreement in direction alone
    spread: float  # standard deviation over mean of the updates' lengths
    best_step: float  # <gbar_S, G> / |gbar_S|^2
    distance: float  # total variation between pooled and population labels
    within_eta: float  # rank correlation of indicator and optimal step over other draws of this very round
    within_tv: float  # the same of indicator and balance of the pool


def look(world: World, start: Params, sampled: Mapping[int, float], server_round: int) -> Look:
    """Train all clients from `start` and judge the draw.

    Args:
        world: the clients.
        start: global weights of the round.
        sampled: partition id -> weight in the draw.
        server_round: the round, which fixes batch orders.
    """
    everyone = list(range(len(world.counts)))
    trained = world.cohort.train(start, everyone, server_round)
    updates = np.concatenate(
        [(trained[key] - start[key]).reshape(len(everyone), -1) for key in start], axis=1, dtype=np.float64
    )
    sizes = world.cohort.sizes.astype(np.float64)
    chosen = sorted(sampled)
    weights = np.array([sampled[c] * sizes[c] for c in chosen])
    lengths = np.linalg.norm(updates[chosen], axis=1)
    unit = updates[chosen] / np.maximum(lengths, 1e-12)[:, None]
    products = updates @ updates.T  # (clients, clients): all that draws of this round need
    taken = np.zeros((1, len(everyone)))
    taken[0, chosen] = [sampled[c] for c in chosen]
    values, best, distances = judge_draws(products, taken, sizes, world.counts)
    rng = np.random.default_rng((world.cohort.seed, server_round, 2))
    others = np.zeros((OTHER_DRAWS, len(everyone)))
    for row in others:
        row[rng.choice(len(everyone), len(chosen), replace=False)] = 1.0
    other_values, other_best, other_distances = judge_draws(products, others, sizes, world.counts)
    return Look(
        float(values[0]),
        gsi(unit, weights)[0],
        float(lengths.std() / max(lengths.mean(), 1e-12)),
        float(best[0]),
        float(distances[0]),
        spearman(other_values, other_best),
        spearman(other_values, -other_distances),
    )


def judge_draws(
    products: np.ndarray, draws: np.ndarray, sizes: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indicator, optimal step and label distance of many draws of one round.

    Args:
        products: inner products of all clients' updates, (clients, clients).
        draws: how often each draw takes each client, (draws, clients).
        sizes: examples of each client, (clients,).
        counts: examples of each class at each client, (clients, classes).

    Returns:
        Three arrays, (draws,).
    """
    p = draws * sizes
    p /= p.sum(axis=1, keepdims=True)
    square = np.einsum("sc,cd,sd->s", p, products, p, optimize=True)  # |gbar_S|^2
    safe = np.maximum(square, 1e-30)
    overall = sizes / sizes.sum()
    best = np.where(square > 0, p @ (products @ overall) / safe, 1.0)  # <gbar_S, G> / |gbar_S|^2
    values = np.sqrt(np.where(square > 0, p @ np.diag(products) / safe, 1.0))
    population = counts.sum(axis=0)
    distances = np.array([total_variation(pool, population) for pool in draws @ counts])
    return values, best, distances


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, 0 where one side does not vary."""
    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return 0.0
    return float(stats.spearmanr(x, y).statistic)


def half_split_floor(world: World, start: Params, client: int, halves: int, server_round: int) -> float:
    """Indicator among random halves of one client's data: what local noise alone gives."""
    x, y = world.cohort.data[client]
    rng = np.random.default_rng((world.cohort.seed, server_round, client, 1))
    picks = [rng.permutation(len(y))[: max(1, len(y) // 2)] for _ in range(halves)]
    noise = Cohort([(x[pick], y[pick]) for pick in picks], world.cohort.how, world.cohort.seed + 1)
    trained = noise.train(start, range(halves), server_round)
    updates = np.concatenate([(trained[key] - start[key]).reshape(halves, -1) for key in start], axis=1)
    return gsi(updates)[0]
