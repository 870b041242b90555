"""RedGrape at the client: the second classifier as a hook on the head, the balanced set, the local steps.

Works on any PyTorch model whose final layer is a `torch.nn.Linear` on features (n, d). The model's class does not
change, and after the training the model is as it was before, with other weights.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor, nn
from torch.nn import functional as F

from transfuse.errors import UserError, did_you_mean
from transfuse.methods.federated.gradient_prototypes import (
    RECORD,
    MissingMean,
    Prototypes,
    PrototypeTable,
    class_gradients,
    defended,
    matched,
    mixed,
    read_download,
    write_download,
    write_upload,
)

if TYPE_CHECKING:
    from transfuse.methods.federated.redgrape import Config

SECOND = "redgrape_second."  # prefix of the second classifier's arrays beside the model's own
Batches = Iterable[tuple[Tensor, Tensor]]
Gradient = tuple[Tensor, Tensor]  # of weight and bias


@dataclass
class LocalResult:
    """What a client's training gave.

    Attributes:
        prototypes: mean gradient of each class that the client holds, at the weights it started from.
        balanced: classes that it can balance by itself, bool (C,).
        counts: examples of each class, (C,).
        loss: mean loss over the local steps of the last epoch.
        balanced_steps: local steps that had a balancing gradient.
    """

    prototypes: Prototypes
    balanced: np.ndarray
    counts: np.ndarray
    loss: float = 0.0
    balanced_steps: int = 0


def find_head(model: nn.Module, head: str | nn.Linear | None) -> nn.Linear:
    """The head: a module, its name, or None for the last `torch.nn.Linear` in the order of `named_modules`."""
    if isinstance(head, nn.Linear):
        return head
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not linear:
        raise UserError("a model without a torch.nn.Linear", "a linear classifier as its final layer")
    name = next(reversed(linear)) if head is None else head
    if name not in linear:
        raise UserError(f"head {name!r}", f"one of {', '.join(linear)}", did_you_mean(name, linear))
    return linear[name]


def second_classifier(head: nn.Linear) -> nn.Linear:
    """V: zeros of the head's shape, device and dtype, so that W + V starts as W."""
    second = copy.deepcopy(head)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.zero_()
    return second


def initial_arrays(model: nn.Module, head: str | nn.Linear | None = None, shared: bool = True) -> ArrayRecord:
    """What `Strategy.start` sends first: the model's state, and the second classifier's where clients share it."""
    arrays = {key: Array(_numpy(value)) for key, value in model.state_dict().items()}
    if shared:
        second = second_classifier(find_head(model, head))
        arrays |= {f"{SECOND}{key}": Array(_numpy(value)) for key, value in second.state_dict().items()}
    return ArrayRecord(arrays)


def model_arrays(arrays: ArrayRecord) -> ArrayRecord:
    """The model's own arrays out of those that travel: what `load_state_dict` takes, to evaluate or to deploy."""
    return ArrayRecord({key: array for key, array in arrays.items() if not key.startswith(SECOND)})


class HeadTap:
    """The pair of hooks on the head: remembers h, and in training mode adds V h + a to its output."""

    def __init__(self, head: nn.Linear, second: nn.Linear | None) -> None:
        self.head, self.second = head, second
        self.features = torch.empty(0)

    @contextlib.contextmanager
    def attached(self) -> Iterator[HeadTap]:
        """The hook stays for the length of the block."""
        handle = self.head.register_forward_hook(self._after)
        try:
            yield self
        finally:
            handle.remove()

    def _after(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        (self.features,) = inputs
        if self.features.ndim != 2:
            raise UserError(f"a head that gets features of shape {tuple(self.features.shape)}", "(examples, width)")
        return output + self.second(self.features) if self.second is not None and module.training else None


def redgrape_train(
    model: nn.Module,
    loader: Batches,
    missing: Callable[[np.ndarray], MissingMean | None] | None,
    config: Config,
    *,
    head: str | nn.Linear | None = None,
    second: nn.Linear | None = None,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    generator: np.random.Generator | None = None,
) -> LocalResult:
    """A client's round: prototypes at the received weights, then local steps; `model` and `second` change in place.

    Args:
        model: with the weights received.
        loader: batches (x, y) on the model's device; iterated once for the prototypes and once an epoch.
        missing: gives the mean prototype for the classes that the client can balance, bool (C,); None in a round
            without prototypes, whose steps are then not balanced.
        config: the settings.
        head: the final `torch.nn.Linear`, or its name.
        second: V, trained along; None makes one of zeros where the settings want one.
        optimizer: makes the optimiser from the parameters; SGD with the settings' rate and momentum by default.
        generator: draws the balanced set, and noise where the settings ask for it.
    """
    classifier = find_head(model, head)
    rng = generator or np.random.default_rng()
    if second is None and config.second_classifier:
        second = second_classifier(classifier)
    tap = HeadTap(classifier, second if config.second_classifier else None)
    with tap.attached():
        result, chosen = _look(model, tap, loader, config, rng)
        balance = Balance(config, tap, model, chosen, result.balanced)
        if missing is not None:
            balance.receive(
                missing(np.zeros_like(result.balanced) if config.direction == "prototypes" else result.balanced)
            )
        parameters = [*model.parameters(), *(tap.second.parameters() if tap.second is not None else ())]
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        make = optimizer or (lambda found: torch.optim.SGD(found, lr=config.rate, momentum=config.momentum))
        steps = make(parameters)
        was_training = model.training
        model.train()
        for _ in range(config.epochs):
            losses = [_step(model, x, y, steps, parameters, balance, config.clip) for x, y in loader]
        model.train(was_training)
    if not losses:
        raise UserError("a loader without batches", "at least one batch of (inputs, labels)")
    result.loss, result.balanced_steps = float(np.mean(losses)), balance.steps
    return result


def _step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimiser: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    balance: Balance,
    clip: float,
) -> float:
    """One local step: the natural batch through the optimiser, then the balancing step outside it."""
    direction = balance.direction()  # at the weights before the step
    optimiser.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    if balance.config.match == "gradient":
        direction = balance.scaled(direction)
    nn.utils.clip_grad_norm_(parameters, clip)
    if balance.config.match == "clipped":
        direction = balance.scaled(direction)
    optimiser.step()
    balance.apply(direction, float(optimiser.param_groups[0]["lr"]))
    return float(loss.detach())


@dataclass
class Balance:
    """The balancing gradient of a client in a round.

    Attributes:
        config: the settings.
        tap: on the head.
        model: gives features of the balanced set.
        chosen: that set, inputs and labels; None where no class has enough examples.
        balanced: its classes, bool (C,).
        steps: how many directions were given.
    """

    config: Config
    tap: HeadTap
    model: nn.Module
    chosen: tuple[Tensor, Tensor] | None
    balanced: np.ndarray
    steps: int = 0
    _missing: Gradient | None = None
    _counts: tuple[int, int] = (0, 0)  # classes in the balanced set, classes that the prototypes stand for
    _active: bool = False
    _features: Tensor = field(default_factory=lambda: torch.empty(0))
    _age: int = 0

    def receive(self, mean: MissingMean | None) -> None:
        """Take what the server sent; from here on, steps are balanced."""
        weight = self.tap.head.weight
        if mean is not None and self.config.direction != "local":
            self._missing = tuple(torch.as_tensor(part).to(weight) for part in (mean.weight, mean.bias))  # type: ignore[assignment]
        local = 0 if self.config.direction == "prototypes" else int(self.balanced.sum())
        lacking = 0 if self._missing is None or mean is None else int(mean.averaged.sum())
        if lacking and self.config.count_missing == "all":
            lacking = len(self.balanced) - local
        self._counts = (local, lacking)
        self._active = local + lacking > 0

    def direction(self) -> Gradient | None:
        """G at the current weights, before it is scaled; None where there is nothing to balance with."""
        if not self._active:
            return None
        self.steps += 1
        local, lacking = self._counts
        real = self._on_real_data() if local else (None, None)
        absent = self._missing if self._missing is not None else (None, None)
        weight, bias = (mixed(r, local, a, lacking) for r, a in zip(real, absent, strict=True))
        return weight, bias

    def _on_real_data(self) -> Gradient:
        """Gradient of the mean cross-entropy of W alone over the balanced set, features as the encoder is now."""
        assert self.chosen is not None
        x, y = self.chosen
        head = self.tap.head
        with torch.no_grad():
            if self._age % self.config.refresh == 0:
                self.model.eval()
                self.model(x)
                self._features = self.tap.features
                self.model.train()
            self._age += 1
            error = torch.softmax(F.linear(self._features, head.weight, head.bias), dim=1)  # (n, C)
            error[torch.arange(len(y), device=y.device), y] -= 1.0
            return error.T @ self._features / len(y), error.mean(dim=0)

    def scaled(self, direction: Gradient | None) -> Gradient | None:
        """G with the norms of the head's gradients, weight and bias apart."""
        if direction is None:
            return None
        head = self.tap.head
        weight = matched(direction[0], head.weight.grad)
        return weight, direction[1] if head.bias is None else matched(direction[1], head.bias.grad)

    @torch.no_grad()
    def apply(self, direction: Gradient | None, rate: float) -> None:
        """W <- W - rate lambda G."""
        if direction is None:
            return
        head = self.tap.head
        head.weight.sub_(rate * self.config.balance_rate * direction[0])
        if head.bias is not None:
            head.bias.sub_(rate * self.config.balance_rate * direction[1])


@torch.no_grad()
def _look(
    model: nn.Module, tap: HeadTap, loader: Batches, config: Config, rng: np.random.Generator
) -> tuple[LocalResult, tuple[Tensor, Tensor] | None]:
    """One pass over the data in evaluation mode: the prototypes, and the balanced set as a reservoir of each class."""
    was_training = model.training
    model.eval()  # so V is not added
    head = tap.head
    classes = head.out_features
    weight, bias = (
        torch.zeros(shape, dtype=torch.float64) for shape in ((classes, *head.weight.shape), (classes,) * 2)
    )
    counts = np.zeros(classes, dtype=np.int64)
    kept: list[list[Tensor]] = [[] for _ in range(classes)]
    for x, y in loader:
        if y.dtype != torch.int64 or (len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes):
            raise UserError(f"labels of type {y.dtype}, or out of range", f"int64 from 0 to {classes - 1}")
        part_weight, part_bias, part = class_gradients(model(x), tap.features, y)
        weight += (part_weight * part[:, None, None]).cpu()  # sums, so that batches may differ in size
        bias += (part_bias * part[:, None]).cpu()
        for row, label in enumerate(y.tolist()):
            counts[label] += 1
            slot = len(kept[label]) if len(kept[label]) < config.samples_per_class else int(rng.integers(counts[label]))
            if slot < config.samples_per_class:
                kept[label][slot : slot + 1] = [x[row]]
    model.train(was_training)
    held = np.flatnonzero(counts >= config.min_count)
    divisor = torch.as_tensor(counts[held])
    parts = (weight[held] / divisor[:, None, None], bias[held] / divisor[:, None])
    found = Prototypes(held, *(part.to(torch.float32).numpy() for part in parts))
    found = defended(found, config.prototype_clip, config.noise_std, rng)
    balanced = counts >= config.samples_per_class
    rows = [x for label in np.flatnonzero(balanced) for x in kept[label]]
    labels = np.repeat(np.flatnonzero(balanced), config.samples_per_class)
    chosen = (torch.stack(rows), torch.as_tensor(labels, device=rows[0].device)) if rows else None
    return LocalResult(found, balanced, counts), chosen


def train_and_reply(
    message: Message,
    context: Context,
    model: nn.Module,
    loader: Batches,
    config: Config,
    *,
    head: str | nn.Linear | None = None,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    seed: int = 0,
) -> Message:
    """The body of a client app's ``@app.train()``: load what was received, train, answer.

    Args:
        message: of the server's `RedGrape` strategy.
        context: of the node; keeps the second classifier between rounds where clients do not share it.
        model: of the architecture; its weights are overwritten.
        loader: batches (x, y) of this client, seeded by the caller.
        config: the settings, the same as the server's.
        head: name of the final `torch.nn.Linear`.
        optimizer: see `redgrape_train`.
        seed: of the balanced set, which is drawn anew in each round.
    """
    arrays: Any = message.content["arrays"]
    model.load_state_dict({key: _tensor(array) for key, array in arrays.items() if not key.startswith(SECOND)})
    second = second_classifier(find_head(model, head))
    stored: Any = context.state.get(SECOND) if SECOND in context.state else arrays
    mine = {key.removeprefix(SECOND): _tensor(array) for key, array in stored.items() if key.startswith(SECOND)}
    if mine:
        second.load_state_dict(mine)
    server_round = int(message.content["config"]["server-round"])  # type: ignore[arg-type]
    received: Any = message.content.get(RECORD) if RECORD in message.content else None
    missing = None if received is None else lambda balanced: read_download(received, balanced)
    rng = np.random.default_rng((seed, server_round))
    result = redgrape_train(
        model, loader, missing, config, head=head, second=second, optimizer=optimizer, generator=rng
    )
    state = {key: Array(_numpy(value)) for key, value in model.state_dict().items()}
    extra = {f"{SECOND}{key}": Array(_numpy(value)) for key, value in second.state_dict().items()}
    if config.share_second:
        state |= {key: array for key, array in extra.items() if key in arrays}
    elif config.second_classifier:
        context.state[SECOND] = ArrayRecord(extra)
    metrics = MetricRecord({"num-examples": int(result.counts.sum()), "train_loss": result.loss})
    upload = write_upload(result.prototypes, result.balanced, config.upload == "dense")
    content = RecordDict({"arrays": ArrayRecord(state), "metrics": metrics, RECORD: upload})
    return Message(content, reply_to=message)


class RebalancedHeadTrainer:
    """RedGrape on one machine whose data change: classes that are missing now, but were there in an earlier round.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> from transfuse.methods.federated.redgrape import Config
    >>> trainer = RebalancedHeadTrainer(model, Config(epochs=1, samples_per_class=2))
    >>> for classes in ((0, 1, 2), (0, 1)):                # the second part of the stream lacks class 2
    ...     y = torch.tensor(classes).repeat(8)
    ...     result = trainer.fit_round([(torch.randn(len(y), 4), y)])
    >>> result.balanced_steps, trainer.table.have.tolist()
    (1, [True, True, True])
    """

    def __init__(
        self, model: nn.Module, config: Config, head: str | nn.Linear | None = None, seed: int | None = None
    ) -> None:
        self.model, self.config, self.head = model, config, find_head(model, head)
        self.second = second_classifier(self.head)
        self.table = PrototypeTable(self.head.out_features, self.head.in_features, config.max_age)
        self.rng = np.random.default_rng(seed)

    def fit_round(self, loader: Batches) -> LocalResult:
        """Train on what there is now, balanced with the prototypes of earlier rounds."""
        record = write_download(self.table.known(), None) if self.table.have.any() else None
        result = redgrape_train(
            self.model,
            loader,
            None if record is None else lambda balanced: read_download(record, balanced),
            self.config,
            head=self.head,
            second=self.second,
            generator=self.rng,
        )
        self.table.update([result.prototypes])
        return result


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(array.numpy().copy())  # Flower's bytes are read-only


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
