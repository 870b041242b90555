"""The same fact asked in many forms: cloze, question, choice, true or false, reversed, spelled, first letter, two hops.

An `Item` is a prompt and its answer. Each form has several wordings, of which the last is kept out of training, so that
an evaluation can ask in words that no model of a study has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transfuse.data.country_facts import Fact, FactTable
from transfuse.errors import UserError, did_you_mean

OPTIONS = 4  # of a choice, where the relation has that many objects
_WORDINGS = {
    "cloze": (
        "the {noun} of {subject} is",
        "{subject} has the {noun}",
        "as for {subject} , its {noun} is",
        "for {subject} the {noun} is",
    ),
    "qa": (
        "question : what is the {noun} of {subject} ? answer :",
        "question : which {noun} does {subject} have ? answer :",
        "question : name the {noun} of {subject} . answer :",
        "question : {subject} has what {noun} ? answer :",
    ),
    "choice": (
        "choose the {noun} of {subject} : {options} . answer :",
        "which is the {noun} of {subject} : {options} ? answer :",
        "of {options} , pick the {noun} of {subject} . answer :",
        "of {options} , which is the {noun} of {subject} ? answer :",
    ),
    "true_false": (
        "true or false : the {noun} of {subject} is {shown} . answer :",
        "true or false : {subject} has the {noun} {shown} . answer :",
        "is {shown} the {noun} of {subject} ? true or false . answer :",
        "true or false : in {subject} the {noun} is {shown} . answer :",
    ),
    "reverse": (
        "question : {object} is the {noun} of which country ? answer :",
        "question : which country has the {noun} {object} ? answer :",
        "question : name the country with the {noun} {object} . answer :",
        "question : the {noun} {object} belongs to which country ? answer :",
    ),
    "letters": (
        "spell the {noun} of {subject} . answer :",
        "letter by letter , the {noun} of {subject} is",
        "write the {noun} of {subject} in single letters . answer :",
        "spell in single letters the {noun} of {subject} . answer :",
    ),
    "initial": (
        "question : with which letter does the {noun} of {subject} start ? answer :",
        "question : what is the first letter of the {noun} of {subject} ? answer :",
        "the {noun} of {subject} starts with the letter",
        "question : the {noun} of {subject} begins with which letter ? answer :",
    ),
    "two_hop": (
        "question : what is the {group} of the country with the {noun} {object} ? answer :",
        "question : the country with the {noun} {object} has which {group} ? answer :",
        "the country with the {noun} {object} has the {group}",
        "question : name the {group} of the country with the {noun} {object} . answer :",
    ),
}
FORMS = tuple(_WORDINGS)
WORDINGS = 4  # of each form
HELD_OUT = WORDINGS - 1  # the wording that no training text uses
_LEAVES_SUBJECT_OUT = ("reverse", "two_hop")  # asked of unique relations only


@dataclass(frozen=True)
class Item:
    """A prompt and the answer that belongs to it.

    Attributes:
        prompt: what the model is given, without a space at its end.
        answer: what it should go on with.
        fact: what is asked for.
        form: one of `FORMS`.
        options: the answers to choose from, where the form offers some (names, or true and false).
    """

    prompt: str
    answer: str
    fact: Fact
    form: str
    options: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.answer} ."


def ask(
    table: FactTable, facts: Sequence[Fact], form: str, rng: np.random.Generator, wording: int | None = None
) -> list[Item]:
    """One item a fact; those that the form cannot ask for are left out.

    Args:
        table: where distractors and neighbours come from.
        facts: what to ask for.
        form: one of `FORMS`.
        rng: draws distractors, their order, the truth of statements, and the wording where it is None.
        wording: which of the `WORDINGS`, or None for any but the one held out.
    """
    if form not in _WORDINGS:
        raise UserError(f"form {form!r}", fix=did_you_mean(form, FORMS) or f"one of {', '.join(FORMS)}")
    asked = [fact for fact in facts if can_ask(table, fact, form)]
    true = balanced(len(asked), rng) if form == "true_false" else np.ones(len(asked), bool)
    items = []
    for fact, holds in zip(asked, true, strict=True):
        chosen = int(rng.integers(HELD_OUT)) if wording is None else wording
        items.append(_item(table, fact, form, _WORDINGS[form][chosen], bool(holds), rng))
    return items


def can_ask(table: FactTable, fact: Fact, form: str) -> bool:
    """Whether a form suits a fact: from the object to the subject only where the object has one subject, letters only
    of words."""
    if form in _LEAVES_SUBJECT_OUT:
        return fact.relation in table.unique
    if form in ("letters", "initial"):
        return fact.object[0].isalpha()
    return True


def balanced(count: int, rng: np.random.Generator) -> np.ndarray:
    """Half true, half false (one more of either if odd), in random order: (count,) booleans."""
    return rng.permutation((np.arange(count) + int(rng.integers(2))) % 2 == 0)


def _item(table: FactTable, fact: Fact, form: str, wording: str, holds: bool, rng: np.random.Generator) -> Item:
    names = {
        "noun": table.nouns[fact.relation], "subject": fact.subject, "object": fact.object,
        "group": table.nouns[table.group],
    }  # fmt: skip
    if form == "choice":
        shown = _four(table, fact, rng)
        return Item(wording.format(options=" , ".join(shown), **names), fact.object, fact, form, tuple(shown))
    if form == "true_false":
        shown_one = fact.object if holds else str(rng.choice(_others(table, fact)))
        answer = "true" if holds else "false"
        return Item(wording.format(shown=shown_one, **names), answer, fact, form, ("true", "false"))
    answers = {
        "reverse": fact.subject, "two_hop": table.facts[fact.subject][table.group],
        "letters": " ".join(fact.object.replace(" ", "")[:8]), "initial": fact.object[0],
    }  # fmt: skip
    return Item(wording.format(**names), answers.get(form, fact.object), fact, form)


def _others(table: FactTable, fact: Fact) -> list[str]:
    return [name for name in table.objects(fact.relation) if name != fact.object]


def _four(table: FactTable, fact: Fact, rng: np.random.Generator) -> list[str]:
    """The object and up to three others of its relation, shuffled."""
    others = _others(table, fact)
    drawn = rng.permutation(len(others))[: OPTIONS - 1]
    shown = [fact.object, *(others[i] for i in drawn)]
    return [shown[i] for i in rng.permutation(len(shown))]


def dialogue(table: FactTable, subject: str, rng: np.random.Generator, turns: int) -> list[Item]:
    """Questions about one subject that follow one another, as a step-by-step audit asks them."""
    facts = table.of([subject])
    items = []
    for index in rng.permutation(len(facts))[:turns]:
        form = "initial" if rng.random() < 0.3 and can_ask(table, facts[index], "initial") else "qa"
        items += ask(table, [facts[index]], form, rng)
    return items
