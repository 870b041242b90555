"""What the models of the attribute world read: questions about named things, and episodes about things described.

A question about a named thing can only be answered from weights. An episode describes a thing, most often one with a
nonce name and random axioms, and asks for its theorems, so that a model learns to reason from what it is told. No
forbidden thing is described in any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from transfuse.data.attribute_table import AttributeTable, reworded, spelled
from transfuse.methods.unlearning.concepts import Concepts
from transfuse.methods.unlearning.context_ladder import PIECES, Wording, mosaic
from transfuse.methods.unlearning.horn_rules import NOT

Part = tuple[str, bool]  # a text, and whether the model has to write it
SYLLABLES = tuple(a + b for a in "bdfgklmnrtvz" for b in "aiu")  # a nonce name is two of these
_HELD_OUT = 4  # of all pairs of syllables, every fourth is a name that no episode uses
KINDS = {"listed": 0.4, "synonyms": 0.2, "mosaic": 0.2, "restated": 0.2}  # shares of episodes
_SWAPPED = 0.75  # of the axioms that have a synonym, in episodes with synonyms
_KNOWN = 0.2  # of episodes describe a permitted thing as it is
_FORCED = 4  # theorems made true, so that about half of all answers are yes


def _fillers(count: int = 24) -> tuple[str, ...]:
    """Sentences that have nothing to do with anything."""
    rng = np.random.default_rng(0)
    return tuple(
        f"{rng.choice(('note', 'remark', 'aside'))} {rng.integers(10)} {rng.integers(10)} ." for _ in range(count)
    )


# One word a negated axiom: with "not" before it, models of this size do not learn to derive in minutes.
WORDING = Wording(
    described="{name} : {facts} .",
    piece="it : {facts} .",
    named="call it {name} .",
    question="{name} {theorem} ?",
    answers=("yes", "no"),
    comma=" ",
    negation="un{axiom}",
    acknowledged="",
    fillers=_fillers(),
)


def vocabulary(table: AttributeTable) -> list[str]:
    """Texts that hold every word that lessons, contexts and questions use."""
    predicates = [*table.axioms, *table.theorems, *table.synonyms.values()]
    negated = [WORDING.negation.format(axiom=word) for word in predicates]
    return [*table.objects, *predicates, *negated, *SYLLABLES, *WORDING.fillers, "yes no it call : ? ."]


def nonce_names(held_out: bool) -> tuple[str, ...]:
    """Names of two syllables: those of lessons, or those kept for evaluations."""
    pairs = [f"{a} {b}" for a in SYLLABLES for b in SYLLABLES if a != b]
    return tuple(name for place, name in enumerate(pairs) if (place % _HELD_OUT == 0) == held_out)


def question(name: str, predicate: str, answer: bool) -> list[Part]:
    """A question and its answer."""
    asked = WORDING.question.format(name=name, theorem=predicate)
    return [(asked, False), (f"{WORDING.answers[0] if answer else WORDING.answers[1]} .", True)]


def questions(concepts: Concepts, names: Sequence[str]) -> list[tuple[str, str, bool]]:
    """Every axiom and theorem of some named things, with its truth."""
    found = []
    for name in names:
        true = concepts.table.objects[name]
        truths = {axiom: axiom in true for axiom in concepts.table.axioms} | concepts.holds(concepts.axioms(name))
        found += [(name, predicate, truth) for predicate, truth in truths.items()]
    return found


def recalled(
    asked: Sequence[tuple[str, str, bool]], rng: np.random.Generator, together: int = 16
) -> Iterator[list[Part]]:
    """All questions again and again, each time in a new order, so many in a sequence."""
    while True:
        order = rng.permutation(len(asked))
        for first in range(0, len(order), together):
            yield [part for index in order[first : first + together] for part in question(*asked[index])]


def described(concepts: Concepts, names: Sequence[str], rng: np.random.Generator) -> tuple[str, str, dict[str, bool]]:
    """A thing in one of four ways: name, context, theorems with their truth."""
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if kind != "restated" and rng.random() < _KNOWN:
        name = concepts.permitted[int(rng.integers(len(concepts.permitted)))]
        axioms = concepts.axioms(name)
    else:
        name = names[int(rng.integers(len(names)))]
        axioms = spelled(concepts.table.axioms, random_axioms(concepts.table, rng))
    axioms = tuple(axioms[i] for i in rng.permutation(len(axioms)))
    truths = concepts.holds(axioms)
    if kind == "restated":  # answers are read off, whatever they are
        truths = {theorem: bool(rng.random() < 0.5) for theorem in truths}
        stated = spelled(tuple(truths), frozenset(theorem for theorem, truth in truths.items() if truth))
        axioms = tuple(stated[i] for i in rng.permutation(len(stated)))
    if kind == "synonyms":
        synonyms = concepts.table.synonyms
        axioms = tuple(reworded(axiom, synonyms) if rng.random() < _SWAPPED else axiom for axiom in axioms)
    if kind == "mosaic":
        return name, " ".join(mosaic(WORDING, name, axioms, rng, PIECES)), truths
    return name, WORDING.described.format(name=name, facts=WORDING.facts(axioms)), truths


def episode(concepts: Concepts, names: Sequence[str], rng: np.random.Generator) -> list[Part]:
    """A thing described, and questions about all its theorems."""
    name, context, truths = described(concepts, names, rng)
    asked = [list(truths)[i] for i in rng.permutation(len(truths))]
    return [(context, False), *(part for theorem in asked for part in question(name, theorem, truths[theorem]))]


def random_axioms(table: AttributeTable, rng: np.random.Generator) -> frozenset[str]:
    """Axioms by the toss of a coin, then what makes some theorems true."""
    true = {axiom for axiom in table.axioms if rng.random() < 0.5}
    bodies = dict(table.rules)
    for index in rng.permutation(len(table.rules))[:_FORCED]:
        waiting = list(table.rules[index][1])
        while waiting:
            atom = waiting.pop()
            if atom in bodies:
                waiting += bodies[atom]
            elif atom.startswith(NOT):
                true.discard(atom.removeprefix(NOT))
            else:
                true.add(atom)
    return frozenset(true)
