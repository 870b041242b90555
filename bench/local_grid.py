"""Seconds a round: the in-process grid against Flower's own simulation engine, the same strategy and client app.

python bench/local_grid.py [--json] [--rounds 5] [--nodes 20]

A fixed cost (the start of Ray, of the run) does not count: it is the difference between a long and a short federation,
divided by the rounds. The final arrays of both must be equal.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower

PARAMETERS = 100_000


def make_client() -> ClientApp:
    """A client that costs next to nothing, so that the transport is what is timed."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        arrays = {"w": Array(message.content["arrays"]["w"].numpy() * np.float32(0.5) + np.float32(number))}
        records = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(records), reply_to=message)

    return app


def federate(grid: Grid, rounds: int) -> np.ndarray:
    start = ArrayRecord({"w": Array(np.zeros(PARAMETERS, dtype=np.float32))})
    result = FedAvg(fraction_evaluate=0.0).start(grid, start, num_rounds=rounds)
    return result.arrays["w"].numpy()


def local(rounds: int, nodes: int) -> tuple[float, np.ndarray]:
    begin = time.perf_counter()
    arrays = federate(LocalGrid(make_client(), nodes), rounds)
    return time.perf_counter() - begin, arrays


def simulated(rounds: int, nodes: int) -> tuple[float, np.ndarray]:
    from flwr.simulation import run_simulation

    found: list[np.ndarray] = []
    spent: list[float] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < nodes:  # FedAvg counts the nodes before it waits for them
            time.sleep(0.1)
        begin = time.perf_counter()
        found.append(federate(grid, rounds))
        spent.append(time.perf_counter() - begin)

    resources = {"num_cpus": 1, "num_gpus": 0.0}
    run_simulation(app, make_client(), num_supernodes=nodes, backend_config={"client_resources": resources})
    return spent[0], found[0]


def a_round(run: object, rounds: int, nodes: int) -> tuple[float, np.ndarray]:
    short, _ = run(1, nodes)  # type: ignore[operator]
    long, arrays = run(1 + rounds, nodes)  # type: ignore[operator]
    return (long - short) / rounds, arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=20)
    arguments = parser.parse_args()
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    with quiet_flower(logging.CRITICAL):
        ours, first = a_round(local, arguments.rounds, arguments.nodes)
        theirs, second = a_round(simulated, arguments.rounds, arguments.nodes)
    np.testing.assert_allclose(first, second, rtol=1e-5)
    figures = {"local_grid_ms": ours * 1e3, "simulation_engine_ms": theirs * 1e3, "ratio": theirs / ours}
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(*(f"{name:<24}{value:10.2f}" for name, value in figures.items()), sep="\n")


if __name__ == "__main__":
    main()
