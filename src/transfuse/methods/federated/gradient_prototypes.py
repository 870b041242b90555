"""Mean gradients of a linear classifier, class by class: how they are computed, mixed, sent, checked and averaged.

What RedGrape and its baseline CReFF share. For features h and probabilities q, the cross-entropy of an example of
class c has the gradient (q - e_c) h^T with respect to the classifier's weight and q - e_c with respect to its bias; a
prototype is the mean of these over the examples of the class.

Records. A client uploads ``classes`` (held,), ``weight`` (held, C, d), ``bias`` (held, C) and ``balanced`` (C,), the
classes that it can balance by itself; or, so that a secure sum may add the clients up, ``held`` (C,), ``weight``
(C, C, d) and ``bias`` (C, C) with zeros for what it lacks. It receives ``have`` (C,), ``weight`` and ``bias`` of all
classes, or, C times smaller, ``averaged`` (C,) and the mean over the classes that it lacks, (C, d) and (C,); only
``averaged`` where it lacks none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from transfuse.errors import UserError
from transfuse.hosts.flower.reply_check import array_problem

RECORD = "prototypes"  # the name of the record in messages and replies


@dataclass(frozen=True)
class Prototypes:
    """Gradients of several classes.

    Attributes:
        classes: which, int64 (held,).
        weight: mean gradient of each with respect to the weight, (held, C, d).
        bias: and to the bias, (held, C).
    """

    classes: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class MissingMean:
    """Mean prototype over the classes that a client cannot balance by itself.

    Attributes:
        weight: (C, d).
        bias: (C,).
        averaged: the classes in the mean, bool (C,).
    """

    weight: np.ndarray
    bias: np.ndarray
    averaged: np.ndarray


def class_gradients(logits: Tensor, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean gradient of the cross-entropy of each class, by one product of matrices a class.

    Args:
        logits: W h + b, (n, C).
        features: h, (n, d).
        labels: int64, (n,).

    Returns:
        Gradients with respect to the weight (C, C, d) and to the bias (C, C), zero for classes without an example, and
        the examples of each class (C,). They have the device and dtype of the inputs.
    """
    n, classes = logits.shape
    if features.ndim != 2 or len(features) != n or labels.shape != (n,):
        raise UserError(f"features {tuple(features.shape)}, labels {tuple(labels.shape)}", f"{n} rows, and {n} labels")
    error = torch.softmax(logits, dim=1)  # (n, C)
    error[torch.arange(n, device=labels.device), labels] -= 1.0
    counts = torch.bincount(labels, minlength=classes)  # (C,)
    order = torch.argsort(labels, stable=True)
    sizes = counts.tolist()
    rows = zip(error[order].split(sizes), features[order].split(sizes), strict=True)  # gathered once, then views
    weight = features.new_empty(classes, classes, features.shape[1])
    bias = features.new_empty(classes, classes)
    for label, (e, h) in enumerate(rows):
        torch.mm(e.T, h, out=weight[label])  # zeros for a class without an example
        torch.sum(e, dim=0, out=bias[label])
    divisor = counts.clamp(min=1).to(features)
    weight /= divisor[:, None, None]
    bias /= divisor[:, None]
    return weight, bias, counts


def missing_mean(prototypes: Prototypes, balanced: np.ndarray) -> MissingMean | None:
    """M_k: the mean over the known classes that are not in `balanced`, bool (C,); None where there is none."""
    chosen = ~balanced[prototypes.classes]
    if not chosen.any():
        return None
    averaged = np.zeros(len(balanced), dtype=bool)
    averaged[prototypes.classes[chosen]] = True
    # New arrays: the reference code adds in place onto what it received.
    return MissingMean(prototypes.weight[chosen].mean(axis=0), prototypes.bias[chosen].mean(axis=0), averaged)


def mixed(local: Any, n_local: int, missing: Any, n_missing: int) -> Any:
    """G: the gradient of balanced data, (n_local G_loc + n_missing M_k) / (n_local + n_missing).

    Args:
        local: gradient on the local balanced set, array or tensor; anything where `n_local` is 0.
        n_local: classes in that set.
        missing: mean prototype of the classes that it lacks; anything where `n_missing` is 0.
        n_missing: classes that it stands for.
    """
    if n_local == 0 or n_missing == 0:
        return missing if n_local == 0 else local
    return (n_local * local + n_missing * missing) / (n_local + n_missing)


def matched(gradient: Any, like: Any) -> Any:
    """`gradient`, array or tensor, with the Euclidean norm of `like`; zero stays zero."""
    norm = float((gradient * gradient).sum()) ** 0.5
    return gradient * (float((like * like).sum()) ** 0.5 / norm) if norm > 0.0 else gradient


def defended(found: Prototypes, clip: float | None, noise_std: float, rng: np.random.Generator) -> Prototypes:
    """Prototypes of which each, weight and bias together, is clipped to a norm and then given Gaussian noise."""
    weight, bias = found.weight.copy(), found.bias.copy()
    if clip is not None:
        norms = np.sqrt(np.square(weight).sum(axis=(1, 2)) + np.square(bias).sum(axis=1))  # (held,)
        factors = np.minimum(1.0, clip / np.maximum(norms, 1e-12)).astype(weight.dtype)
        weight, bias = weight * factors[:, None, None], bias * factors[:, None]
    if noise_std:
        weight = weight + rng.normal(0.0, noise_std, weight.shape).astype(weight.dtype)
        bias = bias + rng.normal(0.0, noise_std, bias.shape).astype(bias.dtype)
    return Prototypes(found.classes, weight, bias)


class PrototypeTable:
    """The server's prototypes: for each class the unweighted mean over the clients of the last round that held it.

    Args:
        classes: C.
        width: d.
        max_age: rounds after which a class that nobody held is forgotten; None keeps it for ever.
    """

    def __init__(self, classes: int, width: int, max_age: int | None = None) -> None:
        self.weight = np.zeros((classes, classes, width), np.float32)
        self.bias = np.zeros((classes, classes), np.float32)
        self.have = np.zeros(classes, dtype=bool)
        self.age = np.zeros(classes, dtype=np.int64)  # rounds since a class was renewed
        self.max_age = max_age

    def update(self, uploads: Sequence[Prototypes]) -> np.ndarray:
        """Take in a round's uploads; returns which classes they renewed, bool (C,)."""
        holders = np.zeros(len(self.have), dtype=np.int64)
        weight, bias = np.zeros(self.weight.shape), np.zeros(self.bias.shape)  # float64 sums
        for upload in uploads:
            holders[upload.classes] += 1
            weight[upload.classes] += upload.weight
            bias[upload.classes] += upload.bias
        renewed = holders > 0
        self.weight[renewed] = weight[renewed] / holders[renewed, None, None]
        self.bias[renewed] = bias[renewed] / holders[renewed, None]
        self.have |= renewed
        self.age = np.where(renewed, 0, self.age + 1)
        if self.max_age is not None:
            self.have &= self.age <= self.max_age
        return renewed

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint must hold."""
        return {name: getattr(self, name).copy() for name in ("weight", "bias", "have", "age")}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from `state`."""
        if state["weight"].shape != self.weight.shape:
            raise UserError(f"prototypes of shape {state['weight'].shape}", f"shape {self.weight.shape}")
        self.weight, self.bias, self.have, self.age = (
            np.array(state[name]) for name in ("weight", "bias", "have", "age")
        )

    def known(self) -> Prototypes:
        """Those that there are; copies."""
        return Prototypes(np.flatnonzero(self.have), self.weight[self.have], self.bias[self.have])


def write_upload(found: Prototypes, balanced: np.ndarray, dense: bool) -> ArrayRecord:
    """A client's record."""
    if not dense:
        arrays = {"classes": found.classes, "weight": found.weight, "bias": found.bias, "balanced": balanced}
        return _record(arrays)
    classes, width = found.weight.shape[1:]
    arrays = {
        "held": np.isin(np.arange(classes), found.classes),
        "weight": np.zeros((classes, classes, width), found.weight.dtype),
        "bias": np.zeros((classes, classes), found.bias.dtype),
    }
    arrays["weight"][found.classes], arrays["bias"][found.classes] = found.weight, found.bias
    return _record(arrays)


def upload_problem(record: ArrayRecord | None, classes: int, width: int) -> str:
    """Why a client's record cannot be used, or an empty string."""
    if record is None:
        return f"it has no array record {RECORD!r}"
    if "held" in record:
        shapes: dict[str, tuple[int, ...]] = {"held": (classes,), "weight": (classes, classes, width)}
        return array_problem(record, {**shapes, "bias": (classes, classes)})
    held = record["classes"].shape[0] if "classes" in record and len(record["classes"].shape) == 1 else 0
    shapes = {"classes": (held,), "weight": (held, classes, width), "bias": (held, classes), "balanced": (classes,)}
    if problem := array_problem(record, shapes):
        return problem
    named = record["classes"].numpy()
    if named.dtype.kind not in "iu" or len(set(named.tolist())) != held:
        return "its classes are not distinct whole numbers"
    if held and not 0 <= named.min() <= named.max() < classes:
        return f"its classes are not within 0 .. {classes - 1}"
    return ""


def read_upload(record: ArrayRecord) -> Prototypes:
    """What a client sent, after `upload_problem` found nothing."""
    weight, bias = record["weight"].numpy(), record["bias"].numpy()
    if "held" in record:
        held = np.flatnonzero(record["held"].numpy())
        return Prototypes(held, weight[held], bias[held])
    return Prototypes(record["classes"].numpy().astype(np.int64), weight, bias)


def write_download(known: Prototypes, balanced: np.ndarray | None) -> ArrayRecord:
    """The server's record for a client: the mean that it needs where its balanced classes are known, else all."""
    classes = np.arange(known.bias.shape[1])
    if balanced is None:
        return _record({"have": np.isin(classes, known.classes), "weight": known.weight, "bias": known.bias})
    mean = missing_mean(known, balanced)
    if mean is None:
        return _record({"averaged": np.zeros(len(classes), dtype=bool)})
    return _record({"averaged": mean.averaged, "weight": mean.weight, "bias": mean.bias})


def read_download(record: ArrayRecord, balanced: np.ndarray) -> MissingMean | None:
    """M_k at the client, whichever form the server sent; None where there is nothing to mix in.

    A mean over classes that the client can balance by now (its data have changed since its last upload) is not used:
    those classes would count twice.
    """
    if "have" in record:
        have = np.flatnonzero(record["have"].numpy())
        return missing_mean(Prototypes(have, record["weight"].numpy(), record["bias"].numpy()), balanced)
    averaged = record["averaged"].numpy().astype(bool)
    if not averaged.any() or (averaged & balanced).any():
        return None
    return MissingMean(record["weight"].numpy(), record["bias"].numpy(), averaged)


def _record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    plain = {key: value.astype(np.uint8) if value.dtype == bool else value for key, value in arrays.items()}
    return ArrayRecord({key: Array(np.ascontiguousarray(value)) for key, value in plain.items()})


def total_bytes(records: Iterable[ArrayRecord | None]) -> int:
    """Bytes of the arrays of records, without their headers."""
    arrays = [array for record in records if record is not None for array in record.values()]
    return sum(int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize for array in arrays)
