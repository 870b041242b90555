"""Things with properties that are true or false, and rules by which further properties follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AttributeTable:
    """Objects, their axioms, and the rules of the theorems about them.

    Attributes:
        objects: name -> the axioms that are true of it; all others are false.
        axioms: all axioms, one word each.
        rules: (theorem, body); a body holds axioms, theorems, or "not " and an axiom.
        synonyms: axiom -> another word for it.
    """

    objects: Mapping[str, frozenset[str]]
    axioms: tuple[str, ...]
    rules: tuple[tuple[str, tuple[str, ...]], ...]
    synonyms: Mapping[str, str]

    @property
    def theorems(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(head for head, _ in self.rules))

    def unique(self) -> tuple[str, ...]:
        """Objects that their axioms tell from all others."""
        seen: dict[frozenset[str], list[str]] = {}
        for name, true in self.objects.items():
            seen.setdefault(true, []).append(name)
        return tuple(names[0] for names in seen.values() if len(names) == 1)

    def only(self, names: Sequence[str]) -> AttributeTable:
        """The table of some objects, in the order given."""
        return AttributeTable({n: self.objects[n] for n in names}, self.axioms, self.rules, self.synonyms)


def spelled(axioms: Sequence[str], true: frozenset[str]) -> tuple[str, ...]:
    """Axioms with "not " before those that are false.

    >>> spelled(("large", "dense"), frozenset({"large"}))
    ('large', 'not dense')
    """
    return tuple(axiom if axiom in true else f"not {axiom}" for axiom in axioms)


def reworded(axiom: str, synonyms: Mapping[str, str]) -> str:
    """An axiom in its other word, where it has one.

    >>> reworded("not large", {"large": "vast"})
    'not vast'
    """
    bare = axiom.removeprefix("not ")
    return axiom.removesuffix(bare) + synonyms.get(bare, bare)
