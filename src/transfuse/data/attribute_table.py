"""Real things with properties that are true or false, and rules by which further properties follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AttributeTable:
    """Objects, their axioms, and the theorems about them.

    Attributes:
        objects: name -> the axioms that are true of it; all others are false.
        axioms: all axioms, one word each.
        rules: (theorem, body); a body holds axioms, theorems of rules above it, or "not " and an axiom.
        synonyms: axiom -> another word for it.
    """

    objects: Mapping[str, frozenset[str]]
    axioms: tuple[str, ...]
    rules: tuple[tuple[str, tuple[str, ...]], ...]
    synonyms: Mapping[str, str]

    @property
    def theorems(self) -> tuple[str, ...]:
        return tuple(head for head, _ in self.rules)

    def listed(self, name: str) -> tuple[str, ...]:
        """Every axiom as it holds of an object: "large" or "not large"."""
        return spelled(self.axioms, self.objects[name])

    def holds(self, name: str) -> dict[str, bool]:
        """Axioms and theorems of an object -> whether they hold."""
        return derived(self, self.objects[name])

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
    """Axioms with "not " before those that are false."""
    return tuple(axiom if axiom in true else f"not {axiom}" for axiom in axioms)


def derived(table: AttributeTable, true: frozenset[str]) -> dict[str, bool]:
    """Axioms and theorems -> whether they hold of a thing of which the axioms `true` do and no others."""
    found = {axiom: axiom in true for axiom in table.axioms}
    for head, body in table.rules:
        found[head] = all(_is_true(found, atom) for atom in body)
    return found


def _is_true(found: Mapping[str, bool], atom: str) -> bool:
    bare = atom.removeprefix("not ")
    return found[bare] == (bare == atom)


def rates(table: AttributeTable) -> Iterator[tuple[str, float]]:
    """Axioms and theorems with the share of objects of which they hold."""
    rows = [table.holds(name) for name in table.objects]
    for predicate in rows[0]:
        yield predicate, sum(row[predicate] for row in rows) / len(rows)
