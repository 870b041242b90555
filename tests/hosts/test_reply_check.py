"""Replies that a strategy must not average: left out, named, and with the reason."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

from transfuse.hosts.flower.local_grid import ensure_task_identity
from transfuse.hosts.flower.reply_check import array_problem, reply_problem, usable

SHAPES = {"w": (2, 3), "n": ()}


def record(**changes: object) -> ArrayRecord:
    arrays = {"w": np.ones((2, 3)), "n": np.array(4), **changes}
    return ArrayRecord({key: Array(np.asarray(value)) for key, value in arrays.items() if value is not None})


def reply(node: int, arrays: ArrayRecord | None, examples: object = 3) -> Message:
    ensure_task_identity()
    request = Message(RecordDict(), dst_node_id=node, message_type="train")
    content = RecordDict({"metrics": MetricRecord({"num-examples": examples})})
    if arrays is not None:
        content["arrays"] = arrays
    return Message(content, reply_to=request)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (record(), ""),
        (record(w=np.ones((2, 3), np.float16)), ""),
        (record(w=np.full((2, 3), np.nan)), "not finite"),
        (record(w=np.full((2, 3), -np.inf)), "not finite"),
        (record(w=np.ones((3, 2))), "shape"),
        (record(w=None), "lacks array 'w'"),
        (record(other=1.0), "unknown array 'other'"),
    ],
)
def test_reason_of_a_bad_record(arrays: ArrayRecord, reason: str) -> None:
    found = array_problem(arrays, SHAPES)
    assert reason in found
    assert bool(found) == bool(reason)


@pytest.mark.parametrize("examples", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_no_mean_can_use(examples: float) -> None:
    assert "weight" in reply_problem(reply(1, record(), examples), SHAPES)
    assert not reply_problem(reply(1, record()), SHAPES)
    assert "no array record" in reply_problem(reply(1, None), SHAPES)


def test_bad_replies_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    failed = Message(
        Error(code=2, reason="raised"), reply_to=Message(RecordDict(), dst_node_id=3, message_type="train")
    )
    replies = [reply(1, record()), reply(2, record(w=np.full((2, 3), np.nan))), failed]
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    try:
        kept, refused = usable(replies, lambda message: reply_problem(message, SHAPES))
    finally:
        logger.removeHandler(caplog.handler)
    assert kept == [replies[0], failed]
    assert refused == [2]
    assert "the reply of node 2 was left out: array 'w' holds values that are not finite" in caplog.text


def test_metrics_unlike_the_others_are_left_out() -> None:
    odd = reply(3, record())
    odd.content["metrics"]["loss"] = 1.0
    kept, refused = usable([reply(1, record()), odd, reply(2, record())], lambda message: "")
    assert (len(kept), refused) == (2, [3])
