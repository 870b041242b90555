"""The client: local training with the adversary and the matching that the server's settings ask for."""

from __future__ import annotations

import torch
from flwr.app import Context

from fedka_app.task import client_domain, domain, make_net
from transfuse.methods.federated.fedka_client import make_client

torch.set_num_threads(1)  # sums must not depend on the number of cores where two runs are compared


def data(context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """This node's domain."""
    return domain(client_domain(int(context.node_config["partition-id"]), str(context.run_config["target"])))


app = make_client(make_net, data)
