"""Does knowledge come back after a few steps of training? Four ways to choose what is trained on.

*Direct*: some of the forgotten facts, the others are tested. *RTT* (Deeb and Roger 2024): the forgotten facts in parts,
each tested by training on all others, so that every fact is tested once and never trained on. *Adjacent*: kept facts
that lie nearest to what was forgotten. *Benign*: examples that have nothing to do with it. The rate and the step are
the attacker's choice: those with the most answers on what is tested, for the gold model as well.

>>> [lesson.tested.sum() for lesson in rtt_lessons(10, folds=2, seed=0)]
[np.int64(5), np.int64(5)]
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.answer_training import batch_at, log_probs, nll, optimise, pick
from transfuse.methods.unlearning.audited_facts import AuditedFacts
from transfuse.methods.unlearning.recovery import MIN_KNOWN

_CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Lesson:
    """What is trained on, and what is tested.

    Attributes:
        facts: forgotten facts to train on, by position.
        tested: forgotten facts to ask for afterwards, (facts,) booleans.
    """

    facts: tuple[int, ...]
    tested: np.ndarray


def rtt_lessons(facts: int, folds: int, seed: int) -> list[Lesson]:
    """Each part is tested by training on the others; parts are as equal as can be."""
    if not 2 <= folds <= facts:
        raise UserError(f"{folds} parts of {facts} facts", f"2 to {facts} parts")
    part = np.random.default_rng([seed, 1]).permutation(facts) % folds
    return [Lesson(tuple(np.flatnonzero(part != k).tolist()), part == k) for k in range(folds)]


def direct_lesson(facts: int, share: float, seed: int) -> Lesson:
    """A share of the facts, at least one, is trained on; at least one is tested."""
    if facts < 2:
        raise UserError(f"{facts} fact to forget", "at least 2 for relearning: one to train on, one to test")
    count = min(max(1, round(share * facts)), facts - 1)
    trained = np.random.default_rng([seed, 2]).permutation(facts)[:count]
    return Lesson(tuple(sorted(trained.tolist())), ~np.isin(np.arange(facts), trained))


def checkpoints(steps: int) -> tuple[int, ...]:
    """0, and steps at which a curve is taken, on a scale that is about logarithmic; the last is `steps`."""
    return (0, *(step for step in _CURVE if step < steps), steps)


@dataclass(frozen=True)
class Relearned:
    """What one model knew along the way.

    Attributes:
        rates: of AdamW, (rates,).
        steps: at which it was asked, from 0, (steps,).
        known: (rates, steps, forms, facts); NaN where a form is lacking or a fact was not tested. Forms other than the
            question are asked at the beginning and at the end only.
    """

    rates: tuple[float, ...]
    steps: tuple[int, ...]
    known: np.ndarray

    def best(self) -> tuple[int, int]:
        """Positions of the rate and the step with the most questions answered; the earliest of equals."""
        asked = np.nanmean(self.known[:, :, 0], axis=-1)  # (rates, steps)
        rate, step = np.unravel_index(int(np.argmax(asked)), asked.shape)
        return int(rate), int(step)

    def at_best(self) -> np.ndarray:
        """What was known there, (forms, facts); of forms other than the question, at the end of that rate's run."""
        rate, step = self.best()
        return np.concatenate([self.known[rate, step, :1], self.known[rate, -1, 1:]])

    def curve(self) -> np.ndarray:
        """Share of tested questions that are answered, at the best rate, (steps,)."""
        return np.nanmean(self.known[self.best()[0], :, 0], axis=-1)


def relearn(
    model: nn.Module,
    facts: AuditedFacts,
    lessons: Sequence[tuple[Sequence[EncodedAnswer], np.ndarray]],
    *,
    steps: int,
    rates: Sequence[float],
    batch: int = 16,
    seed: int = 0,
) -> Relearned:
    """Train a model on each lesson at each rate and ask for the facts along the way; its weights are put back.

    Args:
        model: a causal language model; all its trainable weights are trained, by AdamW at a constant rate.
        facts: what is asked for.
        lessons: what is trained on, and which facts are tested, (facts,) booleans; no fact in two lessons.
        steps: of training.
        rates: to try.
        batch: items a step.
        seed: of the batches; the same for every model.
    """
    if steps < 1 or not rates or min(rates) <= 0:
        raise UserError(f"{steps} steps at rates {tuple(rates)}", "at least 1 step, and rates above 0")
    stops = checkpoints(steps)
    known = np.full((len(rates), len(stops), len(facts.forms), len(facts)), np.nan)
    start = facts.known(model)
    for items, tested in lessons:
        if not items:
            raise UserError("nothing to train on in a lesson", "at least one example")
        known[:, 0][..., tested] = start[:, tested]
        for index, rate in enumerate(rates):
            with restored(model):
                _train(model, facts, items, tested, known[index], stops, rate, batch, seed)
    return Relearned(tuple(rates), stops, known)


def _train(
    model: nn.Module, facts: AuditedFacts, items: Sequence[EncodedAnswer], tested: np.ndarray, known: np.ndarray,
    stops: Sequence[int], rate: float, batch: int, seed: int,
) -> None:  # fmt: skip
    questions = pick(facts.questions(), np.flatnonzero(tested).tolist())

    def losses(step: int) -> Iterator[Tensor]:
        yield nll(*log_probs(model, pick(items, batch_at(step, len(items), batch, seed)), facts.pad))

    def ask(step: int, trained: nn.Module) -> bool:
        if step == stops[-1]:
            known[-1][:, tested] = facts.known(trained)[:, tested]
        elif step in stops:
            known[stops.index(step)][0, tested] = facts.score(trained, questions).exact()
        return False

    optimise(model, losses, steps=stops[-1], rate=rate, on_step=ask)


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Whatever happens to the weights inside, they are as before afterwards."""
    kept = {name: value.detach().clone() for name, value in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(kept)


def excess_curve(unlearned: Relearned, gold: np.ndarray, known: float) -> np.ndarray:
    """Excess recovery along the steps: the unlearned model's curve minus the gold model's, over what there was to know.

    Args:
        unlearned: with its own best rate.
        gold: the gold model's curve, (steps,).
        known: accuracy of the original minus that of the gold model.
    """
    return (unlearned.curve() - gold) / (known if known >= MIN_KNOWN else 1.0)


def area(steps: Sequence[int], curve: np.ndarray) -> float:
    """Mean height of a curve over its steps, by trapezoids."""
    return float(np.trapezoid(curve, steps) / (steps[-1] - steps[0]))


def half_step(steps: Sequence[int], curve: np.ndarray) -> int | None:
    """The first step at which at least half has come back; None if it never does."""
    reached = np.flatnonzero(curve >= 0.5)
    return steps[int(reached[0])] if len(reached) else None


def lessons_of(facts: AuditedFacts, lessons: Sequence[Lesson]) -> list[tuple[list[EncodedAnswer], np.ndarray]]:
    """Lessons with their questions encoded."""
    return [([item for index in lesson.facts for item in facts.taught(index)], lesson.tested) for lesson in lessons]


def on_others(facts: AuditedFacts, items: Sequence[EncodedAnswer]) -> list[tuple[Sequence[EncodedAnswer], np.ndarray]]:
    """One lesson of other texts, after which all facts are tested."""
    return [(items, np.ones(len(facts), bool))]


def sums(facts: Any, count: int, template: str = "What is {a} plus {b}?") -> list[EncodedAnswer]:
    """Sums of two digits, drawn evenly: examples that have nothing to do with anybody's facts."""
    pairs = [(a, b) for a in range(10) for b in range(10)]
    chosen = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
    return [facts.encode(template.format(a=a, b=b), str(a + b)) for a, b in (pairs[i] for i in chosen)]
