"""Unlearn by preferring a refusal to the answer that is to be forgotten.

Direct preference optimisation with a refusal as the chosen and the true answer as the rejected one:
L = -(2 / b) log sigmoid(b [(s - s_0)(refusal) - (s - s_0)(answer)]). Each item has a refusal of its own, drawn once
from a list, so that its reference can be kept as a number.

>>> import torch
>>> zero = torch.zeros(1)
>>> dpo_values(zero, zero, zero, zero, beta=0.1)                  # at first: (2 / b) log 2
tensor([13.8629])

The factor 2 / b is NPO's; without it, as in plain DPO, the term would weigh 1 / 20 as much against the retain term.

Pratyush Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, COLM 2024, https://arxiv.org/abs/2401.06121;
Ruiqi Zhang et al., NPO, https://arxiv.org/abs/2404.05868
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_scores import score_answers
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.answer_training import OnStep, pick
from transfuse.methods.unlearning.gradient_objective import Answers, GradientConfig, Objective, unlearn_by_gradient

# Wordings of our own. In lower case without punctuation, so that small vocabularies hold them too.
REFUSALS = (
    "i do not know",
    "that is unknown to me",
    "i cannot say",
    "no idea",
    "i never learned that",
    "sorry i do not know that",
    "nobody told me this",
)


@dataclass(frozen=True)
class Config(GradientConfig):
    """DPO towards refusals, with a retain term."""

    beta: float = 0.1  # TOFU's
    refusals: tuple[str, ...] = REFUSALS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0 or not self.refusals:
            raise UserError(f"beta {self.beta:g} and {len(self.refusals)} refusals", "above 0, and one at least")


def dpo_values(
    chosen: Tensor, chosen_first: Tensor, rejected: Tensor, rejected_first: Tensor, beta: float
) -> Tensor:  # fmt: skip
    """-(2 / beta) log sigmoid(beta [(s - s_0)(chosen) - (s - s_0)(rejected)]) of each item.

    Args:
        chosen: log p of the refusals, (items,).
        chosen_first: the first model's.
        rejected: log p of the answers to forget, (items,).
        rejected_first: the first model's.
        beta: inverse temperature.
    """
    return -2 / beta * torch.nn.functional.logsigmoid(beta * ((chosen - chosen_first) - (rejected - rejected_first)))


class IdkDPO(Objective):
    """The forget term; see the module."""

    per_item = True

    def __init__(
        self,
        config: Config,
        tokenizer: Any,
        forget: Sequence[EncodedAnswer],
        retain: Sequence[EncodedAnswer],
        seed: int = 0,
    ) -> None:
        super().__init__(config, tokenizer, forget, retain)
        self.beta = config.beta
        drawn = np.random.default_rng([seed, 4]).integers(len(config.refusals), size=len(self.forget))
        self.refused = [
            refused(tokenizer, item, config.refusals[i]) for item, i in zip(self.forget, drawn, strict=True)
        ]

    def keep_reference(self, model: nn.Module) -> None:
        """s_0 of every answer and of every refusal, and what the retain term needs."""
        super().keep_reference(model)
        sums = score_answers(model, self.forget + self.refused, self.pad).sums()
        self.first = torch.tensor(sums, dtype=torch.float32).reshape(2, -1)  # answers, refusals

    def rows(self, forget: Sequence[int]) -> list[EncodedAnswer]:
        """Answers, then refusals."""
        return pick(self.forget, forget) + pick(self.refused, forget)

    def forget_values(self, answers: Answers, forget: Sequence[int]) -> Tensor:
        """One value an item."""
        rejected, chosen = answers.sums().reshape(2, -1)
        rejected_first, chosen_first = self.first[:, list(forget)].to(answers.logp.device)
        return dpo_values(chosen, chosen_first, rejected, rejected_first, self.beta)


def refused(tokenizer: Any, item: EncodedAnswer, refusal: str) -> EncodedAnswer:
    """The prompt of an item with a refusal for an answer, ended as the answer was."""
    spaced = tokenizer("a " + refusal, add_special_tokens=False)["input_ids"]
    ids = spaced[len(tokenizer("a", add_special_tokens=False)["input_ids"]) :]
    if not ids:
        raise UserError(f"refusal {refusal!r}", "a text that the tokenizer knows")
    ended = item.ids[-1:] if item.ids[-1] == tokenizer.eos_token_id else ()
    return EncodedAnswer((*item.ids[: item.start], *ids, *ended), item.start)


def unlearn_idk_dpo(
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[EncodedAnswer],
    retain: Sequence[EncodedAnswer],
    config: Config | None = None,
    *,
    seed: int,
    on_step: OnStep | None = None,
) -> nn.Module:
    """Prefer refusals to the answers of the forget set, in place. Arguments as of `unlearn_by_gradient`."""
    objective = IdkDPO(config or Config(), tokenizer, forget, retain, seed)
    return unlearn_by_gradient(objective, model, seed=seed, on_step=on_step)
