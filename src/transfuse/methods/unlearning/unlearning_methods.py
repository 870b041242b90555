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
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from transfuse.card import Card
from transfuse.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
    from transfuse.methods.unlearning.answer_training import OnStep

CARD = Card(
    id="unlearning_methods",
    title="Knowledge Unlearning for LLMs: Tasks, Methods, and Challenges",
    summary="Takes given answers out of a causal language model by any of thirteen published methods, and measures "
    "what is forgotten and what is lost beside it.",
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
        "Terms are means over the whole accumulated batch, over labelled tokens or items; published code takes means "
        "of parts, and divergences over prompts and padding.",
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

# Commands besides `transfuse apply unlearning_methods --method ...`
APPLY_AS = {
    "gradient_ascent": {"method": "gradient_ascent"},
    "grad_diff": {"method": "grad_diff"},
    "grad_kl": {"method": "grad_kl"},
    "npo": {"method": "npo"},
    "simnpo": {"method": "simnpo"},
    "idk_dpo": {"method": "idk_dpo"},
    "rmu": {"method": "rmu"},
    "eul": {"method": "eul"},
    "task_vector": {"method": "task_vector"},
    "adapter_negation": {"method": "adapter_negation"},
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


def apply(
    model: Annotated[str, "model folder or hub name", "argument"],
    forget: Annotated[Path, "JSONL of questions and answers to forget"],
    retain: Annotated[Path, "JSONL of questions and answers to keep"],
    out: Annotated[Path, "folder to write: model, tokenizer and model card"],
    method: Annotated[str, "which method; see transfuse show unlearning_methods"] = Config.method,
    rate: Annotated[float | None, "learning rate; the method's own by default, small models need more"] = None,
    steps: Annotated[int | None, "optimiser steps at most"] = None,
    batch: Annotated[int | None, "items of each set a step"] = None,
    set_: Annotated[tuple[str, ...], "a further setting of the method, as beta=0.2; may be given several times"] = (),
    until: Annotated[float | None, "stop when no more than this share of the answers to forget is left"] = None,
    audit: Annotated[bool, "audit the result; its findings go into the model card"] = True,
    gold: Annotated[str | None, "a model that never saw the forget set, for the audit"] = None,
    chat: Annotated[bool, "ask in the tokenizer's chat template"] = False,
    device: Annotated[str, "cpu, or cuda where there is a GPU"] = "cpu",
    seed: Annotated[int, "of batches and first weights"] = 0,
) -> Path:
    """Make a language model forget answers, and write the new checkpoint with a model card that carries the audit.

    MODEL is a folder that `save_pretrained` wrote, or a hub name. Each line of the files is an object with "question"
    and "answer"; "paraphrases", a list of other wordings of the question, are used too.
    """
    from transfuse.methods.unlearning.unlearning_checkpoint import unlearn_checkpoint

    given = {"rate": rate, "steps": steps, "batch": batch}
    options = {name: value for name, value in given.items() if value is not None} | read_options(method, set_)
    return unlearn_checkpoint(
        model, forget, retain, out, method=method, options=options, until=until, seed=seed, device=device, chat=chat,
        audit=audit, gold=gold,
    )  # fmt: skip


def read_options(method: str, texts: Sequence[str]) -> dict[str, Any]:
    """Settings given as "name=value", in the types that the method's settings have.

    Raises:
        UserError: no "=", an unknown setting, or a value of another type.
    """
    kind = importlib.import_module(_module(method)).Config
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in hints:
            known = [field.name for field in fields(kind)]
            hint = did_you_mean(name, known) or f"one of {', '.join(known)}"
            raise UserError(f"--set {text!r}", f"a setting of {method} as name=value", hint)
        found[name] = _value(text, hints[name], value)
    return found


def _value(text: str, hint: Any, value: str) -> Any:
    kinds = [kind for kind in typing.get_args(hint) if kind in (int, float, str)] if _is_union(hint) else [hint]
    kind = kinds[0] if kinds and kinds[0] in (int, float) else str
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"--set {text!r}", f"a value of type {kind.__name__}") from None


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
