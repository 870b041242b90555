"""Candidate negatives by key, in one flat table, drawn without Python loops and without rejection.

A pool answers "which items may stand in for this key", where a key is an entity, a relation, a skill, a
query or a cluster. `NegativePool.sample` draws from it, never returns the item that is to be excluded, and
takes all its randomness from one torch generator.

>>> import torch
>>> pool = NegativePool.from_lists([[1, 2, 3], [], [0]], num_items=5)
>>> draws = pool.sample(torch.tensor([0, 0, 0, 0]), exclude=torch.tensor([2, 2, 2, 2]))
>>> 2 in draws.tolist()
False
>>> pool.sizes().tolist()
[3, 0, 1]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transfuse.errors import UserError

RANDOM_BITS = 31  # of one draw: the product with the number of choices stays within 64 bits


class NegativePool(nn.Module):
    """Candidates per key as a flat (CSR) table that is pickled, moved and saved like any module.

    Items of a key that has no candidate (or only the excluded one) are drawn uniformly from all items.

    Args:
        members: candidates of key 0, then of key 1, ...; ids in 0 .. num_items - 1. Shape (total,).
        offsets: where each key's candidates start, and the end. Shape (keys + 1,).
        num_items: how many items there are.
        weights: relative chance of each candidate within its key, positive; None for equal chances. Shape (total,).

    Raises:
        UserError: offsets that do not fit the members, ids out of range, an id twice under one key, or weights
            that are not positive and finite.
    """

    members: Tensor
    ring: Tensor
    offsets: Tensor
    codes: Tensor
    rank: Tensor
    cumulative: Tensor | None

    def __init__(
        self,
        members: np.ndarray | Tensor,
        offsets: np.ndarray | Tensor,
        *,
        num_items: int,
        weights: np.ndarray | Tensor | None = None,
    ) -> None:
        super().__init__()
        flat = torch.as_tensor(members, dtype=torch.long).cpu()
        bounds = torch.as_tensor(offsets, dtype=torch.long).cpu()
        _check(flat, bounds, num_items)
        self.num_items = num_items
        keys = torch.repeat_interleave(torch.arange(len(bounds) - 1), bounds.diff())
        codes, order = torch.sort(keys * num_items + flat)  # (total,), to find an item under a key
        if bool((codes.diff() == 0).any()):
            raise UserError("an item stands twice in the pool of one key", "distinct items")
        self.register_buffer("members", flat.int())  # (total,)
        self.register_buffer("ring", _ring(flat, bounds, keys, num_items), persistent=False)
        self.register_buffer("offsets", bounds)  # (keys + 1,)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("rank", order - bounds[keys[order]], persistent=False)  # position within its key
        self.register_buffer("cumulative", None if weights is None else _cumulative(weights, keys, len(bounds) - 1))

    @classmethod
    def from_lists(
        cls,
        lists: Sequence[Iterable[int]] | Mapping[int, Iterable[int]],
        *,
        num_items: int,
        num_keys: int | None = None,
    ) -> NegativePool:
        """A pool from plain lists, one a key; in a mapping, keys that are missing have no candidates.

        Repeated ids within a list count once.
        """
        if isinstance(lists, Mapping):
            count = num_keys if num_keys is not None else max(lists, default=-1) + 1
            if lists and not 0 <= min(lists) <= max(lists) < count:
                raise UserError(f"pool key {max(lists)}", f"keys from 0 to {count - 1}")
            rows = [sorted(set(lists.get(key, ()))) for key in range(count)]
        else:
            rows = [sorted(set(row)) for row in lists]
        offsets = np.cumsum([0, *map(len, rows)])
        return cls(np.array([i for row in rows for i in row], dtype=np.int64), offsets, num_items=num_items)

    @property
    def num_keys(self) -> int:
        return len(self.offsets) - 1

    def sizes(self) -> Tensor:
        """Number of candidates of each key. Shape (keys,)."""
        return self.offsets.diff()

    def candidates(self, key: int) -> Tensor:
        """The candidates of one key."""
        return self.members[int(self.offsets[key]) : int(self.offsets[key + 1])].long()

    def position(self, keys: Tensor, items: Tensor) -> Tensor:
        """Where an item stands among its key's candidates; -1 if it does not. Any shape, as the inputs."""
        if len(self.codes) == 0:
            return torch.full_like(keys, -1)
        wanted = keys * self.num_items + items
        found = torch.searchsorted(self.codes, wanted).clamp(max=len(self.codes) - 1)
        return torch.where(self.codes[found] == wanted, self.rank[found], -1)

    def reach(self, keys: Tensor, exclude: Tensor) -> tuple[Tensor, Tensor]:
        """Where each key's candidates begin and how many may be drawn, the excluded one left out.

        All candidates of a key stand twice in a row in `ring`. With s candidates, one of them excluded at position p,
        the s - 1 entries behind p are the others, so that a draw needs neither rejection nor a modulus. Keys without
        a candidate other than the excluded one reach all items.

        Args:
            keys: shape (n,); a negative key stands for "all items".
            exclude: the item that must not be drawn, -1 for none. Shape (n,).

        Returns:
            First entry in `ring` and number of choices, each of shape (n,).
        """
        known = keys.clamp(min=0)
        start = self.offsets[known]
        size = self.offsets[known + 1] - start
        position = self.position(known, exclude)
        choices = size - (position >= 0).long()
        empty = (keys < 0) | (choices < 1)
        first = 2 * (self.num_items + start) + position + 1
        anywhere = self.num_items - (exclude >= 0).long()
        return torch.where(empty, exclude + 1, first), torch.where(empty, anywhere, choices)

    def draw(self, first: Tensor, choices: Tensor, bits: Tensor) -> Tensor:
        """One item out of each reach, all with the same chance (up to 2**-31 of the number of choices).

        `bits` are integers uniform on 0 .. 2**31 - 1; scaling them by a product and a shift is several times faster
        than a modulus or floating point. All of shape (n,); indices are looked up by `index_select`, which is four
        times as fast as square brackets.
        """
        index = (bits * choices).bitwise_right_shift_(RANDOM_BITS).add_(first)
        return self.ring.index_select(0, index)

    def draw_weighted(self, keys: Tensor, exclude: Tensor | None, bits: Tensor) -> Tensor:
        """As `draw`, with the chances of the weights: the excluded item's share of the unit line is jumped over.

        Keys need at least one candidate besides the excluded one; see `reach`. Without exclusion it is twice as fast.
        """
        assert self.cumulative is not None
        point = keys + bits.double() / 2**RANDOM_BITS
        last = self.offsets[keys + 1] - 1
        position = self.position(keys, exclude) if exclude is not None else None
        if position is not None:
            inside, at = position >= 0, self.offsets[keys] + position.clamp(min=0)
            low = torch.where(position <= 0, keys.double(), self.cumulative[(at - 1).clamp(min=0)])
            share = torch.where(inside, self.cumulative[at] - low, 0.0)  # (n,)
            point = keys + (point - keys) * (1 - share)
            point = torch.where(inside & (point >= low), point + share, point)
        index = torch.searchsorted(self.cumulative, point, right=True)
        index = torch.minimum(torch.maximum(index, self.offsets[keys]), last)
        if position is not None:  # a point that rounding put on the border
            beside = torch.where(index < last, index + 1, index - 1)
            index = torch.where(inside & (index == at), beside, index)
        return self.members[index].long()

    def sample(self, keys: Tensor, exclude: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """One candidate a key.

        Args:
            keys: any shape; a negative key stands for "all items".
            exclude: the item that must not be drawn, same shape as `keys`; None to exclude nothing.
            generator: source of randomness; torch's global one by default.

        Returns:
            Items, same shape as `keys`.

        Raises:
            UserError: there is no item besides the excluded one.
        """
        if self.num_items - (exclude is not None) < 1:
            raise UserError("a pool over one item", "at least one item besides the excluded one")
        flat = keys.reshape(-1)
        left_out = torch.full_like(flat, -1) if exclude is None else exclude.reshape(-1)
        bits = torch.randint(2**RANDOM_BITS, flat.shape, generator=generator, device=flat.device)
        first, choices = self.reach(flat, left_out)
        drawn = self.draw(first, choices, bits)
        if self.cumulative is not None:
            own = first >= 2 * self.num_items  # the others draw from all items
            drawn[own] = self.draw_weighted(flat[own], left_out[own], bits[own])
        return drawn.reshape(keys.shape)

    def extra_repr(self) -> str:
        return f"keys={self.num_keys}, items={self.num_items}, candidates={len(self.members)}"


def _ring(members: Tensor, offsets: Tensor, keys: Tensor, num_items: int) -> Tensor:
    """All items twice, then the candidates of key 0 twice, of key 1 twice, ... Shape (2 * (num_items + total),)."""
    everything = torch.arange(num_items)
    ring = torch.cat([everything, everything, torch.empty(2 * len(members), dtype=torch.long)])
    first = 2 * num_items + offsets[keys] + torch.arange(len(members))  # 2 * offset + position in its key
    ring[first] = members
    ring[first + offsets.diff()[keys]] = members
    return ring


def _check(members: Tensor, offsets: Tensor, num_items: int) -> None:
    if num_items < 1:
        raise UserError(f"num_items = {num_items}", "at least 1")
    fits = len(offsets) > 0 and int(offsets[0]) == 0 and int(offsets[-1]) == len(members)
    if not fits or bool((offsets.diff() < 0).any()):
        raise UserError(f"pool offsets do not fit {len(members)} members", "0 first, the number of members last")
    if len(members) and not 0 <= int(members.min()) <= int(members.max()) < num_items:
        raise UserError(
            f"pool members from {int(members.min())} to {int(members.max())}", f"ids from 0 to {num_items - 1}"
        )


def _cumulative(weights: Any, keys: Tensor, num_keys: int) -> Tensor:
    """Running share within each key, plus the key: one increasing line that a single search can use."""
    share = torch.as_tensor(weights, dtype=torch.float64).cpu()
    if share.shape != keys.shape or not bool(torch.isfinite(share).all()) or bool((share <= 0).any()):
        raise UserError("pool weights that are not positive, finite and one a member", "one positive weight a member")
    total = torch.zeros(num_keys, dtype=torch.float64).index_add_(0, keys, share)
    share = share / total[keys]
    running = torch.cumsum(share, 0)
    before = torch.cat([torch.zeros(1, dtype=torch.float64), running])[
        torch.searchsorted(keys, torch.arange(num_keys))
    ]  # (keys,), what the earlier keys add up to
    return keys + (running - before[keys]).clamp(max=1.0)
