"""Unlearn by climbing the loss of what is to be forgotten while staying near the first model on what is to stay.

L = gamma * mean log p(forget) + alpha * KL(p_0 || p) at the tokens of retained answers. What p_0 says there is kept as
its last hidden states and a copy of the head: exact, and d / V of the memory of its probabilities.

Published code takes the divergence over prompts and padding too, or over logits that were never normalised. Here it is
over probabilities at answer tokens.

>>> Config().retain
'kl'

Pratyush Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, COLM 2024, https://arxiv.org/abs/2401.06121
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.answer_training import OnStep
from transfuse.methods.unlearning.gradient_objective import GradientConfig, Objective, Retain, unlearn_by_gradient


@dataclass(frozen=True)
class Config(GradientConfig):
    """Gradient ascent with a divergence from the first model."""

    retain: Retain = "kl"


def unlearn_grad_kl(
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[EncodedAnswer],
    retain: Sequence[EncodedAnswer],
    config: Config | None = None,
    *,
    seed: int,
    on_step: OnStep | None = None,
) -> nn.Module:
    """Climb the loss of the forget set near the first model, in place. Arguments as of `unlearn_by_gradient`."""
    return unlearn_by_gradient(
        Objective(config or Config(), tokenizer, forget, retain), model, seed=seed, on_step=on_step
    )
