"""The server: RedGrape with a paired client sampler, evaluated on balanced digits after each round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result

from redgrape_app.task import HEAD, Classifier, initial_model, settings, split
from transfuse.hosts.flower.client_sampling import SampledStrategy, UniformSampler
from transfuse.methods.federated.redgrape import RedGrape, initial_arrays, model_arrays

app = ServerApp()


class SampledRedGrape(SampledStrategy, RedGrape):
    """RedGrape whose draws depend on a seed and the round only."""


def federate(grid: Grid, config: dict) -> Result:
    """Run the federation on any grid: a deployment's, or a LocalGrid."""
    _, test = split(float(config["ratio"]))
    clients = int(config["clients-a-round"])

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Accuracy of the deployed model: the second classifier's arrays are left out."""
        model = Classifier()
        model.load_state_dict(model_arrays(arrays).to_torch_state_dict())
        with torch.no_grad():
            right = model(torch.from_numpy(test.features)).argmax(1).numpy() == test.labels
        return MetricRecord({"accuracy": float(right.mean())})

    strategy = SampledRedGrape(
        sampler=UniformSampler(clients, seed=0),
        head=HEAD,
        redgrape=settings(config),
        min_available_nodes=clients,
        fraction_evaluate=0.0,  # evaluated on the server, which saves a phase a round
    )
    start = initial_arrays(initial_model(), HEAD)
    result = strategy.start(grid, start, num_rounds=int(config["rounds"]), evaluate_fn=evaluate)
    if config["out"] and strategy.table is not None:
        folder = Path(str(config["out"]))
        folder.mkdir(parents=True, exist_ok=True)
        known = strategy.table.known()
        np.savez(folder / "prototypes.npz", classes=known.classes, weight=known.weight, bias=known.bias)
        np.savez(folder / "model.npz", **{key: array.numpy() for key, array in result.arrays.items()})
    return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    """What `flwr run` starts."""
    federate(grid, dict(context.run_config))
