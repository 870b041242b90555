"""Which replies of a round a strategy may use: those with the expected arrays, all finite, and a usable weight.

Flower averages what it is given, so one client that sends NaN spoils the model for all, and one that sends another
shape ends the run. A strategy that reads records beside the model's checks those by the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from logging import WARNING, getLogger

import numpy as np
from flwr.app import ArrayRecord, Message

_LOG = getLogger("flwr")
Shapes = Mapping[str, tuple[int, ...]]


def array_problem(record: ArrayRecord, shapes: Shapes) -> str:
    """Why a record cannot be used, or an empty string.

    Args:
        record: arrays that a client sent.
        shapes: name -> shape of every array that must be there; others must not.
    """
    missing, surplus = sorted(set(shapes) - set(record)), sorted(set(record) - set(shapes))
    if missing or surplus:
        return f"it lacks array {missing[0]!r}" if missing else f"it has an unknown array {surplus[0]!r}"
    for key, shape in shapes.items():
        try:
            values = record[key].numpy()
        except (TypeError, ValueError) as error:
            return f"array {key!r} cannot be read: {error}"
        if values.shape != tuple(shape):
            return f"array {key!r} has shape {values.shape}, expected {tuple(shape)}"
        if np.issubdtype(values.dtype, np.inexact) and not np.isfinite(values).all():
            return f"array {key!r} holds values that are not finite"
    return ""


def reply_problem(message: Message, shapes: Shapes, name: str = "arrays", weight: str = "num-examples") -> str:
    """Why a reply's model cannot be averaged, or an empty string.

    Args:
        message: a reply with content.
        shapes: name -> shape of the model's arrays.
        name: of the record that holds them.
        weight: of the metric that the mean is weighted by.
    """
    record = message.content.array_records.get(name)
    if record is None:
        return f"it has no array record {name!r}"
    numbers = list(message.content.metric_records.values())
    value = numbers[0].get(weight) if len(numbers) == 1 else None
    if not isinstance(value, int | float) or not 0 < value < np.inf:
        return f"its weight {weight!r} is {value}"
    return array_problem(record, shapes)


def usable(replies: Iterable[Message], problem: Callable[[Message], str]) -> tuple[list[Message], list[int]]:
    """The replies without a problem, and the node ids of the others; each of these is named in the log with its reason.

    Replies that carry an error pass: Flower itself counts and leaves them out.
    """
    kept, refused = [], []
    for message in replies:
        reason = problem(message) if message.has_content() else ""
        if reason:
            node = message.metadata.src_node_id
            refused.append(node)
            _LOG.log(WARNING, "aggregate_train: the reply of node %s was left out: %s", node, reason)
        else:
            kept.append(message)
    return kept, refused
