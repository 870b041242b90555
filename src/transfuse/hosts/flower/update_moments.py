"""First and second moment of the clients' updates of a round, in one pass over the replies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.app import ArrayRecord
from scipy.linalg.blas import daxpy

from transfuse.errors import UserError
from transfuse.hosts.flower.flat_records import FlatLayout, ShapeError, trainable_keys


class UpdateMoments:
    """Streams over replies: the weighted mean update and its squared norms, in one pass and float64.

    Memory: two float64 vectors and the sent weights, whatever the number of clients.
    """

    def __init__(self, arrays: ArrayRecord, trainable: Sequence[str] | None) -> None:
        keys = trainable_keys(arrays) if trainable is None else tuple(trainable)
        unknown = [key for key in keys if key not in arrays]
        if unknown or not keys:
            raise UserError(f"trainable tensors {unknown or keys!r}", f"some of {', '.join(arrays)}")
        self.layout = FlatLayout(arrays, keys)
        self._rest = FlatLayout(arrays, [key for key in arrays if key not in set(keys)])
        dtype = np.result_type(*{np.dtype(arrays[key].dtype) for key in keys})
        self.sent = self.layout.read(arrays, np.empty(self.layout.size, dtype))  # W_t, (size,)
        self._update = np.empty(self.layout.size)
        self._sum = np.empty(self.layout.size)

    def reset(self, arrays: ArrayRecord) -> None:
        """Start a round: `arrays` is what the clients receive."""
        self.layout.read(arrays, self.sent)
        self.weights: list[float] = []
        self.norms: list[float] = []
        self.mean_square = np.zeros(len(self.layout.keys))

    def add(self, record: ArrayRecord, weight: float) -> str:
        """Count one client's weights in; returns why it was refused, or an empty string."""
        if not (weight > 0 and np.isfinite(weight)):
            return f"its weight is {weight}"
        try:
            squares = self.layout.subtract(record, self.sent, self._update)  # (tensors,)
            rest_is_finite = all(np.isfinite(view).all() for view in self._rest.views(record))
        except (ShapeError, TypeError, ValueError) as error:
            return str(error)
        total = float(squares.sum())
        if not (np.isfinite(total) and rest_is_finite):
            return "it holds values that are not finite"
        self.mean_square += weight * squares
        if self.weights:
            daxpy(self._update, self._sum, a=weight)  # sum += weight * update, one pass, in place
        else:
            np.multiply(self._update, weight, out=self._sum)
        self.weights.append(weight)
        self.norms.append(total**0.5)
        return ""

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """sum_k p_k |g_k|^2 and |gbar|^2 of each tensor, (tensors,) each, and p, (clients,)."""
        total = sum(self.weights)
        return self.mean_square / total, self.layout.squared_norms(self._sum) / total**2, np.array(self.weights) / total
