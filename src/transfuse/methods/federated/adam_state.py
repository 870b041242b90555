"""Adam whose moments outlive the process: as three flat arrays, for a node's context or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn


def adam(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Adam:
    """Adam, in its fused form where the device has it: small models spend most of a step in overhead."""
    parameters = list(parameters)
    return torch.optim.Adam(parameters, lr=rate, fused=all(p.device.type in ("cpu", "cuda") for p in parameters))


def moments(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What Adam remembers: `exp_avg` and `exp_avg_sq`, (size of all parameters,), and `step`, (parameters,).

    A parameter that has not been stepped has zeros, which is what Adam starts from.
    """
    parameters = optimiser.param_groups[0]["params"]
    states = [optimiser.state.get(p, {}) for p in parameters]
    flat = {
        name: torch.cat(
            [s.get(name, torch.zeros_like(p)).detach().flatten() for s, p in zip(states, parameters, strict=True)]
        ).cpu()
        for name in ("exp_avg", "exp_avg_sq")
    }
    return {**flat, "step": torch.tensor([float(s.get("step", 0.0)) for s in states])}


def restore_moments(optimiser: torch.optim.Optimizer, saved: Mapping[str, torch.Tensor]) -> None:
    """Continue from `moments`; devices and precisions are the parameters' own."""
    group = optimiser.state_dict()["param_groups"]
    parameters = optimiser.param_groups[0]["params"]
    sizes = [p.numel() for p in parameters]
    first, second = (saved[name].split(sizes) for name in ("exp_avg", "exp_avg_sq"))
    state = {
        index: {"step": saved["step"][index].clone(), "exp_avg": a.reshape(p.shape), "exp_avg_sq": b.reshape(p.shape)}
        for index, (p, a, b) in enumerate(zip(parameters, first, second, strict=True))
        if saved["step"][index] > 0
    }
    optimiser.load_state_dict({"state": state, "param_groups": group})
