"""The server: FedKA towards a domain without labels; labels of a held-out half of it score the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result

from fedka_app.task import domain, make_net
from transfuse.hosts.flower.client_sampling import SampledStrategy, UniformSampler
from transfuse.methods.federated.fedka import FedKA
from transfuse.methods.federated.group_effect_report import write_effects
from transfuse.methods.federated.split_model import SplitModel

torch.set_num_threads(1)
app = ServerApp()


class SampledFedKA(SampledStrategy, FedKA):
    """FedKA whose draws, and order of clients, depend on a seed and the round only."""


def federate(grid: Grid, config: dict) -> Result:
    """Run the federation on any grid: a deployment's, or a LocalGrid."""
    x, y = domain(str(config["target"]))
    half, clients = len(y) // 2, int(config["clients"])

    def right(arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Right or wrong for each held-out sample; leave `evaluate` out where no labels are known."""
        model = SplitModel(make_net()).eval()
        model.model.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in arrays.items()})
        with torch.no_grad():
            return (model(x[half:]).argmax(dim=1) == y[half:]).numpy()

    strategy = SampledFedKA(
        model_fn=make_net,
        target=x[:half],
        evaluate=right,
        sampler=UniformSampler(clients, seed=0),
        min_available_nodes=clients,
        fraction_evaluate=0.0,  # evaluated on the server, which saves a phase a round
        steps=16,
        vote_steps=16,
        workspace=256,
        **{key: config[key] for key in ("share", "disentangle", "match", "vote", "broadcast", "rate")},
    )
    result = strategy.start(grid, SplitModel(make_net()).arrays(), num_rounds=int(config["rounds"]))
    if config["out"]:
        folder = Path(str(config["out"]))
        folder.mkdir(parents=True, exist_ok=True)
        write_effects(strategy.effects, folder / "effects.jsonl")
        np.savez(folder / "model.npz", **{key: array.numpy() for key, array in result.arrays.items()})
    return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    """What `flwr run` starts."""
    federate(grid, dict(context.run_config))
