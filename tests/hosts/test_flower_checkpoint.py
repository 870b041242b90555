"""A federation continues after its server has died, with the arrays of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    Strategy,
)

from transfuse.errors import UserError
from transfuse.hosts.flower.checkpoint import Checkpointed, strategy_state
from transfuse.hosts.flower.client_sampling import AdaFLSampler, SampledStrategy
from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.fedglad import FedGLAD, GLADMixin


class GLADAdam(GLADMixin, FedAdam):
    pass


class Sampled(SampledStrategy, FedGLAD):
    pass


HALF = {"fraction_train": 0.5, "fraction_evaluate": 0.0}  # a draw, so that a resumed run has to repeat it
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "fedavg": lambda: FedAvg(**HALF),
    "fedavgm": lambda: FedAvgM(**HALF, server_momentum=0.9),
    "fedadam": lambda: FedAdam(**HALF),
    "fedyogi": lambda: FedYogi(**HALF),
    "fedglad": lambda: FedGLAD(**HALF),
    "glad_adam": lambda: GLADAdam(**HALF),
    "sampled": lambda: Sampled(sampler=AdaFLSampler(3, seed=1), **HALF),
}


def client(message: Message, context: Context) -> Message:
    """A step of gradient descent towards the node's own target, on a loss that differs from node to node."""
    number = int(context.node_config["partition-id"])
    target = np.random.default_rng(number).normal(size=(4, 3))
    arrays = {key: array.numpy() for key, array in message.content["arrays"].items()}
    arrays["w"] = arrays["w"] - 0.1 * (number + 1) * np.tanh(arrays["w"] - target)
    arrays["b"] = arrays["b"] + np.float32(0.1) * np.float32(number)
    records = {
        "arrays": ArrayRecord({key: Array(value) for key, value in arrays.items()}),
        "metrics": MetricRecord({"num-examples": number + 1, "loss": float(np.square(arrays["w"] - target).sum())}),
    }
    return Message(RecordDict(records), reply_to=message)


def initial() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros((4, 3))), "b": Array(np.zeros(1, dtype=np.float32))})


def judge(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"round": server_round, "norm": float(np.linalg.norm(arrays["w"].numpy()))})


def federate(strategy: Strategy, rounds: int):
    with quiet_flower():
        return strategy.start(LocalGrid(client, 6, on_error="raise"), initial(), num_rounds=rounds, evaluate_fn=judge)


@pytest.mark.parametrize("name", STRATEGIES)
def test_resumed_equals_undisturbed(name: str, tmp_path: Path) -> None:
    whole = federate(Checkpointed(STRATEGIES[name](), tmp_path / "whole.safetensors"), 7)
    for rounds in (2, 5, 7):
        result = federate(Checkpointed(STRATEGIES[name](), tmp_path / "run.safetensors"), rounds)
    assert set(whole.arrays) == {"w", "b"}
    for key in whole.arrays:
        np.testing.assert_array_equal(result.arrays[key].numpy(), whole.arrays[key].numpy())
        assert result.arrays[key].dtype == whole.arrays[key].dtype
    for kind in ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp"):
        assert getattr(result, kind) == getattr(whole, kind), kind
    assert list(result.evaluate_metrics_serverapp) == list(range(8))


def test_history_of_glad_survives(tmp_path: Path) -> None:
    whole = STRATEGIES["fedglad"]()
    federate(Checkpointed(whole, tmp_path / "whole.safetensors"), 6)
    for rounds in (3, 6):
        strategy = STRATEGIES["fedglad"]()
        federate(Checkpointed(strategy, tmp_path / "run.safetensors"), rounds)
    assert [(r.round, r.gsi, r.clients) for r in strategy.history] == [
        (r.round, r.gsi, r.clients) for r in whole.history
    ]


def test_seed_decides_who_is_drawn(tmp_path: Path) -> None:
    random.seed(5)
    before = random.getstate()
    runs = [Checkpointed(STRATEGIES["fedavg"](), tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1))]
    first, same, other = (federate(run, 3).arrays["w"].numpy() for run in runs)
    assert random.getstate() == before
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_finished_federation_runs_no_round(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    first = federate(Checkpointed(STRATEGIES["fedavg"](), path), 3)
    grid = LocalGrid(client, 6)
    with quiet_flower():
        again = Checkpointed(STRATEGIES["fedavg"](), path).start(grid, initial(), num_rounds=3)
    assert grid.messages_sent == 0
    np.testing.assert_array_equal(again.arrays["w"].numpy(), first.arrays["w"].numpy())


def test_rounds_between_saves_are_run_again(tmp_path: Path) -> None:
    whole = federate(Checkpointed(STRATEGIES["fedadam"](), tmp_path / "whole"), 6)
    federate(Checkpointed(STRATEGIES["fedadam"](), tmp_path / "c", every=2), 4)
    saved = (tmp_path / "c").read_bytes()
    federate(Checkpointed(STRATEGIES["fedadam"](), tmp_path / "c", every=4), 5)
    (tmp_path / "c").write_bytes(saved)  # as if the server had died before round 5 was saved
    result = federate(Checkpointed(STRATEGIES["fedadam"](), tmp_path / "c", every=2), 6)
    np.testing.assert_array_equal(result.arrays["w"].numpy(), whole.arrays["w"].numpy())


def test_state_of_flowers_strategies_is_complete() -> None:
    """Whatever changes in a strategy over rounds and is no copy of the model must be in its saved state."""
    for name in ("fedavgm", "fedadam", "fedyogi"):
        strategy = STRATEGIES[name]()
        before = dict(vars(strategy))
        federate(strategy, 2)
        changed = {key for key, value in vars(strategy).items() if not _same(value, before.get(key))}
        saved = {key.split(".")[0].split("[")[0] for state in strategy_state(strategy).values() for key in state}
        assert changed - {"current_arrays"} == saved, name


def _same(value: object, other: object) -> bool:
    return value is other or (isinstance(value, int | float | str | bool) and value == other)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(b"nonsense"), "is not a checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not a checkpoint"),
        (lambda path: path.mkdir(), "is not a checkpoint"),
    ],
)
def test_unreadable_checkpoints_are_named(make: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    federate(Checkpointed(STRATEGIES["fedavg"](), path), 1)
    if make.__code__.co_names[:1] == ("mkdir",):
        path.unlink()
    make(path)
    with pytest.raises(UserError, match=says):
        federate(Checkpointed(STRATEGIES["fedavg"](), path), 2)


def test_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    federate(Checkpointed(STRATEGIES["fedavg"](), path), 1)
    with pytest.raises(UserError, match="saved by FedAvg; expected a checkpoint of FedAdam"):
        federate(Checkpointed(STRATEGIES["fedadam"](), path), 2)
    other = ArrayRecord({"w": Array(np.zeros(2))})
    with quiet_flower(), pytest.raises(UserError, match="another model"):
        Checkpointed(STRATEGIES["fedavg"](), path).start(LocalGrid(client, 2), other, num_rounds=2)


def test_strategies_whose_memory_is_hidden_are_refused(tmp_path: Path) -> None:
    strategy = DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), noise_multiplier=0.1, num_sampled_clients=2)
    with pytest.raises(UserError, match="cannot be read"):
        Checkpointed(strategy, tmp_path / "c")
    with pytest.raises(UserError, match="every = 0"):
        Checkpointed(FedAvg(), tmp_path / "c", every=0)


SERVER = """
import sys, time
sys.path.insert(0, {here!r})
from pathlib import Path
from test_flower_checkpoint import STRATEGIES, client, initial
from transfuse.hosts.flower.checkpoint import Checkpointed
from transfuse.hosts.flower.local_grid import LocalGrid

def slow(message, context):
    time.sleep(0.01)
    return client(message, context)

Checkpointed(STRATEGIES["glad_adam"](), Path({path!r})).start(LocalGrid(slow, 6), initial(), num_rounds=30)
"""


def test_killed_server_goes_on(tmp_path: Path) -> None:
    path, rng, kills = tmp_path / "run.safetensors", np.random.default_rng(0), 0
    code = SERVER.format(here=str(Path(__file__).parent), path=str(path))
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=os.environ)
        deadline = time.monotonic() + 60  # against a process that never saves anything
        while not path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if kills < 4:
            time.sleep(float(rng.uniform(0.0, 0.5)) + (1.5 if kills else 0.0))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        elif process.wait() == 0:
            break
    assert kills >= 1
    result = federate(Checkpointed(STRATEGIES["glad_adam"](), path), 30)
    assert [entry.name for entry in tmp_path.iterdir() if not entry.name.startswith(".")] == [path.name]
    whole = federate(Checkpointed(STRATEGIES["glad_adam"](), tmp_path / "whole"), 30)
    np.testing.assert_array_equal(result.arrays["w"].numpy(), whole.arrays["w"].numpy())
