"""What the gradient methods of unlearning share: an objective of a forget term and a retain term, and its minimisation.

The total is gamma * mean(forget values) + alpha * mean(retain values). A term gives one value for each token or each
item, and who trains takes the mean over the whole batch of a step, however many parts it is cut into. Means of parts
would weigh a part of few tokens as much as one of many: the fault that transformers' Trainer had until 4.46.

A method is a subclass that says what its forget values are. Forget and retain items go through the model in one pass,
the head sees answer tokens only, and what the model said at first is kept as one number an item (preference losses) or
as its last hidden states (divergences), so that there is no second model in memory.

>>> import torch
>>> answers = Answers(torch.log_softmax(torch.zeros(3, 5), -1), torch.tensor([1, 2, 0]), (2, 1))
>>> answers.sums()                                              # two items: log(1/5) a token
tensor([-3.2189, -1.6094])
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.answer_training import (
    FORGET,
    RETAIN,
    FrozenReference,
    OnStep,
    batch_at,
    log_probs,
    needs_items,
    optimise,
    pad_id,
    pick,
)

Retain = Literal["nll", "kl", "none"]


@dataclass(frozen=True)
class GradientConfig:
    """What all gradient methods have. The rate is the method: choose it on a validation part of both sets."""

    gamma: float = 1.0  # of the forget term
    alpha: float = 1.0  # of the retain term
    retain: Retain = "nll"  # of retained answers: their loss, the divergence from the first model, or no term
    steps: int = 60  # optimiser steps
    rate: float = 1e-5  # of AdamW; OpenUnlearning's for models of a billion parameters, smaller ones need more
    batch: int = 32  # items of each set a step; OpenUnlearning's effective batch
    weight_decay: float = 0.01  # OpenUnlearning's
    trained: str = ""  # regular expression; only parameters whose names it finds are trained

    def __post_init__(self) -> None:
        if self.retain not in ("nll", "kl", "none"):
            raise UserError(f"retain {self.retain!r}", "'nll', 'kl' or 'none'")
        if self.gamma < 0 or self.alpha < 0 or self.steps < 1 or self.batch < 1 or self.rate <= 0:
            raise UserError(
                f"gamma {self.gamma:g}, alpha {self.alpha:g}, steps {self.steps}, batch {self.batch}, "
                f"rate {self.rate:g}",
                "weights of at least 0, one step and one item at least, and a rate above 0",
            )


@dataclass(frozen=True)
class Answers:
    """What a model predicts at the answer tokens of some items, one item after another.

    Attributes:
        logp: log probabilities in float32, (tokens, vocabulary). Half precision would make ratios of them collapse.
        tokens: what the answers hold there, (tokens,).
        lengths: answer tokens of each item.
    """

    logp: Tensor
    tokens: Tensor
    lengths: tuple[int, ...]

    def chosen(self) -> Tensor:
        """log p of each token of the answers, (tokens,)."""
        return self.logp.gather(-1, self.tokens[:, None])[:, 0]

    def sums(self) -> Tensor:
        """s = log p(answer | prompt) of each item, (items,)."""
        return torch.stack([part.sum() for part in self.chosen().split(list(self.lengths))])

    def losses(self) -> Tensor:
        """l = -s / n of each item, (items,)."""
        return -self.sums() / torch.tensor(self.lengths, device=self.logp.device)

    def split(self, items: int) -> tuple[Answers, Answers]:
        """The first `items` items, and the others."""
        at = sum(self.lengths[:items])
        return (
            Answers(self.logp[:at], self.tokens[:at], self.lengths[:items]),
            Answers(self.logp[at:], self.tokens[at:], self.lengths[items:]),
        )


def read_answers(model: nn.Module, items: Sequence[EncodedAnswer], pad: int) -> Answers:
    """One pass of a model over some items."""
    logp, tokens = log_probs(model, items, pad)
    return Answers(logp, tokens, tuple(answer_length(item) for item in items))


def answer_length(item: EncodedAnswer) -> int:
    """Labelled tokens of an item."""
    return len(item.ids) - item.start


class Objective:
    """Gradient ascent; the base of the others, which replace `forget_values` or what it is given.

    Args:
        config: of the method.
        tokenizer: of the model.
        forget: answers to forget.
        retain: answers to keep; may be empty if there is no retain term.

    Raises:
        UserError: an empty set.
    """

    per_item: ClassVar[bool] = False  # whether forget values are one an item rather than one a token

    def __init__(
        self, config: GradientConfig, tokenizer: Any, forget: Sequence[EncodedAnswer], retain: Sequence[EncodedAnswer]
    ) -> None:
        self.config = config
        self.pad = pad_id(tokenizer)
        self.forget, self.retain = list(forget), list(retain) if config.retain != "none" else []
        needs_items(forget=self.forget, **({"retain": self.retain} if config.retain != "none" else {}))
        self._reference: FrozenReference | None = None

    def keep_reference(self, model: nn.Module) -> None:
        """Keep what the model says now, before it is changed: the reference of the divergence and of preferences."""
        if self.config.retain == "kl":
            self._reference = FrozenReference(model, self.retain, self.pad)

    def rows(self, forget: Sequence[int]) -> list[EncodedAnswer]:
        """What the model must read for some forget items."""
        return pick(self.forget, forget)

    def forget_values(self, answers: Answers, forget: Sequence[int]) -> Tensor:
        """What is minimised, one value a token or an item; `answers` are those of `rows(forget)`."""
        return answers.chosen()

    def retain_values(self, answers: Answers, retain: Sequence[int]) -> Tensor:
        """The loss of each retained token, or the divergence from the first model there: KL(p_0 || p)."""
        if self.config.retain == "nll":
            return -answers.chosen()
        if self._reference is None:
            raise RuntimeError("keep_reference(model) comes before the first step")
        first = self._reference.log_probs(retain).to(answers.logp.device)
        return (first.exp() * (first - answers.logp)).sum(-1)

    def values(self, model: nn.Module, forget: Sequence[int], retain: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Forget values and retain values of a batch, from one pass; the latter empty if there is no retain term.

        Args:
            model: what is trained.
            forget: positions in the forget set.
            retain: positions in the retain set.
        """
        rows = self.rows(forget)
        answers = read_answers(model, [*rows, *pick(self.retain, retain)], self.pad)
        gone, kept = answers.split(len(rows))
        values = self.forget_values(gone, forget)
        return values, self.retain_values(kept, retain) if len(retain) else values.new_zeros(0)

    def sizes(self, forget: Sequence[int], retain: Sequence[int]) -> tuple[int, int]:
        """How many values each term has for a batch, known before the pass."""
        tokens = sum(answer_length(item) for item in pick(self.forget, forget))
        return len(forget) if self.per_item else tokens, sum(answer_length(item) for item in pick(self.retain, retain))

    def loss(
        self, model: nn.Module, forget: Sequence[int], retain: Sequence[int], sizes: tuple[int, int] | None = None
    ) -> Tensor:
        """gamma * forget + alpha * retain, each the sum of its values over `sizes`; by default its own number of them.

        Args:
            model: what is trained.
            forget: positions in the forget set.
            retain: positions in the retain set.
            sizes: values of each term in the whole batch of a step, where this is a part of it.
        """
        gone, kept = self.values(model, forget, retain)
        sizes = sizes or (len(gone), len(kept))
        total = self.config.gamma * gone.sum() / sizes[0]
        return total + self.config.alpha * kept.sum() / sizes[1] if len(kept) else total


def unlearn_by_gradient(
    objective: Objective, model: nn.Module, *, seed: int, on_step: OnStep | None = None
) -> nn.Module:
    """Minimise an objective by AdamW at a constant rate, in place.

    Args:
        objective: what is minimised.
        model: theta_0 at the beginning, theta at the end.
        seed: of the batches.
        on_step: called after each step; True stops.

    Raises:
        UserError: the loss is no longer finite, or no parameter is to be trained.
    """
    c = objective.config
    objective.keep_reference(model)

    def losses(step: int) -> Iterator[Tensor]:
        gone = batch_at(step, len(objective.forget), c.batch, seed, FORGET)
        kept = batch_at(step, len(objective.retain), c.batch, seed, RETAIN) if objective.retain else []
        yield objective.loss(model, gone, kept)

    with only_trained(model, c.trained):
        optimise(model, losses, steps=c.steps, rate=c.rate, weight_decay=c.weight_decay, on_step=on_step)
    return model


@contextlib.contextmanager
def only_trained(model: nn.Module, pattern: str) -> Iterator[None]:
    """Inside, only parameters whose names a regular expression finds take gradients; "" leaves all as it is."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    frozen = [p for name, p in trained if not re.search(pattern, name)]
    if len(frozen) == len(trained):
        raise UserError(f"trained {pattern!r}, which no parameter's name holds", "as in model.named_parameters()")
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
