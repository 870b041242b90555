"""Array records as one flat vector: read without a copy where Flower's bytes allow it, summed a tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord

_NUMPY = "numpy.ndarray"  # Flower's name for the NPY format
_BUFFER_SUFFIXES = ("running_mean", "running_var", "num_batches_tracked")


class ShapeError(ValueError):
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
            ShapeError: a key is missing or a shape differs.
        """
        arrays = dict(record.items())  # a plain dictionary: Flower's checks types at each access
        for key, shape, (prefix, dtype) in zip(self.keys, self.shapes, self._headers, strict=True):
            array = arrays.get(key)
            if array is None:
                raise ShapeError(f"no array {key!r}")
            if dtype is not None and array.data.startswith(prefix):
                yield np.frombuffer(array.data, dtype, offset=len(prefix))
                continue
            values = array.numpy()
            if values.shape != shape:
                raise ShapeError(f"array {key!r} has shape {values.shape}, expected {shape}")
            yield values.reshape(-1)

    def read(self, record: ArrayRecord, out: np.ndarray) -> np.ndarray:
        """Write the chosen arrays into `out`, (size,)."""
        for view, (start, end) in zip(self.views(record), self._bounds, strict=True):
            _fit(view, end - start)
            out[start:end] = view
        return out

    def subtract(self, record: ArrayRecord, base: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Write ``record - base`` into `out`, (size,), in its precision.

        Returns:
            Squared Euclidean norm of each tensor of `out`, (tensors,).

        The norm of a tensor is taken while it is still in the processor's cache.
        """
        squares = np.empty(len(self.keys))
        for index, (view, (start, end)) in enumerate(zip(self.views(record), self._bounds, strict=True)):
            _fit(view, end - start)
            part = out[start:end]
            np.subtract(view, base[start:end], out=part, dtype=out.dtype)
            squares[index] = np.dot(part, part)
        return squares

    def scale_step(self, record: ArrayRecord, base: np.ndarray, factors: np.ndarray) -> ArrayRecord:
        """``base + factor (record - base)`` with one factor a tensor, (tensors,), in the record's precision.

        A tensor whose factor is exactly one, and every array outside the layout, stays as it is in `record`.
        """
        result = record.copy()
        rows = zip(
            self.keys, self.shapes, self._headers, self._bounds, self.views(record), factors.tolist(), strict=True
        )
        for key, shape, (prefix, dtype), (start, end), view, factor in rows:
            if factor == 1.0:
                continue
            values = view - base[start:end]
            values *= factor
            values += base[start:end]
            if values.dtype == dtype and view.dtype == dtype:
                result[key] = Array(str(dtype), shape, _NUMPY, prefix + values.tobytes())
            else:
                result[key] = Array(np.asarray(values.reshape(shape), dtype=view.dtype))
        return result

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
        raise ShapeError(f"an array has {view.size} elements, expected {expected}")


def _header(array: Array) -> tuple[bytes, np.dtype | None]:
    """The NPY header of a serialised array and its dtype; None where it cannot be viewed in place."""
    data = array.data
    if array.stype != _NUMPY or data[:6] != b"\x93NUMPY":
        return b"", None
    width = 2 if data[6] == 1 else 4  # format 1.0 has a two-byte header length
    length = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    dtype = np.dtype(array.dtype)
    plain = not dtype.hasobject and b"'fortran_order': False" in data[:length]
    return data[:length], dtype if plain else None
