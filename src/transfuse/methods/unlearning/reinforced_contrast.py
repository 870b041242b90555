"""Unlearn at the logits: whatever a model that was taught more of the forget set likes better is what to avoid.

Who's Harry Potter (Eldan and Russinovich 2023): v = v_base - a ReLU(v_reinforced - v_base). The reinforced model is
the model taught more of what is to be forgotten; where it raises a token, the token is lowered, others are left alone.

>>> import torch
>>> contrast(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 1.0, 0.0]), 2.0)
tensor([-3.,  1.,  1.])

As a `LogitsProcessor` it goes into any ``generate`` of transformers, with the reinforced model beside the base::

    model.generate(**inputs, logits_processor=[ReinforcedContrast(reinforced, strength=2.0)])

`ContrastedModel` needs one model only: the reinforced one is the same with an adapter on. The paper then trains a model
on these logits; that is left to any distillation.

Ronen Eldan and Mark Russinovich, Who's Harry Potter? Approximate Unlearning in LLMs, 2023,
https://arxiv.org/abs/2310.02238
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from transfuse.methods.unlearning.adapter_composition import Kind, new_adapter
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.answer_training import (
    Control,
    OnStep,
    answer_control,
    fine_tune,
    needs_items,
    pad_id,
    scan_strength,
    seeded,
)


@dataclass(frozen=True)
class Config:
    """How the reinforced model is made, and how strongly it is avoided."""

    adapter: Kind = "lora"  # the reinforced model is the base with it on, so that there is one model in memory
    rank: int = 8  # of LoRA; PEFT's default
    alpha: int = 16  # LoRA's scale is alpha / rank
    modules: str | tuple[str, ...] = "all-linear"  # LoRA's targets; IA3 takes PEFT's own for the architecture
    steps: int = 60  # optimiser steps on the forget set
    rate: float = 1e-3  # of AdamW, for adapters
    batch: int = 32  # items a step
    grid: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)  # the paper's a
    keep: float = 0.95  # share of the control metric that must remain, as for task vectors


def contrast(base: Tensor, reinforced: Tensor, strength: float) -> Tensor:
    """v_base - a ReLU(v_reinforced - v_base), of logits of any shape; a = 0 gives the base."""
    return base - strength * torch.relu(reinforced - base)


class ReinforcedContrast(LogitsProcessor):
    """Lowers, while another model writes, what a reinforced model would raise.

    Args:
        reinforced: a causal language model of the same vocabulary.
        strength: a.
        pad: id that prompts are padded with on the left, which the reinforced model must not read.
        log_probs: whether scores are log probabilities, as in beam search, and the reinforced ones shall be so too.
    """

    def __init__(
        self, reinforced: nn.Module, strength: float = 2.0, pad: int | None = None, log_probs: bool = False
    ) -> None:
        self.reinforced, self.strength, self.pad, self.log_probs = reinforced, strength, pad, log_probs

    @torch.no_grad()
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores of the next token, (batch, vocabulary), given all tokens so far, (batch, length)."""
        mask = torch.ones_like(input_ids) if self.pad is None else (input_ids != self.pad).cumsum(1).clamp(max=1)
        places = (mask.cumsum(1) - 1).clamp(min=0)  # left padding must not shift positions
        logits = self.reinforced(
            input_ids=input_ids, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=1
        ).logits[:, -1]
        logits = torch.log_softmax(logits.float(), -1) if self.log_probs else logits
        return contrast(scores, logits.to(scores), self.strength)  # type: ignore[return-value]


class ContrastedModel(nn.Module):
    """A causal language model whose logits are those of its base, less what its adapter raises.

    Args:
        peft: a `PeftModel` whose active adapter was taught the forget set.
        strength: a.
    """

    def __init__(self, peft: Any, strength: float = 2.0) -> None:
        super().__init__()
        self.peft, self.strength, self.config = peft, strength, peft.config

    def forward(self, input_ids: Tensor, **options: Any) -> Any:
        """As the model's; two passes."""
        reinforced = self.peft(input_ids=input_ids, **options).logits
        with self.peft.disable_adapter():
            output = self.peft(input_ids=input_ids, **options)
        output.logits = contrast(output.logits, reinforced, self.strength)
        return output


def unlearn_reinforced_contrast(
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[EncodedAnswer],
    retain: Sequence[EncodedAnswer],
    config: Config | None = None,
    *,
    seed: int,
    on_step: OnStep | None = None,
    control: Control | None = None,
) -> nn.Module:
    """Teach an adapter the forget set and return a `ContrastedModel` that avoids what it learned.

    Args:
        model: a causal language model of transformers; its own weights are not touched.
        tokenizer: its tokenizer.
        forget: answers to forget.
        retain: answers that the default control metric is taken from.
        config: settings.
        seed: of the adapter's first weights and of the batches.
        on_step: called at each strength of the grid, upwards; True keeps that strength.
        control: what must stay at `config.keep`; None is the mean probability of the retained answers.
    """
    c = config or Config()
    needs_items(forget=forget, retain=retain)
    pad = pad_id(tokenizer)
    with seeded(seed, model):
        peft = new_adapter(model, c.adapter, c.rank, c.alpha, c.modules, "reinforced")
        fine_tune(peft, forget, pad, steps=c.steps, rate=c.rate, batch=c.batch, seed=seed)
    contrasted = ContrastedModel(peft).train(model.training)
    scan_strength(
        contrasted, lambda strength: setattr(contrasted, "strength", strength), c.grid,
        control or answer_control(retain, pad), c.keep, on_step,
    )  # fmt: skip
    return contrasted
