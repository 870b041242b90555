"""What a server asks its nodes before the first round: who they are, and which way their gradients point.

Node ids of a deployment are random; the server does not know what a node holds until the node says so. Both sides of
each question are here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from logging import WARNING, getLogger
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from transfuse.errors import UserError

_LOG = getLogger("flwr")
DESCRIBE, GRADIENT = "query.describe", "query.gradient"
Facts = Mapping[str, str | int | float]


def answer_describe(app: ClientApp, facts: Callable[[Context], Facts]) -> ClientApp:
    """Let a client application tell the server its partition id and facts, such as its languages."""

    @app.query("describe")
    def tell(message: Message, context: Context) -> Message:
        own = {key: value for key, value in context.node_config.items() if key in ("partition-id", "num-partitions")}
        return Message(RecordDict({"describe": ConfigRecord({**own, **facts(context)})}), reply_to=message)

    return app


def answer_gradient(
    app: ClientApp,
    gradient: Callable[[Message, Context], Mapping[str, np.ndarray]],
    sketch: Callable[[Mapping[str, np.ndarray], int, int], np.ndarray],
) -> ClientApp:
    """Let a client application tell the server a sketch of its gradient at the initial model.

    Args:
        app: the application.
        gradient: the mean gradient over some batches, by name, at the arrays of the message.
        sketch: gradient, size, seed -> sketch; `fed_mnmt.sketch`.
    """

    @app.query("gradient")
    def tell(message: Message, context: Context) -> Message:
        wanted: Any = message.content["config"]
        full = gradient(message, context)
        chosen = {key: full[key] for key in wanted["keys"]}
        found = sketch(chosen, int(wanted["size"]), int(wanted["seed"]))
        arrays = ArrayRecord({"sketch": Array(found.astype(np.float32))})
        return Message(RecordDict({"gradient": arrays}), reply_to=message)

    return app


def describe(grid: Grid, nodes: Sequence[int], timeout: float) -> dict[int, dict[str, Any]]:
    """Node id -> what it told of itself; nodes that did not answer are missing."""
    asked = [Message(RecordDict(), node, DESCRIBE) for node in nodes]
    facts = {}
    for reply in grid.send_and_receive(asked, timeout=timeout):
        if reply.has_content() and isinstance(reply.content.get("describe"), ConfigRecord):
            facts[reply.metadata.src_node_id] = dict(reply.content["describe"].items())
    if len(facts) < len(nodes):
        _LOG.log(WARNING, "%s of %s nodes did not describe themselves", len(nodes) - len(facts), len(nodes))
    return facts


def gradient_sketches(
    grid: Grid,
    nodes: Sequence[int],
    arrays: ArrayRecord,
    keys: Sequence[str],
    size: int,
    seed: int,
    timeout: float,
) -> dict[int, np.ndarray]:
    """Node id -> sketch of its gradient of some parameters; nodes without a usable answer are missing."""
    config = ConfigRecord({"keys": list(keys), "size": size, "seed": seed})
    asked = [Message(RecordDict({"arrays": arrays, "config": config}), node, GRADIENT) for node in nodes]
    found = {}
    for reply in grid.send_and_receive(asked, timeout=timeout):
        record = reply.content.get("gradient") if reply.has_content() else None
        if not isinstance(record, ArrayRecord) or "sketch" not in record:
            continue
        sketch = record["sketch"].numpy()
        if sketch.shape == (size,) and np.isfinite(sketch).all() and np.any(sketch):
            found[reply.metadata.src_node_id] = sketch
    if len(found) < len(nodes):
        _LOG.log(WARNING, "%s of %s nodes sent no usable gradient", len(nodes) - len(found), len(nodes))
    return {node: found[node] for node in nodes if node in found}


def listed(
    groups: Sequence[Sequence[int]] | None, facts: Mapping[int, Mapping[str, Any]], part: str
) -> dict[int, Hashable]:
    """Cluster of each node by lists of partition ids; a part without lists is one cluster.

    Raises:
        UserError: a partition id stands in two lists.
    """
    if groups is None:
        return dict.fromkeys(facts, "all")
    ids = [number for group in groups for number in group]
    if twice := sorted({number for number in ids if ids.count(number) > 1}):
        raise UserError(f"clusters of {part!r} that name client {twice[0]} twice", "each client in one list")
    cluster = {number: index for index, group in enumerate(groups) for number in group}
    return {node: cluster.get(told.get("partition-id", -1)) for node, told in facts.items()}
