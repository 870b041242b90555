"""The client's side of Fed-MNMT: one model a process, in which the trainable parameters of a node are swapped in.

A frozen model of 600 million parameters is held once, whatever the number of clients: only adapters and layer norms
come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.federated.bottleneck_adapters import exchanged_parameters, load_arrays
from transfuse.methods.federated.client_clusters import sketch
from transfuse.methods.federated.node_queries import Facts, answer_describe, answer_gradient
from transfuse.nets.tiny_translator import language_tag

IGNORED = -100  # label that transformers leaves out of the loss


@dataclass(frozen=True)
class Pair:
    """One sentence and its translation, as token ids with language tags and end marks where the model wants them."""

    source: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains in a round.

    Attributes:
        rate: step size of Adam, which starts afresh in every round.
        batch: sentences a step.
        epochs: passes over the client's data a round.
        bucketed: whether sentences of alike length share a batch, so that little of it is padding.
    """

    rate: float = 1e-3  # the paper's
    batch: int = 128  # the paper's 8 with 16 steps of accumulation
    epochs: int = 1  # the paper's
    bucketed: bool = (
        True  # the same sentences in another order; the official code pads to the longest of a random batch
    )


def encode_pairs(
    tokenizer: Any, text: Mapping[str, Sequence[str]], source: str, target: str, longest: int = 60
) -> tuple[Pair, ...]:
    """Lines as mBART-50 has them: language tag, at most so many subwords, end mark, on both sides."""
    sides = []
    for language in (source, target):
        tag = tokenizer.convert_tokens_to_ids(language_tag(language))
        ids = tokenizer(list(text[language]), add_special_tokens=False)["input_ids"]
        sides.append([(tag, *line[:longest], tokenizer.eos_token_id) for line in ids])
    return tuple(Pair(a, b) for a, b in zip(*sides, strict=True))


def collate(pairs: Sequence[Pair], pad: int, device: Any = None) -> dict[str, Tensor]:
    """A batch as transformers' encoder-decoders take it: input_ids, attention_mask, labels, each (batch, tokens)."""
    longest, widest = max(len(p.source) for p in pairs), max(len(p.target) for p in pairs)
    ids = torch.tensor([[*p.source, *[pad] * (longest - len(p.source))] for p in pairs], device=device)
    mask = torch.tensor([[1] * len(p.source) + [0] * (longest - len(p.source)) for p in pairs], device=device)
    labels = torch.tensor([[*p.target, *[IGNORED] * (widest - len(p.target))] for p in pairs], device=device)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def batches(pairs: Sequence[Pair], size: int, rng: np.random.Generator, bucketed: bool = True) -> Iterator[list[Pair]]:
    """All pairs once, in batches; bucketed by length with random order among equals, and batches in random order."""
    order = rng.permutation(len(pairs))
    if bucketed:
        lengths = np.array([max(len(p.source), len(p.target)) for p in pairs])
        order = order[np.argsort(lengths[order], kind="stable")]
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    for index in rng.permutation(len(chunks)):
        yield [pairs[i] for i in chunks[index]]


def train_locally(
    model: nn.Module, pairs: Sequence[Pair], how: LocalTraining, rng: np.random.Generator, pad: int
) -> float:
    """Train the trainable parameters in place; returns the mean training loss over sentences."""
    parameters = list(exchanged_parameters(model).values())
    optimiser = torch.optim.Adam(parameters, lr=how.rate)
    model.train()
    total = 0.0
    for _ in range(how.epochs):
        for chosen in batches(pairs, how.batch, rng, how.bucketed):
            loss = model(**collate(chosen, pad, parameters[0].device)).loss
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(chosen)
    return total / (len(pairs) * how.epochs)


@torch.no_grad()
def mean_loss(model: nn.Module, pairs: Sequence[Pair], pad: int, batch: int = 256) -> float:
    """Mean cross-entropy a target token, in nats."""
    model.eval()
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    for start in range(0, len(pairs), batch):
        chosen = pairs[start : start + batch]
        count = sum(len(p.target) for p in chosen)
        total += float(model(**collate(chosen, pad, device)).loss) * count
        tokens += count
    return total / max(tokens, 1)


def mean_gradient(
    model: nn.Module, pairs: Sequence[Pair], how: LocalTraining, rng: np.random.Generator, pad: int, steps: int = 4
) -> dict[str, np.ndarray]:
    """Mean gradient of the trainable parameters over some batches, by name; the model does not move."""
    parameters = exchanged_parameters(model)
    model.eval()
    model.zero_grad(set_to_none=True)
    taken = 0
    for chosen in batches(pairs, how.batch, rng, how.bucketed):
        model(**collate(chosen, pad, next(iter(parameters.values())).device)).loss.backward()
        taken += 1
        if taken == steps:
            break
    found = {
        name: (torch.zeros_like(p) if p.grad is None else p.grad / taken).float().cpu().numpy()
        for name, p in parameters.items()
    }
    model.zero_grad(set_to_none=True)
    return found


def exchanged_arrays(model: nn.Module) -> ArrayRecord:
    """The trainable parameters of a model as Flower sends them."""
    return ArrayRecord(
        {name: Array(p.detach().cpu().numpy().copy()) for name, p in exchanged_parameters(model).items()}
    )


def adapter_client(
    model: nn.Module,
    data: Callable[[Context, str], Sequence[Pair]],
    how: LocalTraining | Callable[[Context], LocalTraining],
    *,
    facts: Callable[[Context], Facts],
    pad: int,
    seed: int = 0,
) -> ClientApp:
    """A Flower client application for an encoder-decoder with adapters, ours or PEFT's.

    Args:
        model: with the parameters to exchange trainable and all others frozen; shared by all nodes of the process.
        data: context and "train" or "dev" -> the node's pairs.
        how: local training, or what makes it from a context's run_config.
        facts: what the node tells of itself, such as {"source": "de", "target": "fr"}.
        pad: token id of padding.
        seed: of the order of batches, with the partition id and the round.
    """
    app = ClientApp()

    def prepare(message: Message, context: Context, split: str) -> Sequence[Pair]:
        load_arrays(model, ((key, array.numpy()) for key, array in message.content.array_records["arrays"].items()))
        pairs = data(context, split)
        if not pairs:
            raise UserError(f"node {context.node_id} has no {split} data", "at least one pair of sentences")
        return pairs

    def training(context: Context) -> LocalTraining:
        return how if isinstance(how, LocalTraining) else how(context)

    def stream(context: Context, number: int) -> np.random.Generator:
        return np.random.default_rng((seed, int(context.node_config["partition-id"]), number))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        pairs = prepare(message, context, "train")
        rng = stream(context, int(message.content.config_records["config"]["server-round"]))  # type: ignore[arg-type]
        loss = train_locally(model, pairs, training(context), rng, pad)
        metrics = MetricRecord({"num-examples": len(pairs), "loss": loss})
        return Message(RecordDict({"arrays": exchanged_arrays(model), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        pairs = prepare(message, context, "dev")
        metrics = MetricRecord({"num-examples": len(pairs), "loss": mean_loss(model, pairs, pad)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    def gradient(message: Message, context: Context) -> Mapping[str, np.ndarray]:
        pairs = prepare(message, context, "train")
        return mean_gradient(model, pairs, training(context), stream(context, 0), pad)

    return answer_gradient(answer_describe(app, facts), gradient, sketch)
