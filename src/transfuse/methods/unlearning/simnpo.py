"""Unlearn as NPO does, without a reference: what counts is the answer's mean loss a token.

L = -(2 / b) log sigmoid(b (l - delta)), l = -log p(answer | prompt) / n. Length is divided out, so that long answers do
not look forgotten because they are long; and items that were never well known are not compared with a first model that
did not know them.

>>> import torch
>>> simnpo_values(torch.tensor([0.0]), beta=2.5)                  # known by heart: (2 / b) log 2
tensor([0.5545])

The paper writes the margin outside b: its gamma is b * delta here. The defaults are those of its code for TOFU.

Chongyu Fan et al., Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning, 2024,
https://arxiv.org/abs/2410.07163
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.answer_training import OnStep
from transfuse.methods.unlearning.gradient_objective import Answers, GradientConfig, Objective, unlearn_by_gradient


@dataclass(frozen=True)
class Config(GradientConfig):
    """SimNPO with a retain term."""

    beta: float = 2.5  # the official code's for TOFU
    delta: float = 0.0  # margin in nats a token; the official code's
    gamma: float = 0.1375  # the official code's for TOFU

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0:
            raise UserError(f"beta {self.beta:g}", "above 0")


def simnpo_values(losses: Tensor, beta: float, delta: float = 0.0) -> Tensor:
    """-(2 / beta) log sigmoid(beta (l - delta)) of each item.

    Args:
        losses: mean negative log likelihood a token of each answer, in nats, (items,).
        beta: inverse temperature.
        delta: loss from which an item counts as forgotten.
    """
    return -2 / beta * torch.nn.functional.logsigmoid(beta * (losses - delta))


class SimNPO(Objective):
    """SimNPO's forget term; see the module."""

    per_item = True

    def forget_values(self, answers: Answers, forget: Sequence[int]) -> Tensor:
        """One value an item."""
        assert isinstance(self.config, Config)
        return simnpo_values(answers.losses(), self.config.beta, self.config.delta)


def unlearn_simnpo(
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[EncodedAnswer],
    retain: Sequence[EncodedAnswer],
    config: Config | None = None,
    *,
    seed: int,
    on_step: OnStep | None = None,
) -> nn.Module:
    """Raise the mean loss of the forget set's answers, in place. Arguments as of `unlearn_by_gradient`."""
    return unlearn_by_gradient(SimNPO(config or Config(), tokenizer, forget, retain), model, seed=seed, on_step=on_step)
