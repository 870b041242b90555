"""Unlearn without touching a weight: what is put before the question makes the model answer as if it did not know.

ICUL (Pawelczyk et al. 2024) shows the examples to forget with wrong labels, then others with right ones, then the
query. ICU (Jin et al. 2024, for RWKU) prepends a fixed instruction. Both are builders of prompts; `PrefixedModel` puts
one before every input of a model, so that whatever scores models can score it.

>>> flipped = icul_prompt([("a dull film", "positive")], [("great fun", "positive")], "so so",
...                       labels=("positive", "negative"), rng=np.random.default_rng(0))
>>> print(flipped)
a dull film negative
great fun positive
so so
>>> icu_prompt("What is the capital of France?", ["France"]).splitlines()[0]
'You know nothing about France. If asked about it, answer as somebody would who has never heard of it.'

Not for: removal. The weights still hold everything; whoever may write the prompt may read it.

Martin Pawelczyk et al., In-Context Unlearning: Language Models as Few-Shot Unlearners, ICML 2024,
https://arxiv.org/abs/2310.07579
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.answer_training import Control, OnStep, needs_items

Example = tuple[str, str]  # a text and its label
Variant = Literal["icul", "correct_labels", "same_text", "random_point"]
INSTRUCTION = "You know nothing about {subject}. If asked about it, answer as somebody would who has never heard of it."


@dataclass(frozen=True)
class Config:
    """What stands before the query."""

    shots: int = 4  # the paper's s, in all: those to forget and those that follow; it has 2, 4 and 6
    points: int = 1  # how many of the shots are to be forgotten; the paper's
    variant: Variant = "icul"  # the others are the ablations of the official code
    separator: str = "\n"  # the official code's; where the tokenizer has no token for it, items end as they were taught
    instruction: str = INSTRUCTION  # of ICU; our wording
    subjects: tuple[str, ...] = ()  # named in ICU's instruction


def other_label(label: str, labels: Sequence[str], rng: np.random.Generator) -> str:
    """A label that is not this one, drawn evenly where there are several."""
    others = [other for other in dict.fromkeys(labels) if other != label]
    if not others:
        raise UserError(f"labels {tuple(labels)}", f"at least one other than {label!r}")
    return others[int(rng.integers(len(others)))]


def icul_examples(
    forget: Sequence[Example],
    correct: Sequence[Example],
    *,
    labels: Sequence[str],
    rng: np.random.Generator,
    shots: int | None = None,
    variant: Variant = "icul",
) -> list[Example]:
    """The examples of a prompt in order: those to forget with flipped labels, then correct ones.

    Args:
        forget: texts and true labels of what is to be forgotten.
        correct: training examples to draw the rest from, without replacement. Do not give what evaluation asks.
        labels: all labels.
        rng: draws other labels and the correct examples.
        shots: examples in all, the paper's s; None takes all of `correct`.
        variant: "icul"; or an ablation: "correct_labels" leaves the labels as they are, "same_text" repeats the texts
            to forget, labels flipped, instead of correct examples, "random_point" flips points drawn from `correct`
            in place of those to forget.

    Raises:
        UserError: more examples than there are, or an unknown variant.
    """
    if variant not in ("icul", "correct_labels", "same_text", "random_point"):
        raise UserError(f"variant {variant!r}", "'icul', 'correct_labels', 'same_text' or 'random_point'")
    needs_items(forget=forget)
    rest = len(correct) if shots is None else shots - len(forget)
    drawn = len(forget) if variant == "random_point" else 0
    if rest < 0 or (variant != "same_text" and rest + drawn > len(correct)):
        raise UserError(
            f"{shots} shots, {len(forget)} points to forget and {len(correct)} correct examples",
            "at least as many shots as points, and correct examples for the others",
        )
    order = rng.permutation(len(correct))
    points = [correct[i] for i in order[:drawn]] if drawn else list(forget)
    if variant != "correct_labels":
        points = [(text, other_label(label, labels, rng)) for text, label in points]
    if variant == "same_text":
        return points + [points[i % len(points)] for i in range(rest)]
    return points + [correct[i] for i in order[drawn : drawn + rest]]


def icul_prompt(
    forget: Sequence[Example],
    correct: Sequence[Example],
    query: str,
    *,
    labels: Sequence[str],
    rng: np.random.Generator,
    shots: int | None = None,
    variant: Variant = "icul",
    template: str = "{text} {label}",
    separator: str = "\n",
) -> str:
    """A prompt that ends with the query; decode greedily, as the paper does. Arguments as of `icul_examples`."""
    examples = icul_examples(forget, correct, labels=labels, rng=rng, shots=shots, variant=variant)
    lines = [template.format(text=text, label=label) for text, label in examples]
    return separator.join([*lines, template.format(text=query, label="").rstrip()])


def icu_prompt(query: str, subjects: Sequence[str], instruction: str = INSTRUCTION, separator: str = "\n") -> str:
    """The query behind an instruction to know nothing of the subjects."""
    return separator.join([_instruction(subjects, instruction), query])


def _instruction(subjects: Sequence[str], instruction: str) -> str:
    if "{subject}" in instruction and not subjects:
        raise UserError("no subject for ICU's instruction", "the names of what is to be forgotten")
    return instruction.replace("{subject}", " or ".join(subjects))


class PrefixedModel(nn.Module):
    """A causal language model that reads fixed tokens before every input, behind a leading beginning-of-sequence token.

    Logits are those of the given places only, so that it stands in for the model wherever inputs are padded on the
    right.

    Args:
        model: a causal language model of transformers; not copied.
        prefix: token ids.
        bos: id that stays in front of the prefix where inputs begin with it.
    """

    prefix: Tensor

    def __init__(self, model: Any, prefix: Sequence[int], bos: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.bos = bos
        self.register_buffer("prefix", torch.tensor(list(prefix), dtype=torch.long), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """As the model's, for (batch, length) ids without prefix."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        kept = int(self.bos is not None and bool((input_ids[:, 0] == self.bos).all()))
        prefix = self.prefix.to(input_ids.device).expand(len(input_ids), -1)
        ids = torch.cat([input_ids[:, :kept], prefix, input_ids[:, kept:]], dim=1)
        mask = torch.cat([mask[:, :kept], torch.ones_like(prefix), mask[:, kept:]], dim=1)
        output = self.model(input_ids=ids, attention_mask=mask, **options)
        size = prefix.shape[1]
        output.logits = torch.cat([output.logits[:, :kept], output.logits[:, kept + size :]], dim=1)
        return output


def icul_prefix(
    tokenizer: Any, forget: Sequence[EncodedAnswer], retain: Sequence[EncodedAnswer], config: Config, seed: int
) -> list[int]:
    """Tokens of ICUL's examples for questions and answers: the wrong label is the answer to another question.

    Wrong answers are those of retained items, and of a length as near to the right one as any drawn, so that an answer
    is not recognised as wrong by its length.
    """
    rng = np.random.default_rng([seed, 5])
    points = [forget[i] for i in rng.permutation(len(forget))[: config.points]]
    order = [retain[i] for i in rng.permutation(len(retain))]
    if config.variant == "random_point":
        points, order = order[: len(points)], order[len(points) :]
    rest = config.shots - len(points)
    if rest < 0 or (rest > len(order) and config.variant != "same_text"):
        raise UserError(
            f"{config.shots} shots, {len(points)} of them to forget, {len(order)} others", "as many as there are"
        )
    if config.variant != "correct_labels":
        points = [_misanswered(item, retain, rng) for item in points]
    others = [points[i % len(points)] for i in range(rest)] if config.variant == "same_text" else order[:rest]
    return [token for item in [*points, *others] for token in _ended(tokenizer, item, config.separator)]


def _misanswered(item: EncodedAnswer, others: Sequence[EncodedAnswer], rng: np.random.Generator) -> EncodedAnswer:
    """The prompt of an item with the answer of another."""
    right = item.ids[item.start :]
    drawn = [others[i].ids[others[i].start :] for i in rng.permutation(len(others))[:20]]
    wrong = [answer for answer in drawn if answer != right]
    if not wrong:
        raise UserError("retained items whose answers are all that of the item to forget", "other answers among them")
    return EncodedAnswer(item.ids[: item.start] + min(wrong, key=lambda a: abs(len(a) - len(right))), item.start)


def _ended(tokenizer: Any, item: EncodedAnswer, separator: str) -> list[int]:
    """An item as it stands among others: with the separator for its end, and no beginning-of-sequence token."""
    ids = [token for i, token in enumerate(item.ids) if i or token != tokenizer.bos_token_id]
    between = list(tokenizer(separator, add_special_tokens=False)["input_ids"]) if separator else []
    if between and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids + between


def unlearn_icul(
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
    """The model behind ICUL's examples: questions to forget with wrong answers, retained ones with their own.

    Args:
        model: a causal language model of transformers; not changed.
        tokenizer: its tokenizer.
        forget: answers to forget.
        retain: answers to draw the others from.
        config: settings.
        seed: of which items are shown.
        on_step: called once, after the only step.
        control: not used; nothing is chosen here.
    """
    needs_items(forget=forget, retain=retain)
    prefix = icul_prefix(tokenizer, forget, retain, config or Config(), seed)
    return _prefixed(model, tokenizer, prefix, on_step)


def unlearn_icu(
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
    """The model behind ICU's instruction to know nothing of ``config.subjects``. Arguments as of `unlearn_icul`."""
    config = config or Config()
    text = _instruction(config.subjects, config.instruction) + config.separator
    prefix = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return _prefixed(model, tokenizer, prefix, on_step)


def _prefixed(model: nn.Module, tokenizer: Any, prefix: Sequence[int], on_step: OnStep | None) -> nn.Module:
    wrapped = PrefixedModel(model, prefix, tokenizer.bos_token_id).train(model.training)
    if on_step is not None:
        on_step(1, wrapped)
    return wrapped
