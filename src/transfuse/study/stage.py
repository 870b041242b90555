"""Costly pieces that several arms, seeds or studies share, cached by what went into them.

A stage is a dictionary of arrays (NumPy, or torch tensors for weights). It is stored as safetensors in the
cache folder under a key made from its name, its inputs and the code that makes it; a lock lets two runs
share the folder, and a truncated file is made anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError

from transfuse.atomic import replacing
from transfuse.study.fingerprint import fingerprint
from transfuse.study.store import StorageError

Arrays = dict[str, Any]
_FIX = "make room, or set TRANSFUSE_CACHE to another folder"


@dataclass(frozen=True)
class Stages:
    """The stage cache, handed to a study as `stage`.

    ``stage("finetuned", make, inputs={"seed": 0, "epochs": 2})`` returns ``make()``, or what an earlier call
    with the same name, inputs and code returned.
    """

    folder: Path
    enabled: bool = True

    def __call__(self, name: str, make: Callable[[], Arrays], *, inputs: Mapping[str, Any]) -> Arrays:
        if not self.enabled:
            return make()
        function = make
        while isinstance(function, functools.partial):
            function = function.func
        module = inspect.getmodule(function)
        code = fingerprint(module.__name__) if module is not None else ""
        text = json.dumps({"name": name, "inputs": inputs, "code": code}, sort_keys=True, default=_as_text)
        path = self.folder / "stages" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
        with _locked(path):
            if (found := _load(path)) is not None:
                return found
            made = make()
            try:
                _save(path, made)
            except (OSError, SafetensorError) as error:
                raise StorageError(path, error, _FIX) from None
            return made


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a stage. It ends with its holder, so that whatever lies half-written there is abandoned."""
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise StorageError(path, error, _FIX) from None
    try:
        for leftover in path.parent.glob(f".{path.name}.*.partial"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _as_text(value: Any) -> str:
    """An input that JSON does not know: arrays by their content, which their text shortens, the rest as text."""
    if hasattr(value, "__array__"):
        array = np.ascontiguousarray(value)
        return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
    return str(value)


def _save(path: Path, arrays: Arrays) -> None:
    with replacing(path) as temporary:
        if all(isinstance(value, np.ndarray) for value in arrays.values()):
            from safetensors.numpy import save_file

            save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, temporary)
        else:
            import torch
            from safetensors.torch import save_file as save_tensors

            tensors = {key: torch.as_tensor(value).detach().cpu().contiguous().clone() for key, value in arrays.items()}
            save_tensors(tensors, temporary, metadata={"kind": "torch"})


def _load(path: Path) -> Arrays | None:
    if not path.exists():
        return None
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            kind = (file.metadata() or {}).get("kind")
        with safe_open(path, framework="pt" if kind == "torch" else "numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, OSError):
        return None  # truncated by a crash of the machine; it is made again
