"""The server: clusters of nodes for the encoder and for the decoder, and each node's own model afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result

from fed_mnmt_app.task import model
from transfuse.methods.federated.adapter_client import exchanged_arrays
from transfuse.methods.federated.fed_mnmt import ClusteredFedAvg
from transfuse.methods.federated.update_conflict import write_history

app = ServerApp()


def federate(grid: Grid, config: dict) -> Result:
    """Run the federation on any grid: a deployment's, or a LocalGrid."""
    nodes = len(str(config["directions"]).split(","))
    strategy = ClusteredFedAvg(
        clusters=str(config["clusters"]),  # type: ignore[arg-type]
        min_train_nodes=nodes,
        min_available_nodes=nodes,
        fraction_evaluate=0.0,  # a phase less a round
    )
    result = strategy.start(grid, exchanged_arrays(model()), num_rounds=int(config["rounds"]))
    if config["out"]:
        folder = Path(str(config["out"]))
        folder.mkdir(parents=True, exist_ok=True)
        write_history(strategy.conflicts, folder / "history.jsonl")
        for node, partition in strategy.partitions.items():
            arrays = {key: array.numpy() for key, array in strategy.node_arrays(node).items()}
            np.savez(folder / f"model-{partition}.npz", **arrays)
        (folder / "done").touch()
    return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    """What `flwr run` starts."""
    federate(grid, dict(context.run_config))
