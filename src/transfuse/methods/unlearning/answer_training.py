"""What the procedures of the family share when they train: batches, losses of answers, a frozen reference, the loop.

>>> batch_at(step=0, count=5, size=2, seed=0) == batch_at(step=0, count=5, size=2, seed=0)
True
>>> sorted(batch_at(0, 4, 2, seed=1) + batch_at(1, 4, 2, seed=1))  # an epoch sees each item once
[0, 1, 2, 3]
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_scores import answer_logits, score_answers
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, pad_answers

OnStep = Callable[[int, nn.Module], bool]  # number of the step, from 1, and the model; True ends the procedure
Control = Callable[[nn.Module], float]  # what must not fall, higher is better
FORGET, RETAIN, UNSEEN = 0, 1, 2  # streams of batches of one seed


def batch_at(step: int, count: int, size: int, seed: int, stream: int = FORGET) -> list[int]:
    """Indices of the batch of a step, out of an endless row of shuffled epochs.

    They depend on seed, stream and step only. Published code draws retained items from the global generator, so that
    its results change with the number of devices or with a resumed run.

    Args:
        step: number of the batch, from 0.
        count: items there are.
        size: items a batch; all of them if there are fewer.
        seed: of the run.
        stream: which of several sets the batch is of; sets of one seed are shuffled apart.
    """
    if size >= count:
        return list(range(count))
    first = step * size
    epochs = {e: np.random.default_rng([seed, stream, e]).permutation(count)
              for e in range(first // count, (first + size - 1) // count + 1)}  # fmt: skip
    return [int(epochs[place // count][place % count]) for place in range(first, first + size)]


def log_probs(model: nn.Module, encoded: Sequence[EncodedAnswer], pad: int) -> tuple[Tensor, Tensor]:
    """What a model predicts for the answer tokens of a batch, with gradient.

    Returns:
        log probabilities in float32, (answer tokens, vocabulary), item after item; and the tokens, (answer tokens,).
    """
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in pad_answers(encoded, pad).items()}
    labels = inputs.pop("labels")[:, 1:]
    places = labels >= 0  # never index with the -100 of prompt and padding: it would wrap to the vocabulary's end
    return torch.log_softmax(answer_logits(model, inputs, places).float(), dim=-1), labels[places]


def nll(logp: Tensor, tokens: Tensor) -> Tensor:
    """Mean negative log likelihood of tokens under log probabilities, (tokens, vocabulary) -> ()."""
    return -logp.gather(-1, tokens[:, None]).mean()


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log probabilities, mean over rows, (tokens, vocabulary) -> (); the mean inside is over p."""
    return torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")


def pad_id(tokenizer: Any) -> int:
    """What a tokenizer pads with; its end-of-sequence token where it has nothing of its own for that."""
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if found is None:
        raise UserError("a tokenizer with neither padding nor end-of-sequence token", fix="set tokenizer.pad_token")
    return int(found)


class FrozenReference:
    """A model's predictions as they are now, for later, without a second model.

    Kept are the states before the head, (answer tokens, width), and one copy of the head. Where these do not give the
    model's own logits, because it scales or caps them, its log probabilities are kept instead.

    Args:
        model: the reference.
        encoded: items it will be asked about.
        pad: id to pad with.
        batch: items a forward pass.
    """

    def __init__(self, model: Any, encoded: Sequence[EncodedAnswer], pad: int, batch: int = 64) -> None:
        head = model.get_output_embeddings()
        self._head: Any = copy.deepcopy(head).requires_grad_(False)
        self._kept: list[Tensor] = []
        seen: list[Tensor] = []
        training = model.training
        model.eval()
        handle = head.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
        try:
            for first in range(0, len(encoded), batch):
                part = encoded[first : first + batch]
                with torch.no_grad():
                    logp, _ = log_probs(model, part, pad)
                states = seen.pop().flatten(0, -2) if seen else None  # a head may be used without being called
                self._keep(states, logp, [len(item.ids) - item.start for item in part])
        finally:
            handle.remove()
            model.train(training)

    def _keep(self, states: Tensor | None, logp: Tensor, lengths: Sequence[int]) -> None:
        if not self._kept and not self._head_suffices(states, logp):
            self._head = None
        kept = logp if self._head is None or states is None else states
        self._kept += kept.split(list(lengths))

    @torch.no_grad()
    def _head_suffices(self, states: Tensor | None, logp: Tensor) -> bool:
        if states is None or len(states) != len(logp):
            return False
        return torch.allclose(torch.log_softmax(self._head(states).float(), dim=-1), logp, atol=1e-4)

    @torch.no_grad()
    def log_probs(self, indices: Sequence[int]) -> Tensor:
        """Log probabilities at the answers of some items, one after another, (answer tokens, vocabulary)."""
        kept = torch.cat([self._kept[i] for i in indices])
        return kept if self._head is None else torch.log_softmax(self._head(kept).float(), dim=-1)


@contextlib.contextmanager
def seeded(seed: int, model: nn.Module) -> Iterator[None]:
    """Seed torch's global generators for code that draws from them (dropout, PEFT's first weights); restored after."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def optimise(
    model: nn.Module,
    losses: Callable[[int], Iterable[Tensor]],
    *,
    steps: int,
    rate: float,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    on_step: OnStep | None = None,
) -> int:
    """AdamW at a constant rate over the trainable parameters; returns the steps taken.

    Args:
        model: trained in place.
        losses: of a step, from 0; gradients of all it yields are added up, one backward pass each.
        steps: at most.
        rate: AdamW's.
        weight_decay: AdamW's.
        clip: largest norm of the gradient, as in transformers' Trainer.
        on_step: called after each step; True stops.

    Raises:
        UserError: a loss is no longer finite.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad(set_to_none=True)
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=weight_decay)
    training = model.training
    for step in range(steps):
        model.train()
        for loss in losses(step):
            if not torch.isfinite(loss):
                raise UserError(f"the loss is {loss.item()} at step {step + 1}", "a finite one", f"lower rate {rate:g}")
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)  # no gradients while `on_step` measures, none left on the model
        model.train(training)
        if on_step is not None and on_step(step + 1, model):
            return step + 1
    return steps


def fine_tune(
    model: nn.Module, encoded: Sequence[EncodedAnswer], pad: int, *, steps: int, rate: float, batch: int, seed: int,
    stream: int = FORGET,
) -> None:  # fmt: skip
    """Teach a model some answers, in place."""

    def losses(step: int) -> Iterator[Tensor]:
        yield nll(*log_probs(model, pick(encoded, batch_at(step, len(encoded), batch, seed, stream)), pad))

    optimise(model, losses, steps=steps, rate=rate)


def answer_control(encoded: Sequence[EncodedAnswer], pad: int, limit: int = 256) -> Control:
    """A control metric: mean probability a token of answers that should stay, over at most `limit` of them."""
    kept = [encoded[i] for i in np.linspace(0, len(encoded) - 1, min(limit, len(encoded))).round().astype(int)]
    return lambda model: float(score_answers(model, kept, pad).probability().mean())


def scan_strength(
    model: nn.Module,
    set_strength: Callable[[float], None],
    grid: Sequence[float],
    control: Control,
    keep: float,
    on_step: OnStep | None = None,
) -> float:
    """Set the largest strength at which a control metric stays at `keep` of its value at strength 0; returns it.

    With `on_step` the strengths are tried upwards, each being a step, and the first at which it says True is set,
    whatever the control: so a caller may compare procedures at the same degree of forgetting. Without, or if it never
    says so, the control decides.

    Args:
        model: what `set_strength` changes.
        set_strength: puts the model at a strength; 0 is the model as it was.
        grid: strengths to try.
        control: higher is better, not negative.
        keep: share of the control that must remain; 0 takes the largest strength.
        on_step: see above.

    Raises:
        UserError: an empty grid, a keep outside 0 to 1, or a control of nothing at strength 0.
    """
    if not grid or min(grid) < 0 or not 0.0 <= keep <= 1.0:
        raise UserError(f"grid {tuple(grid)} and keep {keep}", "strengths of at least 0, and a share of 0 to 1")
    rising = sorted(set(grid))
    for step, strength in enumerate(rising if on_step is not None else ()):
        set_strength(strength)
        if on_step is not None and on_step(step + 1, model):
            return strength
    set_strength(0.0)
    floor = keep * control(model) if keep else 0.0
    if keep and not floor > 0.0:
        raise UserError(f"a control of {floor / keep} before anything is changed", "above 0", "take another control")
    for strength in reversed(rising):
        set_strength(strength)
        if not keep or strength == 0.0 or control(model) >= floor:
            return strength
    set_strength(0.0)
    return 0.0


def pick(encoded: Sequence[EncodedAnswer], indices: Iterable[int]) -> list[EncodedAnswer]:
    """Items at some indices."""
    return [encoded[i] for i in indices]


def needs_items(**sets: Sequence[Any]) -> None:
    """Refuse an empty set of items by name."""
    for name, items in sets.items():
        if not items:
            raise UserError(f"no item in {name}", "at least one encoded answer")
