"""The client: plain local training. FedGLAD asks nothing more of it than FedAvg does."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedglad_app.task import TRAINING, client_data, to_params
from transfuse.hosts.flower.client_sampling import answer_describe
from transfuse.hosts.flower.cohort import train_together

app = answer_describe(ClientApp())  # lets the server draw clients by partition id, so that runs can be compared


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this node's digits and send the weights back."""
    partition = int(context.node_config["partition-id"])
    data = client_data(partition, int(context.node_config["num-partitions"]), float(context.run_config["alpha"]))
    generator = np.random.default_rng((partition, int(message.content["config"]["server-round"])))
    trained = train_together(to_params(message.content["arrays"]), [data], TRAINING, [generator])
    arrays = ArrayRecord({key: Array(value[0]) for key, value in trained.items()})
    metrics = MetricRecord({"num-examples": len(data[1])})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
