"""Unlearn by preference against the answers to forget, which lets go of an item once it is forgotten.

L = (2 / b) log(1 + (p / p_0)^b) for the whole answer's probability p, and p_0 that of the first model. Its gradient is
that of gradient ascent times 2 r / (1 + r), r = (p / p_0)^b, which vanishes as p falls: no item pushes for ever, and
the loss has a bound. b -> 0 gives gradient ascent.

log p_0 is one number an item. It is taken once, before the first step, and no second model is kept.

>>> import torch
>>> npo_values(torch.tensor([-3.0]), torch.tensor([-3.0]), beta=0.1)        # at first: (2 / b) log 2
tensor([13.8629])

Ruiqi Zhang et al., Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning, COLM 2024,
https://arxiv.org/abs/2404.05868, equation 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_scores import score_answers
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.answer_training import OnStep
from transfuse.methods.unlearning.gradient_objective import Answers, GradientConfig, Objective, unlearn_by_gradient


@dataclass(frozen=True)
class Config(GradientConfig):
    """NPO with a retain term; alpha=0 and retain="none" give NPO alone."""

    beta: float = 0.1  # the paper's

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0:
            raise UserError(f"beta {self.beta:g}", "above 0", "use gradient_ascent, which is the limit of beta -> 0")


def npo_values(s: Tensor, reference: Tensor, beta: float) -> Tensor:
    """(2 / beta) log(1 + exp(beta (s - s_0))) of each item.

    Args:
        s: log p(answer | prompt), the sum over its tokens, (items,).
        reference: the first model's, (items,).
        beta: inverse temperature.
    """
    return 2 / beta * torch.nn.functional.softplus(beta * (s - reference))


class NPO(Objective):
    """NPO's forget term; see the module."""

    per_item = True

    def keep_reference(self, model: nn.Module) -> None:
        """s_0 of every forget item, and what the retain term needs."""
        super().keep_reference(model)
        self.first = torch.tensor(score_answers(model, self.forget, self.pad).sums(), dtype=torch.float32)

    def forget_values(self, answers: Answers, forget: Sequence[int]) -> Tensor:
        """One value an item."""
        assert isinstance(self.config, Config)
        return npo_values(answers.sums(), self.first[list(forget)].to(answers.logp.device), self.config.beta)


def unlearn_npo(
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[EncodedAnswer],
    retain: Sequence[EncodedAnswer],
    config: Config | None = None,
    *,
    seed: int,
    on_step: OnStep | None = None,
) -> nn.Module:
    """Prefer not to give the answers of the forget set, in place. Arguments as of `unlearn_by_gradient`."""
    return unlearn_by_gradient(NPO(config or Config(), tokenizer, forget, retain), model, seed=seed, on_step=on_step)
