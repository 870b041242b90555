"""Unlearn until the model knows as little of the forget set as a model knows of data that it never saw.

Knowledge gap alignment (Wang et al. 2023) compares with two small models: A_f was trained on the forget set, A_n on
unseen data D_n of the same kind. How far theta is from A_f on the forget set should be how far theta_0 is from A_n on
the unseen data: | KL(A_f || theta on D_f) - KL(A_n || theta_0 on D_n) | + r KL(theta_0 || theta on D_r).

>>> import torch
>>> far = alignment(torch.tensor(0.2, requires_grad=True), 1.5)     # theta is still close to a model that knows D_f
>>> float(far.detach())
1.2999999523162842
>>> stopped(first=1.3, now=0.06, config=Config(stop_value=0.05, stop_share=0.1))
True

The official code takes the divergences of the unseen data the other way round than those of the forget set, weighs
retained data by (1 - r) in one task and by r in another, and keeps graphs of the references. Here the first argument is
always the reference, the weight is r, and what theta_0 and A_n say is computed once and kept as a number an item.

Lingzhi Wang et al., KGA: A General Machine Unlearning Framework Based on Knowledge Gap Alignment, ACL 2023,
https://arxiv.org/abs/2305.06535
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.answer_training import (
    FORGET,
    RETAIN,
    UNSEEN,
    Control,
    FrozenReference,
    OnStep,
    batch_at,
    fine_tune,
    kl,
    log_probs,
    needs_items,
    optimise,
    pad_id,
    pick,
    seeded,
)


@dataclass(frozen=True)
class Config:
    """The weights, the rhythm, the stop, and the two small models."""

    r: float = 0.1  # of the divergence on retained data; the paper's for classification, 0.3 for translation
    inner_steps: int = 10  # retained batches an alignment, their gradients averaged; the paper's for classification
    batch: int = 32  # items a batch
    steps: int = 60  # optimiser steps, each one alignment and `inner_steps` retained batches
    rate: float = 5e-5  # of AdamW; the upper end of the paper's
    stop_value: float = 0.05  # of the alignment; the paper's
    stop_share: float = 0.0  # of the alignment's first value at which to stop as well; 0 leaves it out
    small_steps: int = 60  # optimiser steps of A_f and A_n
    small_rate: float = 1e-3  # of A_f and A_n, which start from random weights


def alignment(gap_forget: Tensor, gap_unseen: Tensor | float) -> Tensor:
    """|gap_forget - gap_unseen|; the second is a constant, without gradient."""
    return (gap_forget - torch.as_tensor(gap_unseen).detach()).abs()


def stopped(first: float, now: float, config: Config) -> bool:
    """Whether the alignment fell to `stop_value`, or to `stop_share` of what it was at the first step."""
    return now <= max(config.stop_value, config.stop_share * first)


@torch.no_grad()
def item_gaps(
    small: nn.Module, model: nn.Module, encoded: Sequence[EncodedAnswer], pad: int, batch: int = 64
) -> Tensor:
    """KL(small || model) of each item, summed over its answer tokens, and their number: (2, items), on the CPU."""
    found = []
    modes = small.training, model.training
    small.eval()
    model.eval()
    for first in range(0, len(encoded), batch):
        items = list(encoded[first : first + batch])
        lengths = [len(item.ids) - item.start for item in items]
        p, q = log_probs(small, items, pad)[0], log_probs(model, items, pad)[0]
        rows = (p.exp() * (p - q)).sum(-1).cpu()
        found += [torch.tensor([float(part.sum()), len(part)]) for part in rows.split(lengths)]
    small.train(modes[0])
    model.train(modes[1])
    return torch.stack(found, dim=1)


def unlearn_kga(
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[EncodedAnswer],
    retain: Sequence[EncodedAnswer],
    config: Config | None = None,
    *,
    seed: int,
    on_step: OnStep | None = None,
    control: Control | None = None,
    unseen: Sequence[EncodedAnswer] | None = None,
    small: tuple[nn.Module, nn.Module] | None = None,
) -> nn.Module:
    """Align the knowledge gap, in place; stops by the paper's rule, by `on_step`, or at the end of the budget.

    Beside the model lie in memory: A_f, one number for each unseen item, and theta_0's states at the retained answers.

    Args:
        model: a causal language model of transformers, theta_0 at the beginning and theta at the end.
        tokenizer: its tokenizer.
        forget: answers to forget, D_f.
        retain: answers to keep, D_r.
        config: settings.
        seed: of the small models' first weights and of the batches.
        on_step: called after each step; True stops.
        control: not used; the paper's stop does not look at one.
        unseen: answers of the same kind that the model was never taught, D_n. There is no default for these.
        small: A_f and A_n with the model's vocabulary; None trains them, of the model's own kind from random weights.

    Raises:
        UserError: no unseen answers, or a loss that is no longer finite.
    """
    c = config or Config()
    if not unseen:
        raise UserError("no unseen answers for the gap to align to", "answers of the same kind, never taught")
    needs_items(forget=forget, retain=retain)
    pad = pad_id(tokenizer)
    with seeded(seed, model):
        taught, other = small or small_models(model, forget, unseen, pad, c, seed)
        gaps = item_gaps(other, model, unseen, pad)
        del other
        reference = FrozenReference(model, retain, pad)
        values: list[float] = []

        def losses(step: int) -> Iterator[Tensor]:
            for inner in range(c.inner_steps):
                chosen = batch_at(step * c.inner_steps + inner, len(retain), c.batch, seed, RETAIN)
                q, _ = log_probs(model, pick(retain, chosen), pad)
                yield c.r / c.inner_steps * kl(reference.log_probs(chosen), q)
            total, tokens = gaps[:, batch_at(step, len(unseen), c.batch, seed, UNSEEN)].sum(1)
            items = pick(forget, batch_at(step, len(forget), c.batch, seed, FORGET))
            with torch.no_grad():
                p, _ = log_probs(taught, items, pad)
            loss = alignment(kl(p, log_probs(model, items, pad)[0]), float(total / tokens))
            values.append(float(loss.detach()))
            yield loss

        def after(step: int, trained: nn.Module) -> bool:
            stop = on_step is not None and on_step(step, trained)
            return stop or stopped(values[0], values[-1], c)

        optimise(model, losses, steps=c.steps, rate=c.rate, on_step=after)
    return model


def small_models(
    model: nn.Module, forget: Sequence[EncodedAnswer], unseen: Sequence[EncodedAnswer], pad: int, config: Config,
    seed: int,
) -> tuple[nn.Module, nn.Module]:  # fmt: skip
    """A_f, taught the forget set, and A_n, taught the unseen data, from the same random weights."""
    like = next(model.parameters())
    first = type(model)(copy.deepcopy(model.config)).to(device=like.device, dtype=like.dtype)
    made = []
    for items, stream in ((forget, FORGET), (unseen, UNSEEN)):
        taught = copy.deepcopy(first)
        fine_tune(
            taught, items, pad, steps=config.small_steps, rate=config.small_rate, batch=config.batch, seed=seed,
            stream=stream,
        )  # fmt: skip
        made.append(taught.eval().requires_grad_(False))
    return made[0], made[1]
