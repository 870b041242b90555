"""What rounding to 8 or 4 bits does to a model, computed in the model's own floating-point type.

Weights are rounded to the nearest of 2^(b-1) - 1 steps on either side of 0, one step size an output channel or for each
group of inputs. An unlearning step smaller than half of it is rounded away, and what it hid comes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transfuse.errors import UserError


def step_sizes(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """The quantisation step of each weight, (out, in): largest magnitude of its channel or group over 2^(b-1) - 1."""
    if bits < 2 or (group is not None and group < 1):
        raise UserError(f"{bits} bits in groups of {group}", "at least 2 bits, and groups of at least 1 weight")
    size = group or weight.shape[1]
    largest = [part.abs().amax(dim=1, keepdim=True).expand_as(part) for part in weight.split(size, dim=1)]
    return torch.cat(largest, dim=1) / (2 ** (bits - 1) - 1)


def codes(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """The integers that the weights are stored as, (out, in)."""
    steps = step_sizes(weight, bits, group)
    return torch.round(weight / torch.where(steps > 0, steps, torch.ones_like(steps)))


def fake_quantised(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Weights as they come back from storage in `bits` bits, (out, in)."""
    return codes(weight, bits, group) * step_sizes(weight, bits, group)


def quantised_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Name, layer and whether its weight is (in, out), of all linear layers but the head. Embeddings are not linear."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, which holds its weight transposed

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    for name, layer in model.named_modules():
        if layer is not head and isinstance(layer, nn.Linear | Conv1D):
            yield name, layer, isinstance(layer, Conv1D)


def quantised_state(model: nn.Module, bits: int, group: int | None = None) -> dict[str, Tensor]:
    """The weights that change, as a state dictionary for ``load_state_dict(..., strict=False)``."""
    changed = {}
    with torch.no_grad():
        for name, layer, transposed in quantised_layers(model):
            weight: Tensor = layer.weight  # type: ignore[assignment]
            rounded = fake_quantised(weight.T if transposed else weight, bits, group)
            changed[f"{name}.weight"] = (rounded.T if transposed else rounded).contiguous()
    return changed


@dataclass(frozen=True)
class RoundedAway:
    """How much of an unlearning update rounding undoes.

    Attributes:
        below_half: share of changed weights whose change is less than half a step.
        same_code: share of changed weights that are stored as the same integer before and after.
        size: norm of the update over norm of the half steps: below 1, rounding can hide it all.
    """

    below_half: float
    same_code: float
    size: float


def rounded_away(
    original: Mapping[str, Tensor], unlearned: nn.Module, bits: int, group: int | None = None
) -> RoundedAway:
    """Compare the update of all linear layers with the steps of the unlearned model's weights.

    Args:
        original: the state dictionary before unlearning.
        unlearned: the model after it.
        bits: of the storage.
        group: inputs that share a step size; all of a channel by default.
    """
    changed = below = same = 0
    update = half_steps = 0.0
    with torch.no_grad():
        for name, layer, transposed in quantised_layers(unlearned):
            after: Tensor = layer.weight  # type: ignore[assignment]
            before = original[f"{name}.weight"].to(after)
            before, after = (before.T, after.T) if transposed else (before, after)
            steps, moved = step_sizes(after, bits, group), before != after
            changed += int(moved.sum())
            below += int(((after - before).abs() < steps / 2)[moved].sum())
            same += int((codes(before, bits, group) == codes(after, bits, group))[moved].sum())
            update += float((after - before).double().square().sum())
            half_steps += float((steps / 2).double().square().sum())
    share = max(changed, 1)
    return RoundedAway(below / share, same / share, (update / max(half_steps, 1e-300)) ** 0.5)
