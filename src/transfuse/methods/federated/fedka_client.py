"""The client's side of FedKA: the domain adversary, the matching of embeddings, and a Flower app that does both.

A client keeps its domain classifier and its optimiser's moments in ``context.state``, which survives rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn import functional as F

from transfuse.errors import UserError
from transfuse.hosts.flower.client_sampling import answer_describe
from transfuse.methods.federated.adam_state import adam, moments, restore_moments
from transfuse.methods.federated.fedka import Config, round_ramp
from transfuse.methods.federated.kernel_matching import features_mmd, frequencies, mk_mmd
from transfuse.methods.federated.split_model import (
    Part,
    SplitModel,
    as_tensors,
    frozen_statistics,
    rows_in_batches,
    seeded,
    stream_seed,
)

DataFunction = Callable[[Context], tuple[torch.Tensor, torch.Tensor]]
_STATE = "fedka"  # the record of `context.state`


class _ReversedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, alpha: float) -> torch.Tensor:
        ctx.alpha = alpha
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.alpha * gradient, None


def reverse_gradient(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """Identity forward, ``-alpha`` times the gradient backward (Ganin and Lempitsky 2015)."""
    return _ReversedGradient.apply(x, alpha)


class DomainHead(nn.Module):
    """Source (0) or target (1)? Log-probabilities from embeddings, behind a reversed gradient."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, embeddings: torch.Tensor, alpha: float) -> torch.Tensor:
        """(n, d) -> (n, 2)."""
        return self.layers(reverse_gradient(embeddings, alpha)).log_softmax(dim=-1)


@dataclass(frozen=True)
class Workspace:
    """What the server lets clients see of the target: see `Config.share`.

    Attributes:
        embeddings: under the global model, (m, d).
        samples: the samples themselves, (m, ...).
        mean: their mean random features, (2 f,).
        rows: the frequencies that `mean` was made with, (f, d).
    """

    embeddings: torch.Tensor | None = None
    samples: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    rows: torch.Tensor | None = None


def read_workspace(content: RecordDict, config: Config, size: int, device: torch.device) -> Workspace:
    """The workspace of a message; `size` is the length of an embedding."""
    if not config.needs_target:
        return Workspace()
    if "workspace" not in content.array_records:
        raise UserError("a message without workspace", "one from a FedKA strategy")
    found = as_tensors(content.array_records["workspace"], device)
    if config.share != "stats":
        return Workspace(found["embeddings"], found.get("samples"))
    table = frequencies(size, config.frequencies, float(found["width"]), int(found["seed"]))
    return Workspace(mean=found["mean"], rows=torch.from_numpy(table).to(found["mean"]))


def classification_loss(model: SplitModel, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of a source batch, and its embeddings (n, d)."""
    embeddings = model.embed(x)
    return F.nll_loss(model.classify(embeddings), y), embeddings


def adversarial_loss(
    model: SplitModel, domain: DomainHead, source: torch.Tensor, rows: torch.Tensor, workspace: Workspace, alpha: float
) -> torch.Tensor:
    """NLL of "source" for the source's embeddings plus NLL of "target" for the target's; the features are to raise it.

    With raw samples the target's embeddings are the client's own and are moved too; shared ones are constants.
    """
    if workspace.samples is not None:
        with frozen_statistics(model):
            target = model.embed(workspace.samples[rows])
    else:
        assert workspace.embeddings is not None  # Config refuses the adversary with statistics only
        target = workspace.embeddings[rows]
    zeros = torch.zeros(len(source), dtype=torch.long, device=source.device)
    ones = torch.ones(len(target), dtype=torch.long, device=source.device)
    return F.nll_loss(domain(source, alpha), zeros) + F.nll_loss(domain(target, alpha), ones)


def matching_loss(
    source: torch.Tensor, rows: torch.Tensor, workspace: Workspace, alphas: torch.Tensor, official: bool = False
) -> torch.Tensor:
    """Mean over the accumulated batches of alpha times the squared discrepancy; `official` keeps only the last.

    Args:
        source: embeddings, (batches, n, d).
        rows: of the workspace, (batches, n); not used with statistics.
        workspace: the target's side.
        alphas: weight of each batch, (batches,).
        official: the notebook's slip: the sum holds the last batch only and is still divided by their number.
    """
    if workspace.mean is not None and workspace.rows is not None:
        terms = alphas * features_mmd(source, workspace.mean, workspace.rows)
    else:
        assert workspace.embeddings is not None
        terms = alphas * mk_mmd(source, workspace.embeddings[rows])
    return (terms[-1] if official else terms.sum()) / len(terms)


class LocalTraining:
    """One client's model, domain classifier and optimiser over the rounds.

    Args:
        model: the client's model, changed in place.
        config: the server's settings.
        size: length of an embedding.
        partition: the client's number, which seeds its domain classifier.
    """

    def __init__(self, model: SplitModel, config: Config, size: int, partition: int = 0) -> None:
        self.model, self.config = model, config
        with seeded(stream_seed(config.seed, partition, 10), model.device):
            self.domain = DomainHead(size, config.domain_hidden).to(model.device, model.dtype)
        parameters = [*model.parameters(), *(self.domain.parameters() if config.disentangle else ())]
        self.optimiser = adam(parameters, config.rate)
        self._pull = 0.0
        self._start: dict[torch.Tensor, torch.Tensor] = {}

    def round(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        workspace: Workspace,
        server_round: int,
        generator: torch.Generator,
        proximal: float = 0.0,
    ) -> dict[str, float]:
        """Blocks A and B of a round; returns mean losses.

        Args:
            x: the client's samples (n, ...).
            y: their classes, int64 (n,).
            workspace: the target's side.
            server_round: from 1.
            generator: of the batches.
            proximal: weight mu of FedProx's term mu/2 |w - start|^2.
        """
        config = self.config
        self._pull, self._start = proximal, {}
        if proximal:
            self._start = {p: p.detach().clone() for p in self.model.parameters()}
        alphas = round_ramp(server_round, config.steps, config.rounds or 1, config.slope)
        self.model.train()
        losses = self._disentangle(x, y, workspace, alphas, generator)
        if config.match:
            losses["matching_loss"] = self._match(x, workspace, alphas, generator)
        return losses

    def _disentangle(
        self, x: torch.Tensor, y: torch.Tensor, workspace: Workspace, alphas: list[float], generator: torch.Generator
    ) -> dict[str, float]:
        """Block A, or plain training on the source without the adversary."""
        config, supervised, adversary = self.config, 0.0, 0.0
        source = rows_in_batches(len(y), config.steps, config.batch, generator).to(x.device)
        target = self._target_rows(workspace, generator, x.device)
        for step, alpha in enumerate(alphas):
            loss, embeddings = classification_loss(self.model, x[source[step]], y[source[step]])
            supervised += float(loss.detach()) / config.steps
            if config.disentangle:
                other = adversarial_loss(self.model, self.domain, embeddings, target[step], workspace, alpha)
                adversary += float(other.detach()) / config.steps
                loss = loss + other
            self._step(loss)
        return {"train_loss": supervised, **({"domain_loss": adversary} if config.disentangle else {})}

    def _match(self, x: torch.Tensor, workspace: Workspace, alphas: list[float], generator: torch.Generator) -> float:
        """Block B: one step for every few batches, which go through the model together; the head has no gradient."""
        config, total = self.config, 0.0
        source = rows_in_batches(len(x), config.steps, config.batch, generator).to(x.device)
        target = self._target_rows(workspace, generator, x.device)
        weights = torch.tensor(alphas, dtype=self.model.dtype, device=x.device)
        for start in range(0, config.steps, config.accumulate):
            part = slice(start, start + config.accumulate)
            embeddings = self.model.embed(x[source[part].flatten()]).unflatten(0, (config.accumulate, config.batch))
            loss = matching_loss(embeddings, target[part], workspace, weights[part], config.official)
            total += float(loss.detach()) * config.accumulate / config.steps
            self._step(config.mmd_weight * loss)
        return total

    def _target_rows(self, workspace: Workspace, generator: torch.Generator, device: torch.device) -> torch.Tensor:
        rows = 1 if workspace.embeddings is None else len(workspace.embeddings)
        return rows_in_batches(rows, self.config.steps, self.config.batch, generator).to(device)

    def _step(self, loss: torch.Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        for parameter, start in self._start.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self._pull)
        self.optimiser.step()

    def state(self) -> ArrayRecord:
        """The domain classifier and the optimiser's moments, for ``context.state``."""
        arrays = {f"domain.{key}": value for key, value in self.domain.state_dict().items()}
        arrays |= {f"adam.{key}": value for key, value in moments(self.optimiser).items()}
        return ArrayRecord({key: Array(value.detach().cpu().numpy().copy()) for key, value in arrays.items()})

    def restore(self, record: ArrayRecord) -> None:
        """Continue from `state`."""
        parts: dict[str, dict[str, torch.Tensor]] = {"domain": {}, "adam": {}}
        for key, value in as_tensors(record, self.model.device).items():
            kind, _, name = key.partition(".")
            parts[kind][name] = value
        self.domain.load_state_dict(parts["domain"])
        restore_moments(self.optimiser, parts["adam"])


def train_reply(
    message: Message, context: Context, model: SplitModel, data: tuple[torch.Tensor, torch.Tensor]
) -> Message:
    """What a client app of one's own calls: train on `data` as the message of a FedKA strategy asks, and reply.

    Everything follows from the settings' seed, the round and the node's partition id.
    """
    settings: Any = message.content.config_records["config"]
    config = Config(**json.loads(settings["fedka"]))
    partition, server_round = int(context.node_config["partition-id"]), int(settings["server-round"])
    x, y = (part.to(model.device) for part in data)
    if len(x) != len(y) or len(x) == 0:
        raise UserError(f"{len(x)} samples and {len(y)} labels", "as many of each, at least one")
    model.load(message.content.array_records["arrays"])
    size = _embedding_size(model, x)
    training = LocalTraining(model, config, size, partition)
    if _STATE in context.state.array_records:
        training.restore(context.state.array_records[_STATE])
    workspace = read_workspace(message.content, config, size, model.device)
    seed = stream_seed(config.seed, server_round, partition, 11)
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed, model.device):
        losses = training.round(x, y, workspace, server_round, generator, float(settings.get("proximal-mu", 0.0)))
    context.state[_STATE] = training.state()
    metrics = MetricRecord({"num-examples": len(y), **losses})
    return Message(RecordDict({"arrays": model.arrays(), "metrics": metrics}), reply_to=message)


def _embedding_size(model: SplitModel, x: torch.Tensor) -> int:
    training = model.training
    model.eval()
    with torch.no_grad():
        size = model.embed(x[:1]).shape[1]
    model.train(training)
    return size


def make_client(
    model_fn: Callable[[], nn.Module], data: DataFunction, features: Part = "features", head: Part = "head"
) -> ClientApp:
    """A Flower client app for FedKA.

    Args:
        model_fn: as the strategy's; the model's device is where the client computes.
        data: the node's samples (n, ...) and classes (n,), from its context.
        features: as the strategy's.
        head: as the strategy's.
    """
    app = answer_describe(ClientApp())

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return train_reply(message, context, SplitModel(model_fn(), features, head), data(context))

    return app
