"""FedAvg with clusters of clients, others for each part of the model: the Strategy of Fed-MNMT (`fed_mnmt`)."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING, getLogger
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from transfuse.errors import UserError
from transfuse.hosts.flower.flat_records import FlatLayout, trainable_keys
from transfuse.hosts.flower.reply_check import reply_problem, usable
from transfuse.methods.federated import node_queries
from transfuse.methods.federated.client_clusters import family_labels, gradient_labels, mean_of, random_labels
from transfuse.methods.federated.update_conflict import ConflictRound, keys_of_groups, update_products

__all__ = ["ClusteredFedAvg", "Config", "RoundBytes", "by_stack"]

_LOG = getLogger("flwr")
STACKS = ("encoder", "decoder")
Clustering = Literal["family", "gradient", "random", "all", "none"]
Lists = Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Config:
    """How clients are put together and averaged.

    Attributes:
        clusters: "family" (of the language that counts for the part), "gradient" (alike gradients at the start),
            "random" (the placebo), "all" (one average), "none" (no sharing), or part -> lists of partition ids.
        attributes: part -> what a client is known by there, as told in its description.
        families: language (or any value of an attribute) -> family; None means `LANGUAGE_FAMILIES`.
        count: clusters a part under "gradient" and "random"; None means as many as there are families.
        weighted: whether means weigh clients by their examples.
        seed: of random clusters and of the sketches.
        sketch_size: numbers a part that a client sends of its gradient.
        keep_best: metric of evaluation, lower is better, whose best round `node_arrays(best=True)` returns.
        record: whether to record the conflict of each round for `transfuse audit fed_mnmt`.
    """

    clusters: Clustering | Lists = "family"  # the paper's best
    attributes: Mapping[str, str] | None = None  # the encoder by source and the decoder by target, as in the paper
    families: Mapping[str, str] | None = None  # a table of 23 families; the paper's two tables lie beside it
    count: int | None = None  # the official lists have as many as there are families, or nearly
    weighted: bool = False  # the paper's mean is unweighted, so that small languages count
    seed: int = 0  # any number; equal seeds give equal clusters
    sketch_size: int = 256  # cosines of a dozen clients survive such a projection to within a few hundredths
    keep_best: str = "loss"  # the paper keeps the round of the lowest loss over the development sets of all clients
    record: bool = True  # a product of twelve updates costs about as much as their mean

    def __post_init__(self) -> None:
        known = ("family", "gradient", "random", "all", "none")
        if isinstance(self.clusters, str) and self.clusters not in known:
            raise UserError(f"clusters {self.clusters!r}", f"one of {', '.join(known)}, or part -> lists of clients")
        if self.count is not None and self.count < 1:
            raise UserError(f"count {self.count}", "at least one cluster")
        if self.sketch_size < 2:
            raise UserError(f"sketch_size {self.sketch_size}", "at least 2")


def by_stack(key: str) -> str:
    """The part that a parameter of an encoder-decoder belongs to: "encoder", "decoder", or "shared".

    Cross-attention, also where it is called ``encoder_attn``, lies in the decoder.
    """
    return next((segment for segment in key.split(".") if segment in STACKS), "shared")


@dataclass(frozen=True)
class RoundBytes:
    """Bytes of model arrays that crossed the wire in a round: to the clients, and back."""

    round: int
    down: int
    up: int


class ClusteredFedAvg(FedAvg):
    """FedAvg with clusters of clients, others for each part of the model.

    Clients tell their facts once (`node_queries.answer_describe`): partition id, and what `attributes` names, in the
    paper the source and the target language. A client that does not is averaged alone, and a warning says so. A reply
    with another shape or with values that are not finite is left out, and the log says so; a cluster without any usable
    reply keeps its parameters.

    `Strategy.start` returns the mean over clients of their models; a client's own model is `node_arrays(node_id)`.

    Do not use it where clients may not be told apart: a cluster of one is a client's own parameters on the server.

    Args:
        clusters: see `Config`, as all that follow up to `record`.
        part_of: name of a parameter -> its part; `by_stack` splits encoder and decoder.
        **kwargs: those of Flower's FedAvg.

    Attributes:
        labels: part -> node id -> label of its cluster.
        conflicts: how the updates of each round lie to one another, for `transfuse audit fed_mnmt`.
        bytes: of each round.
        best_round: the round of the lowest `keep_best`, 0 before any evaluation; `best_value` is that value.
    """

    def __init__(
        self,
        *,
        clusters: Clustering | Lists = Config.clusters,
        part_of: Callable[[str], str] = by_stack,
        attributes: Mapping[str, str] | None = None,
        families: Mapping[str, str] | None = None,
        count: int | None = None,
        weighted: bool = Config.weighted,
        seed: int = Config.seed,
        sketch_size: int = Config.sketch_size,
        keep_best: str = Config.keep_best,
        record: bool = Config.record,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.config = Config(
            clusters, attributes, families, count, weighted, seed, sketch_size, keep_best, record
        )  # fmt: skip
        self.part_of = part_of
        self.attributes = dict(zip(STACKS, ("source", "target"), strict=True)) if attributes is None else attributes
        self.query_timeout = 60.0  # seconds that nodes have to describe themselves
        self._restart(ArrayRecord())

    def _restart(self, arrays: ArrayRecord) -> None:
        self.labels: dict[str, dict[int, Hashable]] = {}
        self.conflicts: list[ConflictRound] = []
        self.bytes: list[RoundBytes] = []
        self.best_round, self.best_value = 0, np.inf
        self._best: dict[str, dict[Hashable, dict[str, Array]]] = {}
        self._state: dict[str, dict[Hashable, dict[str, Array]]] = {}  # part -> label -> arrays
        self._facts: dict[int, dict[str, Any]] = {}
        self._initial, self._nominal = arrays, arrays
        self._layout = FlatLayout(arrays)
        self._parts = keys_of_groups(arrays, self.part_of)
        self._sent: dict[int, ArrayRecord] = {}
        self._round = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold (see `hosts.flower.checkpoint`): clusters, their parameters, the best round.

        The records of conflict and of bytes are not among it: they begin anew.
        """
        if not self._state:
            return {}
        saved: dict[str, Any] = {f"initial/{key}": array.numpy() for key, array in self._initial.items()}
        for when, parts in (("now", self._state), ("best", self._best)):
            for part, states in parts.items():
                for label, arrays in states.items():
                    place = f"{when}/{part}/{_as_text(label)}"
                    saved |= {f"{place}/{key}": array.numpy() for key, array in arrays.items()}
        labels = {part: {str(n): _as_text(label) for n, label in own.items()} for part, own in self.labels.items()}
        facts = {str(node): known for node, known in self._facts.items()}
        best = self._best_value if self.best_round else None
        return {**saved, "labels": labels, "facts": facts, "best_round": self.best_round, "best_value": best}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        begun = {key.split("/", 1)[1]: value for key, value in state.items() if key.startswith("initial/")}
        self._restart(ArrayRecord({key: Array(value) for key, value in begun.items()}))
        for place, value in state.items():
            if place.startswith(("now/", "best/")):
                when, part, label, key = place.split("/", 3)
                parts = self._state if when == "now" else self._best
                parts.setdefault(part, {}).setdefault(_from_text(label), {})[key] = Array(value)
        self.labels = {
            part: {int(node): _from_text(label) for node, label in own.items()} for part, own in state["labels"].items()
        }
        self._facts = {int(node): dict(known) for node, known in state["facts"].items()}
        self.best_round = int(state["best_round"])
        self._best_value = np.inf if state["best_value"] is None else float(state["best_value"])
        self._nominal = self._mean_model()

    def summary(self) -> None:
        """Log the settings."""
        super().summary()
        kind = self.config.clusters if isinstance(self.config.clusters, str) else "given lists"
        _LOG.log(INFO, "\t└──> Clusters: %s, %s mean", kind, "weighted" if self.config.weighted else "unweighted")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The parent's messages, each with the arrays of its node."""
        if server_round == 1 or not self._state:
            self._restart(arrays)
        self._round = server_round
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._meet(grid)
        own = self._with_own_arrays(messages)
        self._sent = {m.metadata.dst_node_id: m.content.array_records[self.arrayrecord_key] for m in own}
        return own

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The parent's messages, each with the arrays of its node."""
        messages = list(super().configure_evaluate(server_round, arrays, config, grid))
        if messages and not self._state:
            self._restart(arrays)
        if messages:
            self._meet(grid)
        return self._with_own_arrays(messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Means a part and cluster; returns the mean over all clients' models, and the parent's metrics."""
        valid, _ = self._check_and_log_replies(list(replies), is_train=True, validate=False)
        kept = sorted(self._usable(valid), key=self._place)  # sums do not depend on who answers first
        missing = len(self._sent) - len(kept)
        if not kept:
            _LOG.log(WARNING, "aggregate_train: no usable reply; all clusters keep their parameters")
            return self._nominal, None
        nodes = [message.metadata.src_node_id for message in kept]
        records = [message.content.array_records[self.arrayrecord_key] for message in kept]
        if self.config.record and len(kept) > 1:
            self.conflicts.append(self._conflict(server_round, nodes, records))
        numbers: list[Any] = [next(iter(message.content.metric_records.values())) for message in kept]
        weights = [float(record[self.weighted_by_key]) for record in numbers]
        self._average(nodes, records, weights if self.config.weighted else None)
        self._nominal = self._mean_model()
        metrics = self.train_metrics_aggr_fn([message.content for message in kept], self.weighted_by_key)
        traffic = RoundBytes(
            server_round,
            sum(record.count_bytes() for record in self._sent.values()),
            sum(record.count_bytes() for record in records),
        )
        self.bytes.append(traffic)
        metrics.update({"replies-left-out": missing, "bytes-down": traffic.down, "bytes-up": traffic.up})
        return self._nominal, metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The parent's metrics over the finite replies; remembers the best round."""
        valid, _ = self._check_and_log_replies(list(replies), is_train=False, validate=False)
        names = _usual_metrics(valid)
        kept, _ = usable(valid, lambda message: _metrics_problem(message, names, self.weighted_by_key))
        if not kept:
            return None
        metrics = self.evaluate_metrics_aggr_fn([message.content for message in kept], self.weighted_by_key)
        value = metrics.get(self.config.keep_best)
        if isinstance(value, int | float) and value < self.best_value:
            self.best_round, self.best_value = server_round, float(value)
            self._best = {part: dict(states) for part, states in self._state.items()}
        return metrics

    @property
    def partitions(self) -> dict[int, int]:
        """Node id -> partition id, of the nodes that told it."""
        return {node: told["partition-id"] for node, told in self._facts.items() if "partition-id" in told}

    def node_arrays(self, node_id: int, *, best: bool = False) -> ArrayRecord:
        """The model of one node: of each part, the parameters of its cluster.

        Args:
            node_id: a node that took part; any other gets the mean over all clients.
            best: of the round with the lowest `keep_best` instead of the latest.
        """
        state = self._best if best and self._best else self._state
        arrays = {}
        for part, keys in self._parts.items():
            own = state.get(part, {}).get(self.labels.get(part, {}).get(node_id))
            arrays.update({key: (own or self._nominal)[key] for key in keys})
        return ArrayRecord({key: arrays[key] for key in self._layout.keys})

    def _usable(self, replies: Sequence[Message]) -> list[Message]:
        shapes = dict(zip(self._layout.keys, self._layout.shapes, strict=True))
        names = _usual_metrics(replies)
        kept, _ = usable(
            replies,
            lambda message: (
                reply_problem(message, shapes, self.arrayrecord_key, self.weighted_by_key)
                or _metrics_problem(message, names, self.weighted_by_key)
            ),
        )
        return kept

    def _place(self, message: Message) -> tuple[int, int]:
        node = message.metadata.src_node_id
        return self._facts.get(node, {}).get("partition-id", 2**62), node

    def _with_own_arrays(self, messages: Sequence[Message]) -> list[Message]:
        own, made = [], {}
        for message in messages:
            node = message.metadata.dst_node_id
            combination = tuple(self.labels[part].get(node) for part in self._parts)
            if combination not in made:
                made[combination] = self.node_arrays(node)
            content = RecordDict(dict(message.content.items()))
            content[self.arrayrecord_key] = made[combination]
            own.append(Message(content, node, message.metadata.message_type))
        return own

    def _meet(self, grid: Grid) -> None:
        """Give every node that is new its clusters, and these their parameters."""
        new = sorted(set(grid.get_node_ids()) - set(self._facts))
        if not new:
            return
        facts = node_queries.describe(grid, new, self.query_timeout)
        new.sort(key=lambda node: (facts.get(node, {}).get("partition-id", 2**62), node))
        first = not self._facts
        self._facts.update({node: facts.get(node, {}) for node in new})
        for part in self._parts:
            labels = self._label(part, new, grid if first else None)
            alone = {node: ("node", node) for node in new if labels.get(node) is None}
            if alone and self.config.clusters != "none":
                _LOG.log(WARNING, "%s: %s nodes without a cluster are averaged alone", part, len(alone))
            self.labels.setdefault(part, {}).update({node: alone.get(node, labels.get(node)) for node in new})
            start = {key: self._nominal[key] for key in self._parts[part]}
            for label in self.labels[part].values():
                self._state.setdefault(part, {}).setdefault(label, start)
            sizes = Counter(self.labels[part].values())
            _LOG.log(INFO, "%s: clusters of %s nodes", part, sorted(sizes.values(), reverse=True))
            if self.config.clusters == "family" and 1 in sizes.values() and len(sizes) > 1:
                _LOG.log(WARNING, "%s: a cluster of one node is trained locally", part)

    def _label(self, part: str, nodes: Sequence[int], grid: Grid | None) -> dict[int, Hashable]:
        """Cluster of each node; nodes that are missing, or have None, are averaged alone."""
        clusters, attribute = self.config.clusters, self.attributes.get(part)
        if clusters == "none":
            return {}
        if not isinstance(clusters, str):
            return node_queries.listed(clusters.get(part), {node: self._facts[node] for node in nodes}, part)
        if clusters == "all" or attribute is None:
            return dict.fromkeys(nodes, "all")
        known = [node for node in nodes if attribute in self._facts[node]]
        families = family_labels([str(self._facts[node][attribute]) for node in known], self.config.families)
        if clusters == "family":
            return dict(zip(known, families, strict=True))
        if grid is None:
            return {}  # who joins later had no part in the drawing of clusters
        if self.config.count is None and len(known) < len(nodes):
            raise UserError(f"clusters={clusters!r} and nodes that do not tell their {attribute!r}", fix="give a count")
        count = self.config.count or len(set(families))
        if clusters == "random":
            equal = [index % count for index in range(len(nodes))]
            rng = np.random.default_rng((self.config.seed, zlib.crc32(part.encode())))
            return dict(zip(nodes, random_labels(equal if self.config.count else families, rng), strict=True))
        return self._by_gradient(part, nodes, count, grid)

    def _by_gradient(self, part: str, nodes: Sequence[int], count: int, grid: Grid) -> dict[int, Hashable]:
        keys = [key for key in trainable_keys(self._initial) if self.part_of(key) == part]
        sketches = node_queries.gradient_sketches(
            grid, nodes, self._initial, keys, self.config.sketch_size, self.config.seed, self.query_timeout
        )
        if len(sketches) < 2:
            return {}
        labels = gradient_labels(np.stack(list(sketches.values())), count)
        return dict(zip(sketches, labels, strict=True))

    def _average(self, nodes: Sequence[int], records: Sequence[ArrayRecord], weights: Sequence[float] | None) -> None:
        for part, keys in self._parts.items():
            layout = FlatLayout(self._initial, keys)
            members: dict[Hashable, list[int]] = {}
            for index, node in enumerate(nodes):
                members.setdefault(self.labels[part][node], []).append(index)
            for label, indices in members.items():
                chosen = None if weights is None else [weights[i] for i in indices]
                views = zip(*(layout.views(records[i]) for i in indices), strict=True)
                self._state[part][label] = {
                    key: Array(mean_of(tensors, chosen, self._initial[key].dtype).reshape(shape))
                    for key, shape, tensors in zip(layout.keys, layout.shapes, views, strict=True)
                }

    def _mean_model(self) -> ArrayRecord:
        """The mean over all known nodes of their models: one record, for what wants a global model."""
        arrays = {}
        for part, keys in self._parts.items():
            sizes = Counter(self.labels[part].values())
            if len(sizes) == 1:
                arrays.update(self._state[part][next(iter(sizes))])
                continue
            states = [self._state[part][label] for label in sizes]
            for key in keys:
                values = [state[key].numpy() for state in states]
                arrays[key] = Array(mean_of(values, list(sizes.values())))
        return ArrayRecord({key: arrays[key] for key in self._layout.keys})

    def _conflict(self, server_round: int, nodes: Sequence[int], records: Sequence[ArrayRecord]) -> ConflictRound:
        sent = [self._sent[node] for node in nodes]
        groups = {}
        for part, keys in keys_of_groups(trainable_keys(self._initial), self.part_of).items():
            products = update_products(FlatLayout(self._initial, keys), sent, records)
            groups[part] = products.finish([str(self.labels[part][node]) for node in nodes])
        names = tuple(self._facts[node].get("partition-id", node) for node in nodes)
        return ConflictRound(server_round, names, groups)


def _as_text(label: Hashable) -> str:
    """A label as part of a name: JSON without slashes."""
    return json.dumps(label).replace("/", "\\u002f")


def _from_text(text: str) -> Hashable:
    label = json.loads(text)
    return tuple(label) if isinstance(label, list) else label


def _usual_metrics(replies: Sequence[Message]) -> frozenset[str]:
    """The names of metrics that most replies have; Flower's mean wants them alike in all."""
    names = [frozenset(key for record in m.content.metric_records.values() for key in record) for m in replies]
    return Counter(names).most_common(1)[0][0] if names else frozenset()


def _metrics_problem(message: Message, names: frozenset[str], weight: str) -> str:
    """Why the metrics of a reply cannot be averaged, or an empty string."""
    records = list(message.content.metric_records.values())
    if len(records) != 1 or frozenset(records[0]) != names:
        return "its metrics are not those of the other clients"
    if broken := [key for key, value in records[0].items() if not np.isfinite(value).all()]:
        return f"metric {broken[0]!r} is {records[0][broken[0]]}"
    return "" if weight in names else f"it has no metric {weight!r}"
