"""The client: local training of adapters and layer norms, nothing else is sent."""

from __future__ import annotations

from flwr.app import Context

from fed_mnmt_app.task import model, node_pairs, tokenizer
from transfuse.methods.federated.adapter_client import LocalTraining, Pair, adapter_client


def directions(context: Context) -> list[str]:
    """All nodes' directions, in the order of partition ids."""
    return str(context.run_config["directions"]).split(",")


def data(context: Context, split: str) -> tuple[Pair, ...]:
    """This node's own text."""
    return node_pairs(int(context.node_config["partition-id"]), directions(context), int(context.run_config["pairs"]))


def facts(context: Context) -> dict[str, str]:
    """What the server clusters by."""
    own = directions(context)[int(context.node_config["partition-id"])]
    return dict(zip(("source", "target"), own.split("-"), strict=True))


def how(context: Context) -> LocalTraining:
    """The settings of the run."""
    return LocalTraining(rate=float(context.run_config["rate"]), batch=16)


app = adapter_client(model(), data, how, facts=facts, pad=tokenizer().pad_token_id)
