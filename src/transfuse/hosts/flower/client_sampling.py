"""Client sampling that two strategies can share, so that a comparison of them is paired.

Flower draws clients from the global generator, so two runs see different clients and the difference between two
aggregation rules drowns in it. Here the draw of a round depends on nothing but a seed and the round:
``random.Random(f"{seed}-{round}")`` over node ids in the order of their partition ids.

Three policies: `UniformSampler`, `MultinomialSampler` (with replacement; a client drawn twice gets one message and
weight two), `AdaFLSampler` (favours clients whose updates lie far from the mean). `SampledStrategy` is the mixin that
puts one of them into any strategy built on Flower's FedAvg.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING, getLogger
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from transfuse.errors import UserError
from transfuse.hosts.flower.flat_records import FlatLayout, ShapeError, trainable_keys
from transfuse.hosts.flower.local_grid import LocalGrid

_LOG = getLogger("flwr")
DESCRIBE = "query.describe"


@dataclass(frozen=True)
class Draw:
    """The clients of one round.

    Attributes:
        nodes: distinct node ids, in the order in which they were drawn.
        weights: what each node's number of examples is multiplied by.
        count_only: the weight replaces the number of examples instead (sampling already favoured large clients).
    """

    nodes: tuple[int, ...]
    weights: Mapping[int, float]
    count_only: bool = False


class ClientSampler(ABC):
    """Draws the clients of a round.

    Args:
        clients: how many draws a round.
        seed: of the draws. Two samplers of one class with one seed draw alike.
    """

    needs_distances = False

    def __init__(self, clients: int, seed: int = 0) -> None:
        if clients < 1:
            raise UserError(f"{clients} clients a round", "at least one")
        self.clients, self.seed = clients, seed

    @abstractmethod
    def draw(self, server_round: int, nodes: Sequence[int]) -> Draw:
        """Clients of a round out of `nodes`, which are in the order of their partition ids."""

    def observe(self, distances: Mapping[int, float]) -> None:  # noqa: B027 (most samplers do not learn)
        """Told after a round: node id -> distance of its update from the mean update."""

    def state(self) -> dict[str, Any]:
        """What the sampler has learnt, as JSON knows it; most learn nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (most samplers do not learn)
        """Continue from `state`."""

    def _random(self, server_round: int) -> random.Random:
        return random.Random(f"{self.seed}-{server_round}")


class UniformSampler(ClientSampler):
    """Without replacement, each set of clients equally likely."""

    def draw(self, server_round: int, nodes: Sequence[int]) -> Draw:
        chosen = self._random(server_round).sample(list(nodes), min(self.clients, len(nodes)))
        return Draw(tuple(chosen), dict.fromkeys(chosen, 1.0))


class MultinomialSampler(ClientSampler):
    """With replacement (MD). A client drawn c times gets one message and weight c.

    Args:
        clients: how many draws a round; distinct clients may be fewer.
        seed: of the draws.
        sizes: examples of each client in the order of partition ids. With them, large clients are drawn more often and
            the mean counts draws only (unbiased); without them, all are equally likely and the mean also counts
            examples.
    """

    def __init__(self, clients: int, seed: int = 0, sizes: Sequence[float] | None = None) -> None:
        super().__init__(clients, seed)
        self.sizes = None if sizes is None else list(sizes)

    def draw(self, server_round: int, nodes: Sequence[int]) -> Draw:
        if self.sizes is not None and len(self.sizes) != len(nodes):
            raise UserError(f"sizes of {len(self.sizes)} clients for {len(nodes)} nodes", "one size a node")
        drawn = self._random(server_round).choices(list(nodes), weights=self.sizes, k=self.clients)
        counts: dict[int, float] = {}
        for node in drawn:
            counts[node] = counts.get(node, 0.0) + 1.0
        return Draw(tuple(counts), counts, count_only=self.sizes is not None)


class AdaFLSampler(ClientSampler):
    """Without replacement, with probabilities that follow the distance of a client's update from the mean.

    After a round, a_k <- decay a_k + (1 - decay) (sum of a over the round's clients) d_k / (sum of d): the probability
    mass of the round's clients is dealt anew among them. The draw depends on the updates, so two strategies share
    random numbers here, but not clients.
    """

    needs_distances = True

    def __init__(self, clients: int, seed: int = 0, decay: float = 0.9) -> None:
        super().__init__(clients, seed)
        self.decay = decay
        self.probabilities: dict[int, float] = {}

    def draw(self, server_round: int, nodes: Sequence[int]) -> Draw:
        for node in nodes:
            self.probabilities.setdefault(node, 1.0 / len(nodes))
        generator, left = self._random(server_round), list(nodes)
        chosen: list[int] = []
        while left and len(chosen) < self.clients:
            weights = [max(self.probabilities[node], 1e-12) for node in left]
            node = generator.choices(left, weights=weights)[0]
            left.remove(node)
            chosen.append(node)
        return Draw(tuple(chosen), dict.fromkeys(chosen, 1.0))

    def state(self) -> dict[str, Any]:
        return {"nodes": list(self.probabilities), "probabilities": list(self.probabilities.values())}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.probabilities = dict(zip(state["nodes"], state["probabilities"], strict=True))

    def observe(self, distances: Mapping[int, float]) -> None:
        total = sum(distances.values())
        if not total > 0:
            return
        mass = sum(self.probabilities[node] for node in distances)
        for node, distance in distances.items():
            self.probabilities[node] = (
                self.decay * self.probabilities[node] + (1 - self.decay) * mass * distance / total
            )


class SampledStrategy:
    """Mixin: any strategy built on Flower's FedAvg, with a sampler of this module. Put it first among the bases.

    ``class PairedFedAvg(SampledStrategy, FedAvg): ...`` and then ``PairedFedAvg(sampler=UniformSampler(6, seed=0))``.
    """

    sampler: ClientSampler
    weighted_by_key: str  # this and the next three are FedAvg's own
    fraction_train: float
    min_train_nodes: int
    min_available_nodes: int

    def __init__(self, *args: Any, sampler: ClientSampler, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sampler = sampler
        self._order: list[int] | None = None
        self._draw: Draw | None = None
        self._sent: tuple[FlatLayout, np.ndarray] | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold: that of the sampler."""
        return self.sampler.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.sampler.restore(state)

    @property
    def last_draw(self) -> Draw | None:
        """The clients of the latest round."""
        return self._draw

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's own messages, one for each node that the sampler drew."""
        available = self._wait_for_nodes(grid)
        if self._order is None or set(self._order) != available:
            self._order = nodes_by_partition(grid)
        self._draw = self.sampler.draw(server_round, self._order)
        if self.sampler.needs_distances:
            layout = FlatLayout(arrays, trainable_keys(arrays))
            self._sent = layout, layout.read(arrays, np.empty(layout.size))
        narrowed = _Chosen(grid, self._draw.nodes)
        fraction, least, free = self.fraction_train, self.min_train_nodes, self.min_available_nodes
        self.fraction_train, self.min_train_nodes, self.min_available_nodes = 1.0, 1, 1
        try:
            messages = list(super().configure_train(server_round, arrays, config, narrowed))  # type: ignore[misc]
        finally:
            self.fraction_train, self.min_train_nodes, self.min_available_nodes = fraction, least, free
        rank = {node: index for index, node in enumerate(self._draw.nodes)}
        return sorted(messages, key=lambda message: rank[message.metadata.dst_node_id])

    def _wait_for_nodes(self, grid: Grid) -> set[int]:
        """Node ids, once as many are connected as the strategy asks for; Flower's own strategies wait likewise."""
        while len(nodes := set(grid.get_node_ids())) < self.min_available_nodes:
            least = self.min_available_nodes
            if isinstance(grid, LocalGrid):
                raise UserError(f"a grid of {len(nodes)} nodes", f"min_available_nodes = {least}", "add nodes")
            _LOG.log(INFO, "Waiting for nodes to connect: %s of at least %s", len(nodes), least)
            time.sleep(1.0)
        return nodes

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Weigh the replies as the sampler asks, then aggregate as the strategy does."""
        replies = list(replies)
        for message in replies:
            if message.has_content():
                self._weigh(message)
        if self.sampler.needs_distances:
            self.sampler.observe(self._distances(replies))
        return super().aggregate_train(server_round, replies)  # type: ignore[misc]

    def _weigh(self, message: Message) -> None:
        assert self._draw is not None
        weight = self._draw.weights.get(message.metadata.src_node_id, 1.0)
        for metrics in message.content.metric_records.values():
            number = metrics.get(self.weighted_by_key)
            if isinstance(number, int | float):
                replaced = 1.0 if self._draw.count_only else number
                metrics[self.weighted_by_key] = replaced if weight == 1.0 else replaced * weight

    def _distances(self, replies: Sequence[Message]) -> dict[int, float]:
        """Distance of each client's update from the weighted mean update; replies that do not fit are left out."""
        assert self._sent is not None
        layout, base = self._sent
        updates, weights = {}, []
        for message in replies:
            try:
                record = next(iter(message.content.array_records.values()))
                update = np.empty(layout.size)
                layout.subtract(record, base, update)
                metrics: Any = next(iter(message.content.metric_records.values()))
                weight = float(metrics[self.weighted_by_key])
            except (ShapeError, StopIteration, KeyError, ValueError):
                continue
            if np.isfinite(update).all():
                updates[message.metadata.src_node_id] = update
                weights.append(weight)
        if not updates:
            return {}
        mean = np.average(list(updates.values()), axis=0, weights=weights)
        return {node: float(np.linalg.norm(update - mean)) for node, update in updates.items()}


class _Chosen(Grid):
    """The grid as a strategy sees it when only the chosen nodes exist."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        self._grid, self._nodes = grid, nodes

    def get_node_ids(self) -> Iterable[int]:
        return list(self._nodes)

    @property
    def run(self) -> Any:
        return self._grid.run

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)


def answer_describe(app: ClientApp) -> ClientApp:
    """Let a client application tell the server its partition id: registers ``query.describe``."""

    @app.query("describe")
    def describe(message: Message, context: Any) -> Message:
        known = {key: value for key, value in context.node_config.items() if key in ("partition-id", "num-partitions")}
        return Message(RecordDict({"describe": ConfigRecord(known)}), reply_to=message)

    return app


def nodes_by_partition(grid: Grid, timeout: float = 60.0) -> list[int]:
    """Node ids in the order of their partition ids.

    A `LocalGrid` knows them. In a deployment node ids are random, so the nodes are asked once (see `answer_describe`);
    nodes that do not answer come last, by node id, and a warning says that draws are then not comparable across runs.
    """
    if isinstance(grid, LocalGrid):
        known = dict(grid.partitions)
    else:
        nodes = list(grid.get_node_ids())
        asked = [Message(RecordDict(), message_type=DESCRIBE, dst_node_id=node) for node in nodes]
        known = {}
        for reply in grid.send_and_receive(asked, timeout=timeout):
            if reply.has_content() and "describe" in reply.content:
                number = reply.content["describe"].get("partition-id")
                if isinstance(number, int):
                    known[reply.metadata.src_node_id] = number
        _LOG.log(INFO, "client sampling: %s of %s nodes told their partition id", len(known), len(nodes))
        if len(known) < len(nodes):
            _LOG.log(WARNING, "client sampling: the order of the other nodes is arbitrary; use answer_describe(app)")
    return sorted(grid.get_node_ids(), key=lambda node: (known.get(node, 2**62), node))
