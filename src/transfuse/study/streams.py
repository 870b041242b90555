"""Named random streams: what makes the arms of one seed comparable.

Every arm of a study asks for the same stream by name and gets the same numbers, whatever the other
arms drew before. Nothing here touches a global generator except inside `Stream.seeded`, which puts the
old state back.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Stream:
    """One source of randomness, identified by the seed and a name. Every call starts it afresh."""

    seed: int
    name: str

    def child(self, *names: object) -> Stream:
        """An independent stream below this one, for example one a client or one an epoch."""
        return Stream(self.seed, "/".join((self.name, *map(str, names))))

    def integer(self) -> int:
        """A seed for code that wants an integer, in 0 .. 2**31 - 1."""
        digest = hashlib.sha256(f"{self.seed}/{self.name}".encode()).digest()
        return int.from_bytes(digest[:8], "little") % 2**31

    def numpy(self) -> np.random.Generator:
        """A NumPy generator at the start of the stream."""
        digest = hashlib.sha256(f"{self.seed}/{self.name}".encode()).digest()
        return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))

    def torch(self, device: str = "cpu") -> torch.Generator:
        """A torch generator at the start of the stream."""
        import torch

        return torch.Generator(device=device).manual_seed(self.integer())

    @contextlib.contextmanager
    def seeded(self) -> Iterator[None]:
        """Seed the global generators (random, numpy, torch) inside the block and restore them after.

        For code of others that draws from them, such as a model's initialisation.
        """
        import sys

        states = random.getstate(), np.random.get_state()
        random.seed(self.integer())
        np.random.seed(self.integer())
        torch = sys.modules.get("torch")
        try:
            if torch is None:
                yield
            else:
                with torch.random.fork_rng():
                    torch.manual_seed(self.integer())
                    yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@dataclass(frozen=True)
class Streams:
    """The streams of one seed: `split` for data, `init` for weights, `order` for batches, `noise` for the rest."""

    seed: int

    @property
    def split(self) -> Stream:
        return Stream(self.seed, "split")

    @property
    def init(self) -> Stream:
        return Stream(self.seed, "init")

    @property
    def order(self) -> Stream:
        return Stream(self.seed, "order")

    @property
    def noise(self) -> Stream:
        return Stream(self.seed, "noise")
