"""Unlearn by climbing the loss of what is to be forgotten while descending that of what is to stay.

L = gamma * mean log p(forget) + alpha * NLL(retain). The retain term keeps the rest; the ascent still has no bound.

>>> (Config().gamma, Config().alpha, Config().retain)
(1.0, 1.0, 'nll')

Bo Liu et al., Continual Learning and Private Unlearning, CoLLAs 2022, https://arxiv.org/abs/2203.12817; the form for
language models is that of TOFU, Pratyush Maini et al. 2024, https://arxiv.org/abs/2401.06121
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.answer_training import OnStep
from transfuse.methods.unlearning.gradient_objective import GradientConfig, Objective, unlearn_by_gradient


@dataclass(frozen=True)
class Config(GradientConfig):
    """Gradient difference: ascent and descent of the same weight."""


def unlearn_grad_diff(
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[EncodedAnswer],
    retain: Sequence[EncodedAnswer],
    config: Config | None = None,
    *,
    seed: int,
    on_step: OnStep | None = None,
) -> nn.Module:
    """Climb one loss and descend the other, in place. Arguments as of `unlearn_by_gradient`."""
    return unlearn_by_gradient(
        Objective(config or Config(), tokenizer, forget, retain), model, seed=seed, on_step=on_step
    )
