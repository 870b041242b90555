"""FedGLAD's server side against plain FedAvg and against the published code's way, and a round on LocalGrid.

    python bench/fedglad.py [--json] [--repeats 7]

Model: the trainable shapes of a ResNet-56 for 32 x 32 images. Times are medians of alternating repetitions in one
process; they depend on the machine, their ratios hardly.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.fedglad import FedGLAD


def resnet56_shapes() -> OrderedDict[str, tuple[int, ...]]:
    """Trainable tensors of a ResNet-56: 55 convolutions with their normalisation's scale and shift, one classifier."""
    shapes: OrderedDict[str, tuple[int, ...]] = OrderedDict()
    width_in = 3
    for layer in range(55):
        width = 16 if layer < 19 else 32 if layer < 37 else 64
        shapes[f"conv{layer}.weight"] = (width, width_in, 3, 3)
        if layer < 54:  # 54 x 3 + 1 + 2 = 165 tensors
            shapes[f"norm{layer}.weight"], shapes[f"norm{layer}.bias"] = (width,), (width,)
        width_in = width
    shapes["fc.weight"], shapes["fc.bias"] = (10, 64), (10,)
    return shapes


class StateDictModel:
    """Hands out a freshly built state dict at each call, as torch modules do."""

    def __init__(self, tensors: OrderedDict[str, torch.Tensor]) -> None:
        module = torch.nn.Module()
        for key, value in tensors.items():
            parent = module
            *path, name = key.split(".")
            for part in path:
                if part not in dict(parent.named_children()):
                    parent.add_module(part, torch.nn.Module())
                parent = dict(parent.named_children())[part]
            parent.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
        self.state_dict = module.state_dict


def published_way(model: StateDictModel, replies: list[tuple[float, dict[str, torch.Tensor]]]) -> dict:
    """The published form's work: tensor by tensor and client by client, norms with a device read each, twice over."""
    total = sum(weight for weight, _ in replies)
    mean = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    for weight, state in replies:
        for key in mean:
            mean[key] += weight / total * (state[key] - model.state_dict()[key])
    squares, distances = dict.fromkeys(mean, 0.0), dict.fromkeys(mean, 0.0)
    for weight, state in replies:
        for key in mean:
            update = state[key] - model.state_dict()[key]
            squares[key] += weight / total * torch.norm(update).item() ** 2
            distances[key] += weight / total * torch.norm(mean[key] - update).item() ** 2
    values = {key: (1 - distances[key] / squares[key]) ** -0.5 for key in mean}
    new = {key: value + 1.0 * mean[key] for key, value in model.state_dict().items()}  # first round: ratio one
    return {"gsi": values, "new": new}


def medians(repeats: int, **candidates: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each candidate, in alternation after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, function in candidates.items():
            start = time.perf_counter()
            function()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def one_aggregation(clients: int, repeats: int) -> dict[str, float]:
    """One round's aggregation by each way, equal outputs checked."""
    rng = np.random.default_rng(0)
    base = {key: rng.normal(size=shape).astype(np.float32) for key, shape in resnet56_shapes().items()}
    states = [
        {key: (value + 0.01 * rng.normal(size=value.shape)).astype(np.float32) for key, value in base.items()}
        for _ in range(clients)
    ]
    weights = rng.integers(10, 100, clients).tolist()
    grid = LocalGrid(ClientApp(), clients)
    arrays = ArrayRecord({key: Array(value) for key, value in base.items()})
    plain = FedAvg(fraction_evaluate=0.0)
    messages = list(plain.configure_train(1, arrays, ConfigRecord(), grid))
    replies = []
    for message, state, weight in zip(messages, states, weights, strict=True):
        records = ArrayRecord({key: Array(value) for key, value in state.items()})
        content = RecordDict({"arrays": records, "metrics": MetricRecord({"num-examples": weight})})
        replies.append(Message(content, reply_to=message))

    def glad() -> tuple:
        strategy = FedGLAD(fraction_evaluate=0.0)
        strategy.configure_train(1, arrays, ConfigRecord(), grid)
        return strategy.aggregate_train(1, replies)

    strategy = FedGLAD(fraction_evaluate=0.0, gamma=0.05)
    strategy.configure_train(1, arrays, ConfigRecord(), grid)
    strategy.aggregate_train(1, replies)

    def later_round() -> tuple:  # factors differ from one, so every tensor is rescaled
        strategy._moments.reset(arrays)
        strategy.adapter.baseline *= 0.9  # else a repeated round would have ratio one
        return strategy.aggregate_train(20, replies)

    model = StateDictModel(OrderedDict((key, torch.from_numpy(value)) for key, value in base.items()))
    tensors = [{key: torch.from_numpy(value) for key, value in state.items()} for state in states]
    pairs = list(zip(weights, tensors, strict=True))
    theirs, (new, metrics) = published_way(model, pairs), glad()
    for key in base:
        np.testing.assert_allclose(new[key].numpy(), theirs["new"][key].numpy(), atol=1e-5)
    np.testing.assert_allclose(metrics["gsi_by_group"], list(theirs["gsi"].values()), rtol=1e-5)
    seconds = medians(
        repeats,
        fedavg=lambda: plain.aggregate_train(1, replies),
        fedglad=later_round,
        published=lambda: published_way(model, pairs),
    )
    return {
        "clients": clients,
        "fedavg_ms": 1e3 * seconds["fedavg"],
        "fedglad_ms": 1e3 * seconds["fedglad"],
        "published_ms": 1e3 * seconds["published"],
        "fedglad_over_fedavg": seconds["fedglad"] / seconds["fedavg"],
        "published_over_indicator": seconds["published"] / max(seconds["fedglad"] - seconds["fedavg"], 1e-9),
        "published_over_fedglad": seconds["published"] / seconds["fedglad"],
    }


def local_round(rounds: int = 20) -> float:
    """Milliseconds a round on LocalGrid: 20 nodes, 12 clients a round, 100 000 parameters, clients that only reply."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        arrays = {key: Array(array.numpy() + 0.01) for key, array in message.content["arrays"].items()}
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    arrays = ArrayRecord({f"w{i}": Array(np.zeros(25_000, np.float32)) for i in range(4)})
    strategy = FedGLAD(fraction_train=0.6, fraction_evaluate=0.0)
    start = time.perf_counter()
    strategy.start(LocalGrid(app, 20), arrays, num_rounds=rounds)
    return 1e3 * (time.perf_counter() - start) / rounds


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with quiet_flower():
        rows = [one_aggregation(clients, arguments.repeats) for clients in (10, 50)]
        milliseconds = local_round()
    if arguments.json:
        print(json.dumps({"aggregation": rows, "local_grid_round_ms": milliseconds}))
        return
    print("clients  FedAvg ms  FedGLAD ms  published ms  FedGLAD/FedAvg  published/FedGLAD  published/indicator alone")
    for row in rows:
        print(
            f"{row['clients']:7d}  {row['fedavg_ms']:9.1f}  {row['fedglad_ms']:10.1f}  {row['published_ms']:12.1f}  "
            f"{row['fedglad_over_fedavg']:14.2f}  {row['published_over_fedglad']:17.1f}  "
            f"{row['published_over_indicator']:25.1f}"
        )
    print(f"a round on LocalGrid (12 of 20 nodes, 100 000 parameters): {milliseconds:.1f} ms")


if __name__ == "__main__":
    main()
