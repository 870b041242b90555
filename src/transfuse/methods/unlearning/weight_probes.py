"""Attacks on weights alone, which need no data: back along the update, noise, pruning, the update without its main
directions. Each takes state dictionaries and returns one; whatever is not floating point is handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def interpolated(original: State, unlearned: State, t: float) -> dict[str, Tensor]:
    """theta_0 + t (theta_u - theta_0): 0 is the original, 1 the unlearned model, beyond 1 more of the same."""
    return _each(unlearned, lambda name, weight: original[name].to(weight) + t * (weight - original[name].to(weight)))


def with_noise(state: State, level: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Matrices with Gaussian noise whose expected norm is `level` times that of the row."""

    def noisy(name: str, weight: Tensor) -> Tensor:
        if weight.ndim < 2:
            return weight
        rows = weight.flatten(1)
        noise = torch.randn(rows.shape, generator=generator, dtype=torch.float32).to(rows)
        spread = rows.norm(dim=1, keepdim=True) / rows.shape[1] ** 0.5
        return (rows + level * spread * noise).view_as(weight)

    return _each(state, noisy)


def pruned(state: State, share: float) -> dict[str, Tensor]:
    """Matrices without the `share` of their weights that is smallest in magnitude."""

    def without(name: str, weight: Tensor) -> Tensor:
        count = int(share * weight.numel())
        if weight.ndim < 2 or count == 0:
            return weight
        limit = weight.abs().flatten().float().kthvalue(count).values
        return torch.where(weight.abs() <= limit, torch.zeros_like(weight), weight)

    return _each(state, without)


def without_directions(original: State, unlearned: State, rank: int) -> dict[str, Tensor]:
    """The original plus the update of each matrix without its first `rank` singular directions."""

    def residual(name: str, weight: Tensor) -> Tensor:
        if weight.ndim != 2:
            return weight
        before = original[name].to(weight)
        u, s, v = torch.linalg.svd((weight - before).float(), full_matrices=False)
        return weight - ((u[:, :rank] * s[:rank]) @ v[:rank]).to(weight)

    return _each(unlearned, residual)


def _each(state: State, change: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """Apply to floating-point tensors; tensors that share storage (tied embeddings) are changed once."""
    made: dict[int, Tensor] = {}
    found = {}
    with torch.no_grad():
        for name, weight in state.items():
            if weight.is_floating_point() and weight.data_ptr() not in made:
                made[weight.data_ptr()] = change(name, weight).detach()
            found[name] = made[weight.data_ptr()] if weight.is_floating_point() else weight
    return found
