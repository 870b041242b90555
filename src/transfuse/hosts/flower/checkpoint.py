"""A federation that survives the death of its server: any Flower strategy, saved after rounds and continued from there.

>>> import numpy as np, tempfile
>>> from flwr.app import RecordDict
>>> from flwr.serverapp.strategy import FedAvg
>>> from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
>>> def client(message, context):
...     w = message.content["arrays"]["w"].numpy() + context.node_config["partition-id"]
...     records = {"arrays": ArrayRecord({"w": Array(w)}), "metrics": MetricRecord({"num-examples": 1})}
...     return Message(RecordDict(records), reply_to=message)
>>> start = ArrayRecord({"w": Array(np.zeros(1))})
>>> with quiet_flower(), tempfile.TemporaryDirectory() as folder:
...     for rounds in (2, 5):  # the second time it goes on with round 3, in another process if need be
...         strategy = Checkpointed(FedAvg(fraction_evaluate=0.0), Path(folder) / "run.safetensors")
...         result = strategy.start(LocalGrid(client, nodes=3), start, num_rounds=rounds)
>>> result.arrays["w"].numpy(), sorted(result.train_metrics_clientapp)
(array([5.]), [1, 2, 3, 4, 5])

What a strategy remembers from round to round is saved with the model. Flower's own strategies are known here; a class
of your own that remembers something gives it as `state()` and takes it back in `restore(state)`, see `HasState`. Nodes
keep their own state (`context.state`) and are not saved.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from logging import INFO, getLogger
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Result, Strategy
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from transfuse.atomic import replacing
from transfuse.errors import UserError

EvaluateFunction = Callable[[int, ArrayRecord], MetricRecord | None]
State = dict[str, Any]  # arrays as NumPy arrays, everything else as JSON knows it

_LOG = getLogger("flwr")
_FORMAT = 1
# What Flower's strategies remember besides the model, which they read anew from the arrays of each round.
_REMEMBERED: dict[type[Strategy], tuple[str, ...]] = {
    flower.FedAvgM: ("momentum_vector",),
    flower.FedAdagrad: ("m_t", "v_t"),
    flower.FedAdam: ("m_t", "v_t"),
    flower.FedYogi: ("m_t", "v_t"),
}
_REFUSED = (
    flower.DifferentialPrivacyClientSideAdaptiveClipping,  # its clipping norm is not offered to the outside
    flower.DifferentialPrivacyServerSideAdaptiveClipping,
    flower.FedXgbBagging,
    flower.FedXgbCyclic,
)
_METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")


@runtime_checkable
class HasState(Protocol):
    """A class in a strategy's line of ancestors that remembers something from round to round.

    Each class speaks for itself only: `Checkpointed` asks every class that defines the two methods.
    """

    def state(self) -> State: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class Checkpointed(Strategy):
    """Another strategy, saved after every round; `start` goes on after the last saved one.

    Rounds keep their numbers, so schedules, samplers and curves continue as if nothing had happened, and the arrays are
    bit for bit those of an undisturbed run, as long as clients depend on nothing but the message.

    Args:
        strategy: any strategy; those of Flower whose memory cannot be read are refused.
        path: the checkpoint, one .safetensors file, replaced as a whole.
        every: save after every so many rounds, and after the last.
        seed: Flower's strategies draw clients, and the order of their replies, from Python's global generator; inside a
            round's draw it is seeded with this and the round, so that a resumed federation draws the same. None leaves
            the generator alone.

    Raises:
        UserError: a checkpoint of another strategy or model, or one that cannot be read.
    """

    def __init__(self, strategy: Strategy, path: Path | str, every: int = 1, seed: int | None = 0) -> None:
        if every < 1:
            raise UserError(f"every = {every}", "save after every round (1) or after every so many")
        if isinstance(strategy, _REFUSED):
            raise UserError(f"{type(strategy).__name__}, whose state cannot be read", "a strategy built on FedAvg")
        self.strategy, self.path, self.every, self.seed = strategy, Path(path), every, seed
        self._done = 0  # rounds that an earlier process finished
        self._kept: dict[str, dict[int, MetricRecord]] = {name: {} for name in _METRICS}
        self._arrays = ArrayRecord()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFunction | None = None,
    ) -> Result:
        """As `Strategy.start`, with `num_rounds` the number of rounds altogether, earlier ones included."""
        self._arrays = self._load(initial_arrays) or initial_arrays
        if self._done:
            _LOG.log(INFO, "Rounds 1 to %s are in %s; going on from there", self._done, self.path)

        def after_round(current: int, arrays: ArrayRecord) -> MetricRecord | None:
            server_round = current + self._done
            self._arrays = arrays
            if current == 0 and self._done:
                return None  # the starting point was judged by the process that began
            metrics = evaluate_fn(server_round, arrays) if evaluate_fn else None
            self._keep("evaluate_metrics_serverapp", server_round, metrics)
            if current and (server_round % self.every == 0 or server_round == num_rounds):
                self._save(server_round)
            return metrics

        remaining = max(0, num_rounds - self._done)
        super().start(grid, self._arrays, remaining, timeout, train_config, evaluate_config, after_round)
        return Result(self._arrays, **{name: dict(sorted(self._kept[name].items())) for name in _METRICS})

    def summary(self) -> None:
        """That of the strategy, and where it is saved."""
        self.strategy.summary()
        _LOG.log(INFO, "\t├──> Checkpoint: %s, every %s", self.path, self.every)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """That of the strategy, in the round's own number."""
        number = server_round + self._done
        with _seeded(self.seed, f"train-{number}"):
            return list(self.strategy.configure_train(number, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """That of the strategy, in the round's own number."""
        arrays, metrics = self.strategy.aggregate_train(server_round + self._done, replies)
        self._keep("train_metrics_clientapp", server_round + self._done, metrics)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """That of the strategy, in the round's own number."""
        number = server_round + self._done
        with _seeded(self.seed, f"evaluate-{number}"):
            return list(self.strategy.configure_evaluate(number, arrays, config, grid))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """That of the strategy, in the round's own number."""
        metrics = self.strategy.aggregate_evaluate(server_round + self._done, replies)
        self._keep("evaluate_metrics_clientapp", server_round + self._done, metrics)
        return metrics

    def _keep(self, kind: str, server_round: int, metrics: MetricRecord | None) -> None:
        if metrics is not None:
            self._kept[kind][server_round] = metrics

    def _save(self, server_round: int) -> None:
        tensors = {f"model/{key}": array.numpy() for key, array in self._arrays.items()}
        plain: dict[str, dict[str, Any]] = {}
        for owner, state in strategy_state(self.strategy).items():
            for key, value in state.items():
                if isinstance(value, np.ndarray):
                    tensors[f"state/{owner}/{key}"] = value
                else:
                    plain.setdefault(owner, {})[key] = value
        metrics = {kind: {r: dict(record) for r, record in kept.items()} for kind, kept in self._kept.items()}
        about = {
            "format": _FORMAT, "round": server_round, "strategy": type(self.strategy).__name__,
            "order": list(self._arrays), "plain": plain, "metrics": metrics,
        }  # fmt: skip
        with replacing(self.path) as temporary:
            contiguous = {key: np.ascontiguousarray(value).reshape(value.shape) for key, value in tensors.items()}
            save_file(contiguous, temporary, metadata={"federation": json.dumps(about)})

    def _load(self, initial: ArrayRecord) -> ArrayRecord | None:
        if not self.path.exists():
            return None
        tensors, about = _read(self.path)
        if about["strategy"] != type(self.strategy).__name__:
            raise UserError(
                f"{self.path} was saved by {about['strategy']}", f"a checkpoint of {type(self.strategy).__name__}",
                "name another path for another federation",
            )  # fmt: skip
        saved = {key: tensors[f"model/{key}"] for key in about["order"]}
        if {key: value.shape for key, value in saved.items()} != {key: tuple(a.shape) for key, a in initial.items()}:
            raise UserError(f"{self.path} holds another model than the initial arrays", "the same names and shapes")
        states: dict[str, State] = {owner: dict(values) for owner, values in about["plain"].items()}
        for name, value in tensors.items():
            if name.startswith("state/"):
                _, owner, key = name.split("/", 2)
                states.setdefault(owner, {})[key] = value
        restore_strategy(self.strategy, states)
        for kind in _METRICS:
            records = about["metrics"][kind].items()
            self._kept[kind] = {int(r): MetricRecord(values) for r, values in records}
        self._done = int(about["round"])
        return ArrayRecord({key: Array(value) for key, value in saved.items()})


@contextlib.contextmanager
def _seeded(seed: int | None, what: str) -> Iterator[None]:
    """Python's global generator, seeded inside the block and as it was after it."""
    if seed is None:
        yield
        return
    before = random.getstate()
    random.seed(f"{seed}-{what}")
    try:
        yield
    finally:
        random.setstate(before)


def strategy_state(strategy: Strategy) -> dict[str, State]:
    """What each class in the strategy's line of ancestors remembers, by the name of the class."""
    states: dict[str, State] = {}
    for owner in type(strategy).__mro__:
        if owner in _REMEMBERED:
            states[owner.__name__] = _flower_state(strategy, _REMEMBERED[owner])
        elif "state" in vars(owner) and owner is not HasState:
            states[owner.__name__] = vars(owner)["state"](strategy)
    return {name: state for name, state in states.items() if state}


def restore_strategy(strategy: Strategy, states: Mapping[str, Mapping[str, Any]]) -> None:
    """The opposite of `strategy_state`."""
    for owner in type(strategy).__mro__:
        state = states.get(owner.__name__)
        if state is None:
            continue
        if owner in _REMEMBERED:
            _restore_flower(strategy, _REMEMBERED[owner], state)
        elif "restore" in vars(owner):
            vars(owner)["restore"](strategy, state)


def _flower_state(strategy: Strategy, names: Iterable[str]) -> State:
    """Moments are None, a list of arrays, or arrays by name."""
    state: State = {}
    for name in names:
        value = getattr(strategy, name)
        if isinstance(value, list):
            state |= {f"{name}[{index}]": np.asarray(array) for index, array in enumerate(value)}
        elif value is not None:
            state |= {f"{name}.{key}": np.asarray(array) for key, array in value.items()}
    return state


def _restore_flower(strategy: Strategy, names: Iterable[str], state: Mapping[str, Any]) -> None:
    for name in names:
        by_key = {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}
        count = sum(key.startswith(f"{name}[") for key in state)
        if by_key:
            setattr(strategy, name, by_key)
        elif count:
            setattr(strategy, name, [state[f"{name}[{index}]"] for index in range(count)])


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["federation"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is not a checkpoint of a federation ({reason})", "a file that Checkpointed wrote",
            "name another path, or remove the file to start anew",
        ) from None  # fmt: skip
    if about.get("format") != _FORMAT:
        raise UserError(f"{path} has format {about.get('format')}", f"format {_FORMAT}")
    return tensors, about
