"""The server: FedGLAD with a paired client sampler, evaluated on held-out digits after each round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result

from fedglad_app.task import initial_arrays, split, to_params
from transfuse.hosts.flower.client_sampling import SampledStrategy, UniformSampler
from transfuse.hosts.flower.cohort import accuracy
from transfuse.methods.federated.fedglad import FedGLAD
from transfuse.methods.federated.round_history import write_history

app = ServerApp()


class SampledFedGLAD(SampledStrategy, FedGLAD):
    """FedGLAD whose draws depend on a seed and the round only."""


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Accuracy of the global model on the test digits."""
    _, test = split()
    return MetricRecord({"accuracy": accuracy(to_params(arrays), test.features, test.labels)})


def federate(grid: Grid, config: dict) -> Result:
    """Run the federation on any grid: a deployment's, or a LocalGrid."""
    clients = int(config["clients-a-round"])
    strategy = SampledFedGLAD(
        sampler=UniformSampler(clients, seed=0),
        server_learning_rate=float(config["server-learning-rate"]),
        min_available_nodes=clients,
        fraction_evaluate=0.0,  # evaluated on the server, which saves a phase a round
    )
    result = strategy.start(
        grid, initial_arrays(int(config["hidden"])), num_rounds=int(config["rounds"]), evaluate_fn=evaluate
    )
    if config["out"]:
        folder = Path(str(config["out"]))
        folder.mkdir(parents=True, exist_ok=True)
        write_history(strategy.history, folder / "history.jsonl")
        np.savez(folder / "model.npz", **to_params(result.arrays))
    return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    """What `flwr run` starts."""
    federate(grid, dict(context.run_config))
