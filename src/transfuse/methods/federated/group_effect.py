"""What averaging did to a held-out task, for any Flower run: the Group Effect, and what each client adds or costs.

Group Effect of a round: score of the aggregated model minus the mean score of the clients' models before aggregation;
below zero, averaging transferred negatively. A client's harm: score of the mean without it, minus that of the mean of
all. Both need a score on held-out data of the task that counts; higher is better.

The paper names the criterion; its formula here is inferred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from transfuse.audit import AuditReport, transfer_audit
from transfuse.errors import UserError
from transfuse.hosts.flower.reply_check import array_problem

Weights = Mapping[str, np.ndarray]
Evaluate = Callable[[dict[str, np.ndarray]], Any]
ClientData = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class RoundEffect:
    """Scores of one round on a held-out task, higher better.

    Attributes:
        round: its number.
        aggregate: of the model that the strategy returned.
        clients: who took part, as ids of any kind.
        local: of each client's model before aggregation, in the order of `clients`.
        mean: of the weighted mean of the clients' models; NaN where it was not measured.
        without: of that mean without each client; empty where it was not measured, or with one client.
        without_error: standard error of ``without - mean`` from the sampling of held-out examples; may be empty.
    """

    round: int
    aggregate: float
    clients: tuple[Any, ...]
    local: tuple[float, ...]
    mean: float = float("nan")
    without: tuple[float, ...] = ()
    without_error: tuple[float, ...] = ()

    @property
    def effect(self) -> float:
        """The Group Effect: aggregate minus mean local score."""
        return self.aggregate - float(np.mean(self.local))

    @property
    def against_best(self) -> float:
        """Aggregate minus the best local score."""
        return self.aggregate - max(self.local)


def measure_round(
    server_round: int,
    models: Mapping[Any, Weights],
    aggregate: Weights,
    evaluate: Evaluate,
    weights: Mapping[Any, float] | None = None,
    leave_out: bool = True,
) -> RoundEffect:
    """Score a round's clients, their mean, the mean without each, and what the strategy made of them.

    Args:
        server_round: its number.
        models: client -> named arrays as uploaded.
        aggregate: named arrays that the strategy returned.
        evaluate: score of named arrays: a number, or one a held-out example (n,), such as right and wrong.
        weights: of the clients in the mean; None means equal.
        leave_out: whether to measure the mean without each client, one more evaluation a client.
    """
    if not models:
        raise UserError("a round without client models", "at least one")
    clients = list(models)
    shares = np.array([1.0 if weights is None else float(weights[client]) for client in clients])
    local = tuple(_score(evaluate, models[client]) for client in clients)
    final = _score(evaluate, aggregate)
    if not leave_out or len(clients) < 2:
        return RoundEffect(server_round, final, tuple(clients), local)
    stacked = {key: np.stack([np.asarray(models[c][key]) for c in clients]) for key in models[clients[0]]}
    everyone = _samples(evaluate, _weighted_mean(stacked, shares))
    kept = 1.0 - np.eye(len(clients))  # a row for each client left out
    others = [_samples(evaluate, _weighted_mean(stacked, shares * row)) for row in kept]
    errors = tuple(_error(other - everyone) for other in others) if everyone.ndim else ()
    without = tuple(float(other.mean()) for other in others)
    return RoundEffect(server_round, final, tuple(clients), local, float(everyone.mean()), without, errors)


def _weighted_mean(stacked: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Mean over the first axis, in the arrays' own precision."""
    p = weights / weights.sum()
    return {key: np.tensordot(p, value, axes=1).astype(value.dtype) for key, value in stacked.items()}


def _samples(evaluate: Evaluate, arrays: Weights) -> np.ndarray:
    found = np.asarray(evaluate(dict(arrays)), dtype=np.float64)
    if found.ndim > 1 or found.size == 0 or not np.isfinite(found).all():
        raise UserError(f"evaluate returned {found}", "a finite score, or one for each held-out example")
    return found


def _score(evaluate: Evaluate, arrays: Weights) -> float:
    return float(_samples(evaluate, arrays).mean())


def _error(differences: np.ndarray) -> float:
    return float(differences.std(ddof=1) / np.sqrt(len(differences))) if len(differences) > 1 else 0.0


class GroupEffectMixin:
    """Measures the Group Effect in any strategy built on Flower's FedAvg. Put it first among the bases.

    ``class Watched(GroupEffectMixin, FedAdam): ...`` and then ``Watched(evaluate=score, eta=0.03)``. Nothing of the run
    changes. The aggregated metrics gain `ge` and `ge_best` (against the best client). With `evaluate` None it is off.

    Args:
        evaluate: score of named arrays on the held-out task, higher better; a number or one an example (n,).
        every: rounds from one measurement to the next.
        leave_out: whether to measure the mean without each client too.

    Attributes:
        effects: one record a measured round, for `write_effects` and `transfuse audit fedka`.
    """

    def __init__(
        self, *args: Any, evaluate: Evaluate | None = None, every: int = 1, leave_out: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if every < 1:
            raise UserError(f"every {every}", "at least 1")
        self.evaluate, self.every, self.leave_out = evaluate, every, leave_out
        self.effects: list[RoundEffect] = []

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold (see `hosts.flower.checkpoint`): the rounds for the audit."""
        return {"effects": [asdict(effect) for effect in self.effects]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        rows: list[dict[str, Any]] = [
            {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
            for row in state["effects"]
        ]
        self.effects = [RoundEffect(**row) for row in rows]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The parent's aggregate; the uploaded models are scored beside it."""
        replies = list(replies)
        name, key = self.arrayrecord_key, self.weighted_by_key  # type: ignore[attr-defined]
        uploads = {
            message.metadata.src_node_id: (message, message.content.array_records.get(name))
            for message in replies
            if message.has_content()
        }
        arrays, metrics = super().aggregate_train(server_round, replies)  # type: ignore[misc]
        if self.evaluate is None or arrays is None or (server_round - 1) % self.every:
            return arrays, metrics
        shapes = {array: tuple(value.shape) for array, value in arrays.items()}
        usable = {n: (m, r) for n, (m, r) in uploads.items() if r is not None and not array_problem(r, shapes)}
        if not usable:
            return arrays, metrics
        models = {node: _named(record) for node, (_, record) in usable.items()}
        weights = {node: _weight(message, key) for node, (message, _) in usable.items()}  # as the parent used them
        effect = measure_round(server_round, models, _named(arrays), self.evaluate, weights, self.leave_out)
        self.effects.append(effect)
        metrics = MetricRecord() if metrics is None else metrics
        metrics.update({"ge": effect.effect, "ge_best": effect.against_best})
        return arrays, metrics


def _named(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {key: array.numpy() for key, array in record.items()}


def _weight(message: Message, key: str) -> float:
    found = [numbers[key] for numbers in message.content.metric_records.values() if key in numbers]
    value = found[0] if found else 1.0
    return float(value) if isinstance(value, int | float) and value > 0 else 1.0


def client_transfer_audit(
    federate: Callable[[Sequence[ClientData], int], float],
    clients: Sequence[ClientData],
    suspect: int,
    *,
    seeds: Sequence[int] = tuple(range(10)),
    minimum: float = 0.0,
) -> AuditReport:
    """Does one client's data help the federation's target? `transfer_audit` with the client as the source.

    Slower and stronger than leaving its uploads out of the mean: each seed runs the federation four times, with the
    client, without it, with its labels shuffled, and with noise in place of its features.

    Args:
        federate: called as ``federate(clients, seed)``; runs a federation of these clients, returns the held-out score.
        clients: features and labels of each client.
        suspect: index of the client in question.
        seeds: distinct seeds, at least five.
        minimum: the gain below which the client is not worth having.
    """
    if not 0 <= suspect < len(clients) or len(clients) < 2:
        raise UserError(f"suspect {suspect} of {len(clients)} clients", "an index into at least two clients")
    others = [data for index, data in enumerate(clients) if index != suspect]

    def fit_score(source: ClientData | None, seed: int) -> float:
        return federate(others if source is None else [*others, source], seed)

    return transfer_audit(fit_score, clients[suspect], seeds=seeds, minimum=minimum, subject=f"client {suspect}")
