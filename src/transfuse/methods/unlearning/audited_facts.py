"""Facts as an audit asks for them: every form of every fact, encoded once, and what a model knows of each.

>>> from transfuse.methods.unlearning.qa_file import QARow
>>> from transfuse.nets.tiny_llama import word_tokenizer
>>> tokenizer = word_tokenizer(["a ? b .", "whose b ? a ."])
>>> facts = AuditedFacts([QARow("a ?", "b", forms={"reverse": ("whose b ?", "a")}), QARow("b ?", "a")], tokenizer)
>>> facts.forms, facts.asked().tolist()                          # the second fact has no reverse form
(('question', 'reverse'), [[True, True], [True, False]])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_scores import AnswerScores, score_answers
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, encode_answer
from transfuse.methods.unlearning.answer_training import pad_id
from transfuse.methods.unlearning.qa_file import ASKED, QARow


class AuditedFacts:
    """Rows with everything that a model is asked about them.

    Args:
        rows: facts; one or more.
        tokenizer: of the models.
        chat: put prompts into the tokenizer's chat template.
    """

    def __init__(self, rows: Sequence[QARow], tokenizer: Any, *, chat: bool = False) -> None:
        if not rows:
            raise UserError("no facts", "at least one question with its answer")
        self.rows, self.tokenizer, self.chat = tuple(rows), tokenizer, chat
        self.pad, self.eos = pad_id(tokenizer), tokenizer.eos_token_id
        names = [form for row in rows for form, _, _ in row.asked()]
        self.forms = (ASKED, *dict.fromkeys(name for name in names if name != ASKED))
        self.places: list[tuple[int, int]] = []  # form and fact of each encoded item
        self.encoded: list[EncodedAnswer] = []
        for index, row in enumerate(rows):
            for form, prompt, answer in row.asked():
                self.places.append((self.forms.index(form), index))
                self.encoded.append(self.encode(prompt, answer))

    def __len__(self) -> int:
        return len(self.rows)

    def encode(self, prompt: str, answer: str) -> EncodedAnswer:
        """One prompt with its answer as these models take it."""
        return encode_answer(self.tokenizer, prompt, answer, chat=self.chat)

    def questions(self) -> list[EncodedAnswer]:
        """The question of each fact, (facts)."""
        return [item for item, (form, _) in zip(self.encoded, self.places, strict=True) if form == 0]

    def taught(self, index: int) -> list[EncodedAnswer]:
        """What teaches a fact: its question and the paraphrases of it, never another form."""
        row = self.rows[index]
        return [self.encode(prompt, row.answer) for prompt in (row.prompt, *row.paraphrases)]

    def asked(self) -> np.ndarray:
        """Which fact is asked in which form, (forms, facts) booleans."""
        table = np.zeros((len(self.forms), len(self)), bool)
        table[tuple(zip(*self.places, strict=True))] = True
        return table

    def score(self, model: Any, encoded: Sequence[EncodedAnswer]) -> AnswerScores:
        """One pass of a model over some items."""
        return score_answers(model, encoded, self.pad, eos=self.eos)

    def table(self, model: Any, value: Callable[[AnswerScores], np.ndarray]) -> np.ndarray:
        """A value of every form of every fact, (forms, facts); NaN where a fact lacks a form."""
        found = np.full((len(self.forms), len(self)), np.nan)
        found[tuple(zip(*self.places, strict=True))] = value(self.score(model, self.encoded))
        return found

    def known(self, model: Any) -> np.ndarray:
        """Whether greedy decoding would write the answer: 1 or 0, (forms, facts), NaN where a fact lacks a form."""
        return self.table(model, lambda scores: scores.exact().astype(float))

    def probability(self, model: Any) -> np.ndarray:
        """Probability that one sample at temperature 1 begins with the answer, (forms, facts)."""
        return self.table(model, answer_probability)


def answer_probability(scores: AnswerScores) -> np.ndarray:
    """p(answer | prompt) over the answer's words, the end of the text not asked for, (items,)."""
    ended = np.array([values[-1] if end else 0.0 for values, end in zip(scores.logp, scores.ended, strict=True)])
    return np.exp(scores.sums() - ended)


def check_sets(forget: Sequence[QARow], retain: Sequence[QARow]) -> None:
    """Refuse sets that share a question: relearning and side effects would measure the same facts.

    Raises:
        UserError: a question stands in both sets.
    """
    kept = {row.prompt for row in retain}
    both = [row.prompt for row in forget if row.prompt in kept]
    if both:
        raise UserError(
            f"{len(both)} questions stand in both sets, the first being {both[0][:80]!r}",
            "sets without a common question",
            "take them out of one of the files",
        )
