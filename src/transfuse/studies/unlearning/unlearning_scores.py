"""What the study of unlearning methods measures on one model: all of it from one pass and one round of generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from transfuse.data.fact_forms import HELD_OUT, Item
from transfuse.methods.unlearning.answer_tokens import encode_answer
from transfuse.methods.unlearning.generated_answers import refusals, write_answers
from transfuse.methods.unlearning.unlearning_metrics import Questions, ScoredQuestions, score_questions, summary
from transfuse.studies.unlearning.fact_world import FactWorld

WRONG = 5  # perturbed answers to a question, as in TOFU
WRITTEN = 8  # tokens that a generated answer may have; the longest is shorter


@dataclass
class Scorer:
    """Asks every model of a seed the same questions.

    Attributes:
        world: of the seed.
        forget: subjects that were to be forgotten.
    """

    world: FactWorld
    forget: tuple[str, ...]

    def __post_init__(self) -> None:
        world = self.world
        self.sets = {
            "forget": self._questions(self.forget),
            "retain": self._questions(world.retain),
            "neighbours": self._questions(tuple(s for s in world.neighbours if s in world.retain)),
            "holdout": self._questions(world.holdout),
        }
        self.taught = Questions(world.encode(world.ask(self.forget, "qa")))
        self.gold = self._score(world.model("gold"))

    def _questions(self, subjects: tuple[str, ...]) -> Questions:
        """Questions in the wording held out, with wrong answers of the same relation."""
        items = self.world.ask(subjects, "qa", wording=HELD_OUT)
        rng = self.world.streams.split.child("wrong answers").numpy()
        wrong = [[self._encode(item, other) for other in self._others(item, rng)] for item in items]
        return Questions(self.world.encode(items), texts=[item.answer for item in items], perturbed=wrong)

    def _others(self, item: Item, rng: np.random.Generator) -> list[str]:
        objects = [name for name in self.world.table.objects(item.fact.relation) if name != item.answer]
        return [objects[i] for i in rng.permutation(len(objects))[:WRONG]]

    def _encode(self, item: Item, answer: str) -> Any:
        return encode_answer(self.world.tokenizer, item.prompt, answer)

    def _score(self, model: nn.Module) -> dict[str, ScoredQuestions]:
        tokenizer = self.world.tokenizer
        sets = {**self.sets, "taught": self.taught}
        return score_questions(model, sets, tokenizer.pad_token_id, eos=tokenizer.eos_token_id)

    def values(self, model: nn.Module) -> dict[str, float]:
        """Every metric of a model that is a number of its own."""
        scored = self._score(model)
        taught = scored.pop("taught")
        gold = {name: own for name, own in self.gold.items() if name != "taught"}
        found = summary(scored, gold)
        texts = write_answers(model, self.world.tokenizer, self.taught.answers, tokens=WRITTEN)
        return {
            "forget": float(taught.answers.exact().mean()),
            "forget_reworded": found["forget.exact"],
            "retain": found["retain.exact"],
            "neighbours": found["neighbours.exact"],
            "utility": found["utility"],
            "truth_ratio": found["forget.truth"],
            "quality": 1.0 - found["forget_quality.statistic"],
            "direction": found["forget_quality.direction"],
            "extraction": found["forget.extraction"],
            "memorised": found["forget.memorised"],
            "membership": found["auc.min_k"],
            "leak": abs(found["privacy_leak.min_k"]),
            "refused": float(refusals(texts).mean()),
        }

    def retained(self, model: nn.Module) -> float:
        """Share of questions to keep, in the wording held out, that are answered."""
        return self.world.share_known(model, self.sets["retain"].answers)
