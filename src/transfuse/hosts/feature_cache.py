"""Features on disk by the content of what made them: the weights, the texts, the options. Plain .npy files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from transfuse.atomic import replacing
from transfuse.cache import cache_folder


def texts_digest(texts: Iterable[str]) -> str:
    """Sixteen hexadecimal digits for a list of texts, order included."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        raw = text.encode()
        digest.update(f"{len(raw)}:".encode() + raw)
    return digest.hexdigest()


def weights_digest(model: nn.Module) -> str:
    """Sixteen hexadecimal digits for the weights and buffers of a model, and for their names."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def cached(key: Sequence[object], make: Callable[[], np.ndarray], folder: Path | None = None) -> np.ndarray:
    """``make()``, or what it returned when it was last called with the same key."""
    name = hashlib.blake2b(repr(tuple(key)).encode(), digest_size=12).hexdigest()
    path = (folder or cache_folder() / "features") / f"{name}.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        pass  # not there yet, or cut short by a crash: it is made (again)
    made = np.asarray(make())
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, made, allow_pickle=False)
    return made
