"""What a model said on each rung of the ladder, and how much of a lost concept that brings back.

Accuracies are balanced within each theorem: its yes and its no answers weigh the same, so that neither a constant
answer nor knowledge of how common a theorem is gets beyond one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from transfuse.methods.unlearning.context_ladder import CONTROLS, Rung

YES, NO, NEITHER = 1, 0, -1
_FORGOTTEN = 0.1  # what unlearning must have taken for its recovery to mean anything


@dataclass(frozen=True)
class Asked:
    """One question in its context."""

    rung: int
    level: str
    concept: str
    theorem: str
    truth: bool


def questions_of(rungs: Sequence[Rung]) -> tuple[Asked, ...]:
    """All questions of all rungs."""
    return tuple(
        Asked(number, rung.level, rung.concept, theorem, truth)
        for number, rung in enumerate(rungs)
        for theorem, truth in zip(rung.theorems, rung.answers, strict=True)
    )


def balanced_weights(theorem: Sequence[str], truth: ArrayLike) -> np.ndarray:
    """Weights that sum to 1, (n,): theorems weigh the same, and within each its yes and no do.

    A theorem with one kind of answer has no weight, unless no theorem has both: then all yes weigh as much as all no.

    >>> balanced_weights(["a", "a", "a", "b"], [True, False, False, True])
    array([0.5 , 0.25, 0.25, 0.  ])
    """
    answers = np.asarray(truth, dtype=bool)
    _, group = np.unique(np.asarray(theorem, dtype=str), return_inverse=True)
    counts = np.zeros((int(group.max(initial=-1)) + 1, 2))
    np.add.at(counts, (group, answers.astype(int)), 1)
    both = counts.min(axis=1) > 0
    if both.any():
        weights = both[group] / np.maximum(counts[group, answers.astype(int)], 1)
    else:
        weights = 1 / np.where(answers, max(1, answers.sum()), max(1, (~answers).sum()))
    return np.asarray(weights / max(weights.sum(), 1e-12))


@dataclass(frozen=True)
class LadderReplies:
    """One model's answers.

    Attributes:
        asked: the questions.
        said: YES, NO or NEITHER, (asked,).
    """

    asked: tuple[Asked, ...]
    said: np.ndarray

    def at(self, level: str) -> np.ndarray:
        """Places of a level's questions."""
        return np.array([place for place, one in enumerate(self.asked) if one.level == level], dtype=int)

    def hits(self, level: str) -> np.ndarray:
        """Whether each answer of a level is right, in the order of `at`."""
        places = self.at(level)
        return self.said[places] == np.array([self.asked[place].truth for place in places], dtype=int)

    def weights(self, level: str) -> np.ndarray:
        """Weight of each question of a level, (questions,)."""
        own = [self.asked[place] for place in self.at(level)]
        return balanced_weights([one.theorem for one in own], [one.truth for one in own])

    def accuracy(self, level: str) -> float:
        """Balanced share of right answers; 0.5 for a guess, less for answers that are neither yes nor no.

        At level "negated" right is what follows from what was told: a model that reasons turns its answer.
        """
        return float(self.weights(level) @ self.hits(level))

    def answered(self, level: str) -> float:
        """Share of answers that are yes or no."""
        places = self.at(level)
        return float((self.said[places] != NEITHER).mean()) if len(places) else 0.0

    def recovery(self, level: str, ceiling: float) -> float:
        """Share of what was unlearned that a level brings back; negative where it takes more away.

        Args:
            level: of the ladder or the controls.
            ceiling: what the model before unlearning gets without any context.

        Returns:
            (accuracy - that without context) / (ceiling - that without context); 0 where nothing was unlearned.
        """
        bare = self.accuracy("none")
        return (self.accuracy(level) - bare) / (ceiling - bare) if ceiling - bare >= _FORGOTTEN else 0.0

    def specificity(self, level: str, ceiling: float) -> float:
        """Recovery beyond the best control: telling of another thing, shuffled, or nothing to do with it."""
        there = {one.level for one in self.asked}
        controls = [
            self.recovery(control, ceiling) for control in CONTROLS if control in there and control != "negated"
        ]
        return self.recovery(level, ceiling) - max(controls, default=0.0)

    def chance(self, level: str, draws: int, seed: int) -> np.ndarray:
        """Accuracies at a level if truths changed hands between things, so that answers are about others, (draws,)."""
        places, rng = self.at(level), np.random.default_rng(seed)
        own = [self.asked[place] for place in places]
        names = sorted({one.concept for one in own})
        truth = {(one.concept, one.theorem): one.truth for one in own}
        said, theorems = self.said[places], [one.theorem for one in own]
        found = []
        for _ in range(draws):
            other = dict(zip(names, rng.permutation(names), strict=True))
            dealt = [int(truth.get((str(other[one.concept]), one.theorem), one.truth)) for one in own]
            found.append(float(balanced_weights(theorems, dealt) @ (said == np.array(dealt))))
        return np.array(found)
