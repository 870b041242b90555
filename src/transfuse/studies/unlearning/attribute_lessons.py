"""What the models of the attribute world read: questions about named things, and episodes about nameless ones.

A question about a named thing can only be answered from weights. An episode lists the axioms of a thing with a nonce
name and asks for its theorems, so that a model learns to reason from what it is told. The axioms of episodes are drawn
at random: no named thing is described in any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from transfuse.data.attribute_table import AttributeTable, derived, spelled

Part = tuple[str, bool]  # a text, and whether the model has to write it
YES_NO = {True: "yes", False: "no"}
SYLLABLES = tuple(a + b for a in "bdfgklmnrtvz" for b in "aiu")  # a nonce name is two of these
_HELD_OUT = 4  # of all pairs of syllables, every fourth is a name that no episode uses
_FILLERS = ("note", "remark", "aside")
_DIGITS = tuple("0123456789")
KINDS = {"listed": 0.5, "synonyms": 0.15, "mosaic": 0.2, "restated": 0.15}  # shares of episodes
_SWAPPED = 0.75  # of the axioms that have a synonym, in episodes with synonyms
_PIECES = 4  # turns of a mosaic


def vocabulary(table: AttributeTable) -> list[str]:
    """Texts that hold every word that lessons, contexts and questions use."""
    words = [*table.objects, *table.axioms, *table.theorems, *table.synonyms.values(), *SYLLABLES, *_FILLERS, *_DIGITS]
    return [*words, "yes no not it call : ? ."]


def nonce_names(held_out: bool) -> tuple[str, ...]:
    """Names of two syllables: those of lessons, or those kept for evaluations."""
    pairs = [f"{a} {b}" for a in SYLLABLES for b in SYLLABLES if a != b]
    return tuple(name for place, name in enumerate(pairs) if (place % _HELD_OUT == 0) == held_out)


def filler(rng: np.random.Generator) -> str:
    """A sentence that has nothing to do with anything."""
    return " ".join([str(rng.choice(_FILLERS)), *map(str, rng.choice(_DIGITS, 3)), "."])


def fillers(count: int = 24) -> tuple[str, ...]:
    """Some such sentences, always the same."""
    rng = np.random.default_rng(0)
    return tuple(filler(rng) for _ in range(count))


def question(name: str, predicate: str, answer: bool) -> list[Part]:
    return [(f"{name} {predicate} ?", False), (f"{YES_NO[answer]} .", True)]


def questions(table: AttributeTable, names: Sequence[str]) -> list[tuple[str, str, bool]]:
    """Every axiom and theorem of some named things, with its truth."""
    return [(name, predicate, truth) for name in names for predicate, truth in table.holds(name).items()]


def recalled(
    asked: Sequence[tuple[str, str, bool]], rng: np.random.Generator, together: int = 16
) -> Iterator[list[Part]]:
    """All questions once, in random order, so many in a sequence."""
    order = rng.permutation(len(asked))
    for first in range(0, len(order), together):
        yield [part for index in order[first : first + together] for part in question(*asked[index])]


def episode(table: AttributeTable, names: Sequence[str], rng: np.random.Generator) -> list[Part]:
    """A nonce thing with random axioms, described in one of four ways, and questions about its theorems."""
    name = names[int(rng.integers(len(names)))]
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    true = frozenset(axiom for axiom in table.axioms if rng.random() < 0.5)
    truths = derived(table, true)
    theorems = list(rng.permutation(table.theorems))
    if kind == "restated":  # answers are copied from the text, whatever they are
        truths = {theorem: bool(rng.random() < 0.5) for theorem in theorems}
        context = " ".join(f"{name} {theorem} ? {YES_NO[truths[theorem]]} ." for theorem in theorems)
        theorems = list(rng.permutation(theorems))
    else:
        listed = [str(axiom) for axiom in rng.permutation(spelled(table.axioms, true))]
        if kind == "synonyms":
            listed = [swapped(axiom, table.synonyms) if rng.random() < _SWAPPED else axiom for axiom in listed]
        context = mosaic(name, listed, rng) if kind == "mosaic" else f"{name} : {' '.join(listed)} ."
    return [(context, False), *(part for t in theorems for part in question(name, str(t), truths[t]))]


def swapped(axiom: str, synonyms: Mapping[str, str]) -> str:
    """An axiom in its other word, where it has one."""
    bare = axiom.removeprefix("not ")
    return axiom.removesuffix(bare) + synonyms.get(bare, bare)


def mosaic(name: str, listed: Sequence[str], rng: np.random.Generator) -> str:
    """Axioms in pieces between fillers, the name last."""
    pieces = [f"it : {' '.join(part)} . {filler(rng)}" for part in np.array_split(np.array(listed), _PIECES)]
    return " ".join([*pieces, f"call it {name} ."])
