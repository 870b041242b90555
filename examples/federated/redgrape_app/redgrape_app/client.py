"""The client: `train_and_reply` is the whole of its training."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from redgrape_app.task import HEAD, Classifier, client_loader, settings
from transfuse.hosts.flower.client_sampling import answer_describe
from transfuse.methods.federated.redgrape import train_and_reply

app = answer_describe(ClientApp())  # lets the server draw clients by partition id, so that runs can be compared


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this node's digits; send the weights and the class-wise gradients back."""
    partition = int(context.node_config["partition-id"])
    server_round = int(message.content["config"]["server-round"])
    loader = client_loader(partition, int(context.node_config["num-partitions"]), context.run_config, server_round)
    return train_and_reply(
        message, context, Classifier(), loader, settings(context.run_config), head=HEAD, seed=partition
    )
