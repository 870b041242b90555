"""A user's model seen as features and head, and its weights as Flower's arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from transfuse.errors import UserError

Part = str | Callable[[nn.Module, torch.Tensor], torch.Tensor]


class SplitModel(nn.Module):
    """``head(features(x))`` of a model that stays the user's own.

    Args:
        model: the model, whose `state_dict` is what travels.
        features: dotted name of the submodule, or ``features(model, x)``; its output is flattened to (n, d).
        head: likewise; takes (n, d) to logits (n, classes).
    """

    def __init__(self, model: nn.Module, features: Part = "features", head: Part = "head") -> None:
        super().__init__()
        self.model = model
        self._features, self._head = (_callable(model, part) for part in (features, head))

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings, (n, d)."""
        return self._features(self.model, x).flatten(start_dim=1)

    def classify(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of embeddings, (n, classes)."""
        return self._head(self.model, embeddings).log_softmax(dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Log-probabilities, (n, classes)."""
        return self.classify(self.embed(x))

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model's weights."""
        return next(self.model.parameters()).dtype

    def arrays(self) -> ArrayRecord:
        """A copy of the weights as Flower's arrays."""
        state = self.model.state_dict()
        return ArrayRecord({key: Array(value.detach().cpu().numpy().copy()) for key, value in state.items()})

    def load(self, arrays: ArrayRecord) -> None:
        """Take over weights; device and dtype of the model stay.

        Raises:
            UserError: other names or shapes than the model's.
        """
        own = self.model.state_dict()
        problem = next((key for key in [*own, *arrays] if key not in own or key not in arrays), None)
        if problem is None:
            problem = next((key for key, value in own.items() if tuple(arrays[key].shape) != tuple(value.shape)), None)
        if problem is not None:
            raise UserError(f"arrays that do not fit the model at {problem!r}", "the arrays of model.state_dict()")
        self.model.load_state_dict({key: torch.from_numpy(array.numpy().copy()) for key, array in arrays.items()})

    def is_finite(self) -> bool:
        """Whether every floating weight is a number."""
        return all(bool(v.isfinite().all()) for v in self.model.state_dict().values() if v.is_floating_point())


def _callable(model: nn.Module, part: Part) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    if callable(part):
        return part
    try:
        model.get_submodule(part)
    except AttributeError:
        names = ", ".join(name for name, _ in model.named_children()) or "no parts"
        raise UserError(f"a model without the part {part!r}", f"one of {names}, or a callable (model, x)") from None
    return lambda module, x: module.get_submodule(part)(x)


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Inside the block, batch normalisation uses its running statistics and does not change them.

    Batches of the target must not leak into a client's statistics, nor pseudo-labelled ones into the global model's.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient inside the block."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators, which dropout draws from, at the start of a stream; put back after the block."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def stream_seed(*names: int) -> int:
    """A seed for torch from small whole numbers such as seed, round and partition; different names, other streams."""
    return int(np.random.SeedSequence(names).generate_state(1, np.uint64)[0] >> 1)


def rows_in_batches(rows: int, batches: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Indices of random batches, (batches, size): shuffled passes over all rows, begun anew where they end."""
    passes = -(-batches * size // rows)
    order = torch.cat([torch.randperm(rows, generator=generator) for _ in range(passes)])
    return order[: batches * size].reshape(batches, size)


def as_tensors(arrays: Mapping[str, Array] | ArrayRecord, device: torch.device) -> dict[str, torch.Tensor]:
    """Arrays as tensors of their own on a device."""
    return {key: torch.from_numpy(array.numpy().copy()).to(device) for key, array in arrays.items()}
