"""Unlearn by climbing the loss of what is to be forgotten, with nothing to hold the rest.

L = mean log p of the answers' tokens. It has no lower bound, so that the model breaks before long; where to stop is all
there is to choose. The paper stops when extraction likelihood and memorisation fall to those of unseen text. It stands
here as the baseline that the others brake.

>>> Config().alpha                                             # no retain term
0.0

Joel Jang et al., Knowledge Unlearning for Mitigating Privacy Risks in Language Models, ACL 2023,
https://arxiv.org/abs/2210.01504
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
    """Gradient ascent alone."""

    alpha: float = 0.0
    retain: Retain = "none"


def unlearn_gradient_ascent(
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[EncodedAnswer],
    retain: Sequence[EncodedAnswer],
    config: Config | None = None,
    *,
    seed: int,
    on_step: OnStep | None = None,
) -> nn.Module:
    """Climb the loss of the forget set, in place. Arguments as of `unlearn_by_gradient`; `retain` is not used."""
    return unlearn_by_gradient(
        Objective(config or Config(), tokenizer, forget, retain), model, seed=seed, on_step=on_step
    )
