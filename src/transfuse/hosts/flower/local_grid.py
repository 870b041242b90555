"""A Flower grid inside this process: the same Strategy object, milliseconds instead of seconds a round.

The strategy and the client application are Flower's own and run unchanged in a deployment. Only the transport
is replaced: messages are handed to ``client_app(message, context)`` directly, one persistent `Context` a node.

>>> from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
>>> from flwr.clientapp import ClientApp
>>> from flwr.serverapp.strategy import FedAvg
>>> import numpy as np
>>> app = ClientApp()
>>> @app.train()
... def train(message, context):
...     w = message.content["arrays"]["w"].numpy() + context.node_config["partition-id"]
...     records = {"arrays": ArrayRecord({"w": Array(w)}), "metrics": MetricRecord({"num-examples": 1})}
...     return Message(RecordDict(records), reply_to=message)
>>> with quiet_flower():
...     strategy = FedAvg(fraction_evaluate=0.0)
...     result = strategy.start(LocalGrid(app, nodes=3), ArrayRecord({"w": Array(np.zeros(1))}), num_rounds=2)
>>> result.arrays["w"].numpy()
array([2.])
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Literal

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from transfuse.errors import UserError

ClientFunction = Callable[[Message, Context], Message]
Scalar = bool | int | float | str
_CLIENT_RAISED = 2  # flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION, an internal module


class LocalGrid(Grid):
    """Runs client applications in this process, one after the other, in the order of the messages.

    Each message is copied before it reaches a client and each reply before it reaches the server, so that a
    client that changes what it received cannot change the server's state or another client's message.

    Args:
        client_app: a `ClientApp`, or any callable with its signature.
        nodes: how many nodes, or one ``node_config`` a node. ``partition-id`` and ``num-partitions`` are filled in.
        run_config: what clients see as ``context.run_config``.
        roundtrip: also serialise and parse every message, as a deployment would; slower.
        error_rate: share of train and evaluate messages answered by an error, drawn from `seed`.
        drop_rate: share of such messages that are never answered, drawn from `seed`.
        delays: seconds that a node needs for an answer, by partition id. They pass in thought only: an answer that
            takes longer than the `timeout` of the round is lost, though the node did the work, and nobody waits.
        seed: of the two rates. Whether a node fails in a round depends on the seed, the round and the node, so that
            two strategies meet the same failures, and so does a federation that was resumed.
        on_error: "reply" turns a client's exception into an error reply, as a deployment does; "raise" lets it
            through, which is what one wants while writing a client.
        before_round: called with the messages and their contexts before the first client runs, for clients that
            are trained together (vectorised) and answer one by one.

    Attributes:
        contexts: the persistent context of each node id; ``contexts[i].state`` survives rounds.
        messages_sent: how many messages reached a client.
    """

    def __init__(
        self,
        client_app: ClientFunction,
        nodes: int | Sequence[Mapping[str, Scalar]],
        *,
        run_config: Mapping[str, Scalar] | None = None,
        roundtrip: bool = False,
        error_rate: float = 0.0,
        drop_rate: float = 0.0,
        delays: Mapping[int, float] | None = None,
        seed: int = 0,
        on_error: Literal["reply", "raise"] = "reply",
        before_round: Callable[[list[tuple[Message, Context]]], None] | None = None,
    ) -> None:
        if not 0.0 <= error_rate + drop_rate <= 1.0 or min(error_rate, drop_rate) < 0.0:
            raise UserError(f"error_rate {error_rate} and drop_rate {drop_rate}", "shares that add up to at most 1")
        configs = [{} for _ in range(nodes)] if isinstance(nodes, int) else [dict(config) for config in nodes]
        if not configs:
            raise UserError("a grid without nodes", "at least one node")
        ensure_task_identity()
        self._client_app = client_app
        self._roundtrip = roundtrip
        self._rates = (error_rate, drop_rate)
        self._delays, self._seed = dict(delays or {}), seed
        self._on_error = on_error
        self._before_round = before_round
        self._run: Any = None
        self._replies: dict[str, Message] = {}
        self.messages_sent = 0
        self.contexts: dict[int, Context] = {}
        for index, config in enumerate(configs):
            node_config = {"partition-id": index, "num-partitions": len(configs), **config}
            self.contexts[index + 1] = Context(1, index + 1, node_config, RecordDict(), dict(run_config or {}))

    @property
    def partitions(self) -> dict[int, int]:
        """Node id -> partition id. Samplers use it where a deployment would ask the nodes."""
        return {node: int(context.node_config["partition-id"]) for node, context in self.contexts.items()}

    @property
    def run(self) -> Any:
        return self._run

    def set_run(self, run: Any) -> None:
        self._run = run

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver the messages at once; the replies wait for `pull_messages`."""
        delivered = [self._deliver(message) for message in messages]
        if self._before_round is not None:
            self._before_round([pair for pair, _ in delivered])
        ids = []
        for (message, context), fails in delivered:
            reply = self._answer(message, context, fails)
            if reply is not None:
                self._replies[message.metadata.message_id] = reply
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are there, in the order of the ids; each is handed out once."""
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """The replies that come within `timeout`, in the order of the messages."""
        replies = self.pull_messages(self.push_messages(messages))
        if timeout is None or not self._delays:
            return replies
        return [reply for reply in replies if self._delay(reply.metadata.src_node_id) <= timeout]

    def _delay(self, node: int) -> float:
        partition = self.partitions.get(node)
        return 0.0 if partition is None else self._delays.get(partition, 0.0)

    def _deliver(self, message: Message) -> tuple[tuple[Message, Context], str]:
        node = message.metadata.dst_node_id
        if node not in self.contexts:
            raise UserError(f"a message to node {node}", f"one of the {len(self.contexts)} nodes of this grid")
        self.messages_sent += 1
        copy = self._carry(message)
        copy.metadata.__dict__["_message_id"] = f"local-{self.messages_sent}"
        return (copy, self.contexts[node]), self._fate(message)

    def _fate(self, message: Message) -> str:
        error_rate, drop_rate = self._rates
        kind = message.metadata.message_type
        if error_rate + drop_rate == 0.0 or kind.split(".")[0] == "query":
            return ""
        rounds = [
            config["server-round"] for config in message.content.config_records.values() if "server-round" in config
        ]
        when = f"round {rounds[0]!r}" if rounds else f"message {self.messages_sent}"
        draw = random.Random(f"failures-{self._seed}-{kind}-{when}-{message.metadata.dst_node_id}").random()
        return "error" if draw < error_rate else "drop" if draw < error_rate + drop_rate else ""

    def _answer(self, message: Message, context: Context, fate: str) -> Message | None:
        if fate == "drop":
            return None
        if fate == "error":
            return Message(Error(code=_CLIENT_RAISED, reason="failure injected by LocalGrid"), reply_to=message)
        try:
            reply = self._client_app(message, context)
        except Exception as error:  # what a client raises must not end the federation
            if self._on_error == "raise":
                raise
            return Message(Error(code=_CLIENT_RAISED, reason=f"{type(error).__name__}: {error}"), reply_to=message)
        return self._carry(reply)

    def _carry(self, message: Message) -> Message:
        if self._roundtrip:
            return _serialised(message)
        return _copied(message)


def _copied(message: Message) -> Message:
    """A message with records of its own. The bytes of arrays are immutable and therefore shared."""
    metadata = copy(message.metadata)  # its attributes lie in its own __dict__, so a shallow copy is enough
    if message.has_error():
        return Message(metadata=metadata, error=message.error)  # type: ignore[call-overload]
    return Message(metadata=metadata, content=copy_records(message.content))  # type: ignore[call-overload]


def copy_records(content: RecordDict) -> RecordDict:
    """A `RecordDict` whose records and lists may be changed without changing the original."""
    result = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays = record.copy()  # the constructor would build every array a second time
            for key, array in record.items():
                arrays[key] = copy(array)
            result[name] = arrays
        else:
            kind = MetricRecord if isinstance(record, MetricRecord) else ConfigRecord
            values = {key: list(value) if isinstance(value, list) else value for key, value in record.items()}
            result[name] = kind(values)  # type: ignore[arg-type]
    return result


def _serialised(message: Message) -> Message:
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.proto.message_pb2 import Message as Proto

    return message_from_proto(Proto.FromString(message_to_proto(message).SerializeToString()))


def ensure_task_identity() -> None:
    """Give this process the run, node and task id that Flower 1.41 wants before a `Message` can be made.

    In a deployment Flower has set them, and they are left alone. The module is internal to Flower; a version
    without it needs nothing.
    """
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:
        return
    for name in ("run_id", "node_id", "task_id"):
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:
            setattr(TaskIdentity, name, 1)


@contextlib.contextmanager
def quiet_flower(level: int = logging.ERROR) -> Iterator[None]:
    """Only let Flower's log lines of at least `level` through inside the block."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
