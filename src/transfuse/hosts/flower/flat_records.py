"""Array records as one flat vector: read without a copy where Flower's bytes allow it, summed a tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord

_BUFFER_SUFFIXES = ("running_mean", "running_var", "num_batches_tracked")


class ShapeMismatch(ValueError):
    """A record that does not fit the layout: a key is missing, or an array has another shape."""


class FlatLayout:
    """Where each chosen tensor of a model lies in one flat vector.

    The layout remembers the header of each serialised array. A reply whose array has the same header, so the same
    dtype and shape, is viewed in place; all others are parsed by Flower.

    Args:
        record: the arrays that give keys and shapes.
        keys: which of them, in this order; None means all.

    Attributes:
        keys: the tensors, in order.
        starts: first index of each tensor in the flat vector, int64 (tensors,).
        sizes: number of elements, int64 (tensors,).
        size: length of the flat vector.
    """

    def __init__(self, record: ArrayRecord, keys: Sequence[str] | None = None) -> None:
        self.keys = tuple(record) if keys is None else tuple(keys)
        self.shapes = [tuple(record[key].shape) for key in self.keys]
        self.sizes = np.array([int(np.prod(shape)) for shape in self.shapes], dtype=np.int64)
        self.ends = np.cumsum(self.sizes)
        self.starts = self.ends - self.sizes
        self.size = int(self.sizes.sum())
        self._headers = [_header(record[key]) for key in self.keys]
        self._bounds = list(zip(self.starts.tolist(), self.ends.tolist(), strict=True))

    def views(self, record: ArrayRecord) -> Iterable[np.ndarray]:
        """The chosen arrays of a record, flattened in C order, in the layout's order.

        Raises:
            ShapeMismatch: a key is missing or a shape differs.
        """
        for key, shape, header in zip(self.keys, self.shapes, self._headers, strict=True):
            if key not in record:
                raise ShapeMismatch(f"no array {key!r}")
            array = record[key]
            prefix, dtype = header
            if dtype is not None and array.data.startswith(prefix):
                yield np.frombuffer(array.data, dtype, offset=len(prefix))
                continue
            values = array.numpy()
            if values.shape != shape:
                raise ShapeMismatch(f"array {key!r} has shape {values.shape}, expected {shape}")
            yield values.reshape(-1)

    def read(self, record: ArrayRecord, out: np.ndarray) -> np.ndarray:
        """Write the chosen arrays into `out`, (size,)."""
        for view, (start, end) in zip(self.views(record), self._bounds, strict=True):
            _fit(view, end - start)
            out[start:end] = view
        return out

    def subtract(self, record: ArrayRecord, base: np.ndarray, out: np.ndarray) -> np.ndarray:
        """``record - base`` into `out`, (size,), in the precision of `out`."""
        for view, (start, end) in zip(self.views(record), self._bounds, strict=True):
            _fit(view, end - start)
            np.subtract(view, base[start:end], out=out[start:end], dtype=out.dtype)
        return out

    def squared_norms(self, flat: np.ndarray) -> np.ndarray:
        """Squared Euclidean norm of each tensor of a flat float64 vector, (tensors,)."""
        parts = (flat[start:end] for start, end in self._bounds)
        return np.array([np.dot(part, part) for part in parts], dtype=np.float64)

    def unflatten(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Views of a flat vector in the tensors' shapes."""
        slices = zip(self.keys, self.shapes, self._bounds, strict=True)
        return {key: flat[start:end].reshape(shape) for key, shape, (start, end) in slices}


def trainable_keys(record: ArrayRecord | Mapping[str, Array]) -> tuple[str, ...]:
    """Keys that a server step may rescale: floating arrays that are not running statistics of a normalisation.

    A list made from ``model.named_parameters()`` is the exact answer; this one is for servers that only see arrays.
    """
    return tuple(
        key
        for key, array in record.items()
        if np.issubdtype(np.dtype(array.dtype), np.floating) and key.rsplit(".", 1)[-1] not in _BUFFER_SUFFIXES
    )


def _fit(view: np.ndarray, expected: int) -> None:
    if view.size != expected:
        raise ShapeMismatch(f"an array has {view.size} elements, expected {expected}")


def _header(array: Array) -> tuple[bytes, np.dtype | None]:
    """The NPY header of a serialised array and its dtype; None where it cannot be viewed in place."""
    data = array.data
    if array.stype != "numpy.ndarray" or data[:6] != b"\x93NUMPY":
        return b"", None
    width = 2 if data[6] == 1 else 4  # format 1.0 has a two-byte header length
    length = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    dtype = np.dtype(array.dtype)
    plain = not dtype.hasobject and b"'fortran_order': False" in data[:length]
    return data[:length], dtype if plain else None
