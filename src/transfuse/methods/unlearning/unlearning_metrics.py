"""What unlearning took away and what it left, by the measures of TOFU and MUSE, from one forward pass over all answers.

>>> ratios = log_truth_ratios([-1.0, -3.0], [[-2.0, -2.0], [-1.0, -2.0]])   # mean log probability a token
>>> ratios
array([-1. ,  1.5])
>>> round(truth_to_forget(ratios), 4), round(truth_to_keep(ratios), 4)
(0.2955, 0.3161)
>>> quality = forget_quality(ratios, ratios)                                # against the retrained model itself
>>> quality.p, quality.direction
(1.0, 0)
>>> privacy_leak(auc=0.9, retrained=0.5)                                    # members still stand out
-80.0

`score_questions` makes the pass; `summary` takes every number from it. What needs generation is in `generated_answers`.

Pratyush Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, 2024, https://arxiv.org/abs/2401.06121
Weijia Shi et al., MUSE: Machine Unlearning Six-Way Evaluation for Language Models, 2024,
https://arxiv.org/abs/2407.06460
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit
from scipy.stats import ks_2samp

from transfuse.errors import UserError
from transfuse.methods.monitoring.detection_metrics import auroc
from transfuse.methods.unlearning.answer_scores import AnswerScores, score_answers
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer

FORGET, HOLDOUT = "forget", "holdout"  # the sets that are not to be kept


def log_truth_ratios(paraphrased: ArrayLike, perturbed: Sequence[ArrayLike]) -> np.ndarray:
    """log TR = mean_k(-l of perturbed answer k) - (-l of the paraphrased answer), (items,); above 0 the wrong ones win.

    That is the geometric mean over perturbed answers, as in both published codes; TOFU's paper writes an arithmetic
    one. The logarithm is kept because TR itself overflows for a model that collapsed.

    Args:
        paraphrased: mean log probability a token of a right answer, (items,).
        perturbed: of each item's wrong answers; items may have different numbers of them.
    """
    right = np.asarray(paraphrased, float)
    if len(right) != len(perturbed) or any(np.size(values) == 0 for values in perturbed):
        raise UserError(f"{len(right)} right answers and wrong ones for {len(perturbed)}", "wrong answers to each")
    return np.array([np.asarray(values, float).mean() for values in perturbed]) - right


def truth_to_forget(log_ratios: ArrayLike) -> float:
    """mean(min(TR, 1 / TR)), for the forget set: 1 if right and wrong answers are alike, as for one who never knew."""
    return float(np.exp(-np.abs(np.asarray(log_ratios, float))).mean())


def truth_to_keep(log_ratios: ArrayLike) -> float:
    """mean(max(0, 1 - TR)), for all that is to stay: 1 if wrong answers are out of the question."""
    return float(-np.expm1(np.minimum(np.asarray(log_ratios, float), 0.0)).mean())


def knowledge(log_ratios: ArrayLike) -> float:
    """mean(p_right / (p_right + p_wrong)): one half for a guess."""
    return float(expit(-np.asarray(log_ratios, float)).mean())


@dataclass(frozen=True)
class ForgetQuality:
    """How far truth ratios are from those of a model that was retrained without the forget set.

    Attributes:
        p: of the two-sample Kolmogorov-Smirnov test; large is good. Depends on how many items there are, so that it is
            not comparable between forget sets of different sizes.
        statistic: largest distance between the two distributions, 0 to 1.
        direction: -1 if right answers are still more likely than for the retrained model (not forgotten), 1 if they
            are less likely (over-forgotten, which gives it away too), 0 if there is no distance. A tiny p says neither.
    """

    p: float
    statistic: float
    direction: int


def forget_quality(unlearned: ArrayLike, retrained: ArrayLike) -> ForgetQuality:
    """Compare the log truth ratios of two models on the forget set."""
    first, second = (np.asarray(values, float) for values in (unlearned, retrained))
    for name, values in (("unlearned", first), ("retrained", second)):
        if not values.size or not np.isfinite(values).all():
            raise UserError(f"truth ratios of the {name} model that are missing or not finite", "numbers")
    found = ks_2samp(first, second)
    direction = 0 if found.statistic == 0 else -int(found.statistic_sign)
    return ForgetQuality(float(found.pvalue), float(found.statistic), direction)


def model_utility(values: ArrayLike) -> float:
    """Harmonic mean of the numbers of what is to stay, 0 if one of them is.

    TOFU's are probability, ROUGE and truth ratio of the retained set, real authors and world facts.
    """
    found = np.asarray(values, float).ravel()
    if not found.size or (found < 0).any():
        raise UserError(f"values {found.tolist()} for the utility", "one or more of at least 0")
    return 0.0 if (found == 0).any() else float(len(found) / (1.0 / found).sum())


def privacy_leak(auc: float, retrained: float) -> float:
    """PrivLeak in percent: ((1 - AUC) - (1 - AUC_retrained)) / (1 - AUC_retrained) * 100, of members against others.

    0 is best; below, down to -100, members of the forget set still stand out; above, they stand out as the ones that
    were pushed away.
    """
    if not 0.0 <= auc <= 1.0 or not 0.0 <= retrained < 1.0:
        raise UserError(f"AUC {auc} and {retrained} of the retrained model", "0 to 1, the latter below 1")
    return 100.0 * ((1.0 - auc) - (1.0 - retrained)) / (1.0 - retrained)


@dataclass(frozen=True)
class Questions:
    """One set of questions.

    Attributes:
        answers: each with its answer, as the model was taught it.
        texts: the answers as text, for the zlib score; empty leaves that out.
        paraphrased: the same answers in other words, for the truth ratio; empty takes `answers`.
        perturbed: wrong answers to each question; empty leaves the truth ratio out.
        options: whether the probability of an answer is its share among it and the wrong ones, as TOFU takes it for
            real authors and world facts.
    """

    answers: Sequence[EncodedAnswer]
    texts: Sequence[str] = ()
    paraphrased: Sequence[EncodedAnswer] = ()
    perturbed: Sequence[Sequence[EncodedAnswer]] = ()
    options: bool = False

    def __post_init__(self) -> None:
        for name in ("texts", "paraphrased", "perturbed"):
            if (size := len(getattr(self, name))) not in (0, len(self.answers)):
                raise UserError(f"{size} {name} for {len(self.answers)} answers", "one for each, or none")
        if not self.answers or (self.options and not self.perturbed):
            raise UserError("a set without answers, or options without wrong answers", "at least one of each")

    def encoded(self) -> list[EncodedAnswer]:
        """Everything that must be scored, in the order that `ScoredQuestions` expects."""
        return [*self.answers, *self.paraphrased, *(item for wrong in self.perturbed for item in wrong)]


@dataclass(frozen=True)
class ScoredQuestions:
    """A set of questions and what one model thinks of each of its answers."""

    questions: Questions
    scores: AnswerScores

    @property
    def answers(self) -> AnswerScores:
        return self.scores.part(0, len(self.questions.answers))

    def _wrong(self) -> list[np.ndarray]:
        """Mean log probability a token of each item's wrong answers."""
        first = len(self.questions.answers) + len(self.questions.paraphrased)
        ends = np.cumsum([len(wrong) for wrong in self.questions.perturbed])[:-1]
        return np.split(self.scores.part(first, len(self.scores)).loss(), ends)

    def log_truth_ratios(self) -> np.ndarray:
        """See the function of this name; (items,)."""
        n = len(self.questions.answers)
        right = self.scores.part(n, 2 * n) if self.questions.paraphrased else self.answers
        return log_truth_ratios(right.loss(), self._wrong())

    def probability(self) -> np.ndarray:
        """exp(-l) of each answer, or its share among the options; (items,)."""
        found = self.answers.probability()
        if not self.questions.options:
            return found
        return found / (found + np.array([np.exp(values).sum() for values in self._wrong()]))

    def membership(self) -> dict[str, np.ndarray]:
        """Scores of membership inference, higher for members: name -> (items,)."""
        found = {"loss": self.answers.loss(), "min_k": self.answers.min_k(), "min_k_plus": self.answers.min_k_plus()}
        return found | ({"zlib": self.answers.zlib(self.questions.texts)} if self.questions.texts else {})


def score_questions(
    model: Any, sets: Mapping[str, Questions], pad: int, *, batch: int = 128, eos: int | None = None
) -> dict[str, ScoredQuestions]:
    """Score all answers of all sets in one pass, sorted by length across sets.

    Args:
        model: a causal language model of transformers, or what stands in for one.
        sets: name -> questions; `summary` knows "forget" and "holdout", all other names are of what is to stay.
        pad: id to pad with.
        batch: answers a forward pass.
        eos: the end-of-sequence token, where answers end with it.
    """
    encoded = {name: questions.encoded() for name, questions in sets.items()}
    scores = score_answers(model, [item for part in encoded.values() for item in part], pad, batch=batch, eos=eos)
    found, first = {}, 0
    for name, questions in sets.items():
        last = first + len(encoded[name])
        found[name] = ScoredQuestions(questions, scores.part(first, last))
        first = last
    return found


def membership_aucs(members: ScoredQuestions, others: ScoredQuestions) -> dict[str, float]:
    """AUC of each membership score: one half if forgotten answers look like those of unseen questions.

    Far below one half is no success: what was pushed below unseen answers is found by that.
    """
    theirs = others.membership()
    return {name: auroc(values, theirs[name]) for name, values in members.membership().items() if name in theirs}


def summary(
    scored: Mapping[str, ScoredQuestions],
    retrained: Mapping[str, ScoredQuestions] | None = None,
    rouge: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Every metric of one model under "set.metric", all from its one pass.

    Args:
        scored: of `score_questions`.
        retrained: the same sets, scored by a model that never saw the forget set; adds forget quality and PrivLeak.
        rouge: ROUGE-L recall of generated answers of some sets, see `generated_answers`; it enters utility.
    """
    found: dict[str, float] = {}
    kept: list[float] = []
    for name, own in scored.items():
        numbers = _of_set(own, forget=name == FORGET) | ({"rouge": rouge[name]} if rouge and name in rouge else {})
        found |= {f"{name}.{metric}": value for metric, value in numbers.items()}
        if name not in (FORGET, HOLDOUT):
            kept += [numbers[metric] for metric in ("probability", "rouge", "truth") if metric in numbers]
    if kept:
        found["utility"] = model_utility(kept)
    if FORGET in scored and HOLDOUT in scored:
        aucs = membership_aucs(scored[FORGET], scored[HOLDOUT])
        found |= {f"auc.{name}": auc for name, auc in aucs.items()}
        if retrained is not None:
            theirs = membership_aucs(retrained[FORGET], retrained[HOLDOUT])
            found |= {f"privacy_leak.{name}": privacy_leak(aucs[name], theirs[name]) for name in aucs}
    if retrained is not None and FORGET in scored and scored[FORGET].questions.perturbed:
        quality = forget_quality(scored[FORGET].log_truth_ratios(), retrained[FORGET].log_truth_ratios())
        found |= {f"forget_quality.{name}": float(value) for name, value in vars(quality).items()}
    return found


def _of_set(own: ScoredQuestions, forget: bool) -> dict[str, float]:
    answers = own.answers
    found = {
        "probability": float(own.probability().mean()),
        "exact": float(answers.exact().mean()),
        "memorised": float(answers.memorised().mean()),
        "extraction": float(answers.extraction().mean()),
    }
    if own.questions.perturbed:
        ratios = own.log_truth_ratios()
        found["truth"] = truth_to_forget(ratios) if forget else truth_to_keep(ratios)
        found["knowledge"] = knowledge(ratios)
    return found
