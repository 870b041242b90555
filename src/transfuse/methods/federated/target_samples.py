"""The server's unlabelled samples, taken by row whatever they are kept in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from transfuse.errors import UserError


class TargetSamples:
    """Rows of a tensor, an array, or a map-style dataset.

    Args:
        source: (n, ...), or a dataset with a length whose items are samples or tuples that begin with one; the rest
            of such a tuple, a label perhaps, is never looked at.
    """

    def __init__(self, source: Any) -> None:
        if isinstance(source, np.ndarray):
            source = torch.from_numpy(source)
        if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
            expected = "a tensor, an array or a map-style dataset"
            raise UserError(f"target of type {type(source).__name__}", expected, "give loader.dataset, not the loader")
        if len(source) == 0:
            raise UserError("a target without samples", "at least one")
        if isinstance(source, torch.Tensor) and source.is_floating_point() and not bool(source.isfinite().all()):
            raise UserError("target samples that are not finite", "finite numbers")
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def take(self, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The samples at `rows`, (len(rows), ...), on a device."""
        if isinstance(self._source, torch.Tensor):
            return self._source[rows.to(self._source.device)].to(device)
        items = [self._source[int(row)] for row in rows]
        samples = [item[0] if isinstance(item, tuple | list) else item for item in items]
        return torch.stack([torch.as_tensor(sample) for sample in samples]).to(device)
