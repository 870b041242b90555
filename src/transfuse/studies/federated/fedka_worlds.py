"""Federations of the FedKA study: source domains as clients, a target at the server, one run of a strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp.strategy import FedProx
from torch import nn

from transfuse.data.images import Labelled, office_caltech
from transfuse.data.shifted_digits import shifted_digits
from transfuse.hosts.flower.client_sampling import SampledStrategy, UniformSampler
from transfuse.hosts.flower.domain_partition import by_domain
from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.federated_voting import Votes, majority_vote
from transfuse.methods.federated.fedka import Config, FedKA, KAMixin
from transfuse.methods.federated.fedka_client import train_reply
from transfuse.methods.federated.group_effect import RoundEffect
from transfuse.methods.federated.split_model import SplitModel, evaluating
from transfuse.study.streams import Streams

Pair = tuple[torch.Tensor, torch.Tensor]


class Mlp(nn.Module):
    """Two layers of features with layer normalisation, and a linear head."""

    def __init__(self, inputs: int, hidden: int, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.LayerNorm(width),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, classes)


@dataclass(frozen=True)
class World:
    """What all arms of a condition share: clients, the target's two halves, the model at the start."""

    clients: list[Pair]
    source_held_out: Pair  # of the clients' domains, for choosing settings
    adaptation: torch.Tensor  # unlabelled half of the target
    held_out: Pair  # the other half, which only scores
    model_fn: Callable[[], nn.Module]


@dataclass
class Run:
    """One run, from round 1 on, scored on the target's held-out half."""

    effects: list[RoundEffect] = field(default_factory=list)
    votes: list[float] = field(default_factory=list)  # accuracy of the uploaded models' votes
    source: float = 0.0  # last round, on held-out examples of the clients' domains

    def accuracy(self, last: int) -> float:
        """Mean over the last rounds: neither the best one nor the last alone."""
        return float(np.mean([effect.aggregate for effect in self.effects[-last:]]))

    def late(self, last: int) -> tuple[float, float, float]:
        """Accuracy of the votes, of the mean client, and of the averaged model, over the last rounds."""
        late = self.effects[-last:]
        clients = float(np.mean([np.mean(effect.local) for effect in late]))
        return float(np.mean(self.votes[-last:])), clients, float(np.mean([effect.mean for effect in late]))


def domains_of(source: str, streams: Streams) -> Labelled:
    """The examples of a data set with their domains."""
    return shifted_digits(streams.split.child("digits").numpy()) if source == "digits" else office_caltech()


def make_world(data: Labelled, target: str, settings: Any, streams: Streams, own_statistics: bool = True) -> World:
    """One client for each domain but the target; a tenth of each client's examples is held out.

    Without `own_statistics`, all are standardised by the clients' examples; the target's then have no part in it.
    """
    rng = streams.split.child("world", target).numpy()
    parts = {domain: indices for domain, (indices,) in by_domain(data.domains, rng).items()}
    goal = parts.pop(target)
    features = data.features
    if not own_statistics:
        pooled = features[np.concatenate(list(parts.values()))]
        spread = pooled.std(axis=0)
        features = ((features - pooled.mean(axis=0)) / np.where(spread > 0, spread, 1.0)).astype(np.float32)

    def pair(indices: np.ndarray) -> Pair:
        return torch.from_numpy(features[indices]), torch.from_numpy(data.labels[indices])

    cuts = {domain: len(part) // 10 for domain, part in parts.items()}
    held = np.concatenate([part[: cuts[domain]] for domain, part in parts.items()])
    clients = [pair(part[cuts[domain] :]) for domain, part in parts.items()]
    half = len(goal) // 2
    sizes = (features.shape[1], settings.hidden, settings.width, data.classes)
    model_fn = _model(sizes, settings.dropout, streams)
    return World(clients, pair(held), pair(goal[:half])[0], pair(goal[half:]), model_fn)


def one_domain(data: Labelled, domain: str, clients: int, settings: Any, streams: Streams, spoil: bool) -> World:
    """Clients that share a domain with the target, one of them (the first) with shuffled labels if `spoil`."""
    rng = streams.split.child("one domain", domain).numpy()
    members = rng.permutation(np.flatnonzero(data.domains == domain))
    held, *parts = np.array_split(members, clients + 1)
    pairs = [(torch.from_numpy(data.features[p]), torch.from_numpy(data.labels[p])) for p in (held, *parts)]
    if spoil:
        x, y = pairs[1]
        pairs[1] = x, torch.from_numpy(rng.permutation(y.numpy()))
    sizes = (data.features.shape[1], settings.hidden, settings.width, data.classes)
    return World(pairs[1:], pairs[0], pairs[0][0], pairs[0], _model(sizes, settings.dropout, streams))


def _model(sizes: tuple[int, int, int, int], dropout: float, streams: Streams) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with streams.init.seeded():
            return Mlp(*sizes, dropout)

    return make


def pooled(world: World) -> World:
    """The same with all source examples at one client: what a server that may see everything could do."""
    x, y = (torch.cat(parts) for parts in zip(*world.clients, strict=True))
    return World([(x, y)], world.source_held_out, world.adaptation, world.held_out, world.model_fn)


def noise_like(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Noise with each feature's mean and spread: the placebo for a target."""
    normal = torch.from_numpy(rng.standard_normal(tuple(x.shape)).astype(np.float32))
    return x.mean(dim=0) + x.std(dim=0) * normal


class PairedFedKA(SampledStrategy, FedKA):
    """FedKA whose order of clients follows from the seed and the round, so that sums are the same in every run."""


class PairedFedKAProx(SampledStrategy, KAMixin, FedProx):
    """Knowledge alignment on FedProx."""


class ShuffledVotes(PairedFedKA):
    """The placebo for voting: the same pseudo-labels, dealt to the target samples at random."""

    def pseudo_labels(self, server_round: int, x: torch.Tensor, models: Sequence[ArrayRecord]) -> Votes:
        """Votes in random order."""
        votes = super().pseudo_labels(server_round, x, models)
        order = torch.randperm(len(votes.labels), generator=self._generator(server_round, 9))
        return Votes(votes.labels[order], votes.agreement[order], votes.entropy[order])


def watched(kind: type) -> type:
    """A strategy class that scores uploads, their votes, their mean and what it returns on held-out target examples."""

    class Watched(kind):
        def watch(self, world: World) -> Run:
            """Where the scores go."""
            self.scores, self._world = Run(), world
            self._scorer = SplitModel(world.model_fn())
            return self.scores

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            replies = list(replies)
            uploads = [message.content.array_records["arrays"] for message in replies]
            arrays, metrics = super().aggregate_train(server_round, replies)
            x, y = self._world.held_out
            each = torch.stack([self._predict(upload, x) for upload in uploads])
            local = tuple(accuracy(row, y) for row in each)
            final, mean = (accuracy(self._predict(record, x), y) for record in (arrays, self._averaged))
            self.scores.votes.append(float((majority_vote(each).labels == y).double().mean()))
            self.scores.effects.append(RoundEffect(server_round, final, tuple(range(len(local))), local, mean))
            if server_round == self._rounds:
                x, y = self._world.source_held_out
                self.scores.source = accuracy(self._predict(arrays, x), y)
            return arrays, metrics

        def _predict(self, arrays: ArrayRecord, x: torch.Tensor) -> torch.Tensor:
            self._scorer.load(arrays)
            with evaluating(self._scorer):
                return self._scorer(x)

    return Watched


def accuracy(log_probs: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of examples whose largest value is their class."""
    return float((log_probs.argmax(dim=-1) == labels).double().mean())


def client_app(world: World) -> Callable[[Message, Context], Message]:
    """The clients of a world; they share one model, which each fills with what it received."""
    model = SplitModel(world.model_fn())

    def answer(message: Message, context: Context) -> Message:
        return train_reply(message, context, model, world.clients[int(context.node_config["partition-id"])])

    return answer


def federate(world: World, ka: Config, rounds: int, kind: type = PairedFedKA, **arguments: Any) -> Run:
    """Run a strategy in a world, through Flower's own loop."""
    count = len(world.clients)
    with quiet_flower():
        strategy = watched(kind)(
            model_fn=world.model_fn,
            target=world.adaptation,
            ka=ka,
            sampler=UniformSampler(count),
            fraction_evaluate=0.0,
            min_available_nodes=count,
            **arguments,
        )
        run = strategy.watch(world)
        grid = LocalGrid(client_app(world), count, on_error="raise")
        strategy.start(grid, SplitModel(world.model_fn()).arrays(), num_rounds=rounds)
    return run
