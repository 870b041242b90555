"""Thirteen ways to unlearn, from gradients over arithmetic of weights to the prompt, under one name each.

>>> sorted(METHODS)[:3]
['adapter_negation', 'eul', 'grad_diff']
>>> make_config("npo", {"beta": 0.2}).beta
0.2

Each is a module of its own, with its equations, settings and procedure; `unlearn` calls one by its name. In a training
script of transformers use `UnlearningTrainer` with the objective of a gradient method.

Nianwen Si et al., Knowledge Unlearning for LLMs: Tasks, Methods, and Challenges, 2023,
https://arxiv.org/abs/2311.15766
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from transfuse.card import Card
from transfuse.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
    from transfuse.methods.unlearning.answer_training import OnStep

CARD = Card(
    id="unlearning_methods",
    title="Knowledge Unlearning for LLMs: Tasks, Methods, and Challenges",
    summary="Takes given answers out of a causal language model by any of thirteen published methods, and measures what "
    "is forgotten and what is lost beside it.",
    authors="Nianwen Si, Hao Zhang, Heyu Chang, Wenlin Zhang, Dan Qu, Weiqiang Zhang",
    year=2023,
    venue="arXiv",
    url="https://arxiv.org/abs/2311.15766",
    family="unlearning",
    host="transformers Trainer",
    entry="transfuse.methods.unlearning.unlearning_trainer.UnlearningTrainer",
    needs=("a causal language model", "questions and answers to forget", "questions and answers to keep"),
    data="text",
    problems=(
        "How do I make a language model forget some facts or documents?",
        "Which unlearning method keeps the rest of my model intact?",
        "Do NPO, SimNPO, RMU or a task vector forget as a model that never saw the data?",
    ),
    extra="unlearning",
    requires=("torch", "transformers", "accelerate", "peft"),
    differs=(
        "Terms are means over the whole accumulated batch, over labelled tokens or items; published code takes means of "
        "parts, and divergences over prompts and padding.",
        "References are kept as one number an item, or as last hidden states with a copy of the head; there is no "
        "second model.",
        "EUL and adapter composition use PEFT's LoRA and (IA)^3 instead of adapter-transformers' bottlenecks.",
        "KGA weighs the divergence on retained data by r and takes both gaps in the same order; the official code does "
        "neither everywhere.",
    ),
)

# name -> module of this package and its procedure
METHODS: Mapping[str, tuple[str, str]] = {
    "gradient_ascent": ("gradient_ascent", "unlearn_gradient_ascent"),
    "grad_diff": ("grad_diff", "unlearn_grad_diff"),
    "grad_kl": ("grad_kl", "unlearn_grad_kl"),
    "npo": ("npo", "unlearn_npo"),
    "simnpo": ("simnpo", "unlearn_simnpo"),
    "idk_dpo": ("idk_dpo", "unlearn_idk_dpo"),
    "rmu": ("rmu", "unlearn_rmu"),
    "eul": ("eul_adapters", "unlearn_eul"),
    "kga": ("kga", "unlearn_kga"),
    "task_vector": ("task_vector", "unlearn_task_vector"),
    "adapter_negation": ("adapter_composition", "unlearn_adapter_negation"),
    "reinforced_contrast": ("reinforced_contrast", "unlearn_reinforced_contrast"),
    "icul": ("in_context", "unlearn_icul"),
}


@dataclass(frozen=True)
class Config:
    """Which method; its own settings are those of its module's Config."""

    method: str = "npo"  # brakes itself as items are forgotten, and needs no second model

    def __post_init__(self) -> None:
        _module(self.method)


def _module(method: str) -> str:
    if method not in METHODS:
        raise UserError(f"method {method!r}", fix=did_you_mean(method, METHODS) or f"one of {', '.join(METHODS)}")
    return f"{__package__}.{METHODS[method][0]}"


def make_config(method: str, options: Mapping[str, Any]) -> Any:
    """A method's settings, its own defaults where `options` says nothing.

    Raises:
        UserError: an unknown method, or a setting that it does not have.
    """
    kind = importlib.import_module(_module(method)).Config
    known = [field.name for field in fields(kind)]
    for name in options:
        if name not in known:
            raise UserError(
                f"setting {name!r} of {method}", fix=did_you_mean(name, known) or f"one of {', '.join(known)}"
            )
    return kind(**options)


def unlearn(
    method: str,
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[EncodedAnswer],
    retain: Sequence[EncodedAnswer],
    config: Any = None,
    *,
    seed: int,
    on_step: OnStep | None = None,
    **extra: Any,
) -> nn.Module:
    """Unlearn by a method's name.

    Args:
        method: a name of `METHODS`.
        model: a causal language model of transformers; changed in place by methods that change weights.
        tokenizer: its tokenizer.
        forget: answers to forget, see `encode_answer`.
        retain: answers to keep.
        config: settings of the method, see `make_config`; None takes its defaults.
        seed: of batches and first weights.
        on_step: called after each step with its number, from 1, and the model; True stops.
        **extra: what one method takes beside these, such as `unseen` of kga.

    Returns:
        The model; a `PeftModel` for adapters, a wrapped model for methods that act as it is used.
    """
    procedure = getattr(importlib.import_module(_module(method)), METHODS[method][1])
    result: nn.Module = procedure(model, tokenizer, forget, retain, config, seed=seed, on_step=on_step, **extra)
    return result
