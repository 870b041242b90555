"""Forbidden concepts and what they are made of: axioms that other things share, and theorems that follow from these."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from transfuse.data.attribute_table import AttributeTable, spelled
from transfuse.errors import UserError
from transfuse.methods.unlearning.horn_rules import NOT, HornRules, Rule, negated
from transfuse.user_file import read_utf8

_EXPECTED = (
    "TOML: [objects] name = [what is true of it], [[rules]] with head and body, forbidden = [names], and maybe "
    "[synonyms], [aliases]"
)


@dataclass(frozen=True)
class Concepts:
    """Things, some of which are forbidden.

    Attributes:
        table: all things with their axioms, and the rules.
        forbidden: names of the things that a model should know nothing about.
        aliases: forbidden name -> its other names.
    """

    table: AttributeTable
    forbidden: tuple[str, ...]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [name for name in (*self.forbidden, *self.aliases) if name not in self.table.objects]
        if unknown or not self.forbidden or not self.permitted:
            raise UserError(
                f"forbidden {', '.join(unknown) or 'everything or nothing'}", "some of the objects, and others beside"
            )

    @property
    def permitted(self) -> tuple[str, ...]:
        return tuple(name for name in self.table.objects if name not in self.forbidden)

    @functools.cached_property
    def rules(self) -> HornRules:
        return HornRules(Rule(head, body) for head, body in self.table.rules)

    def axioms(self, name: str) -> tuple[str, ...]:
        """All axioms of a thing, those that are false with "not "."""
        return spelled(self.table.axioms, self.table.objects[name])

    def holds(self, axioms: Iterable[str]) -> dict[str, bool]:
        """Theorem -> whether it follows from axioms."""
        known = self.rules.closure(axioms)
        return {theorem: theorem in known for theorem in self.table.theorems}

    def near(self, name: str) -> tuple[str, ...]:
        """Permitted things that share a true axiom with a forbidden one: what its building blocks are needed for."""
        return tuple(p for p in self.permitted if self.table.objects[p] & self.table.objects[name])


def decisive(concepts: Concepts, axioms: tuple[str, ...], theorem: str, rng: np.random.Generator) -> int | None:
    """Place of an axiom whose negation turns the truth of a theorem round, drawn at random; None where there is none.

    >>> table = AttributeTable({"a": frozenset("p"), "b": frozenset()}, ("p", "q"), (("t", ("p", "not q")),), {})
    >>> decisive(Concepts(table, ("a",)), ("not p", "not q"), "t", np.random.default_rng(0))
    0
    """
    truth = theorem in concepts.rules.closure(axioms)
    for place in rng.permutation(len(axioms)):
        turned = (*axioms[:place], negated(axioms[place]), *axioms[place + 1 :])
        if (theorem in concepts.rules.closure(turned)) != truth:
            return int(place)
    return None


def read_concepts(path: Path | str) -> Concepts:
    """Concepts from a TOML file.

    Raises:
        UserError: the file cannot be read, or what it says does not fit together.
    """
    try:
        found = tomllib.loads(read_utf8(path, _EXPECTED))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{str(path)!r}: {error}", _EXPECTED) from None
    try:
        objects = {name: frozenset(_words(true)) for name, true in dict(found["objects"]).items()}
        rules = tuple((str(rule["head"]), _words(rule["body"])) for rule in found["rules"])
        synonyms = {str(a): str(b) for a, b in dict(found.get("synonyms", {})).items()}
        aliases = {name: _words(others) for name, others in dict(found.get("aliases", {})).items()}
        forbidden = _words(found["forbidden"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{str(path)!r}: {error!r} is missing or of another type", _EXPECTED) from None
    heads = {head for head, _ in rules}
    atoms = {atom.removeprefix(NOT) for _, body in rules for atom in body} - heads
    axioms = tuple(sorted(atoms.union(*objects.values())))
    stated = sorted(heads & set().union(*objects.values()))
    turned = sorted(atom for _, body in rules for atom in body if atom.startswith(NOT) and negated(atom) in heads)
    if stated or turned or not rules:
        raise UserError(
            f"{str(path)!r}: {', '.join(stated + turned) or 'no rule'}",
            "rules whose heads no object has as an axiom and no body negates",
        )
    return Concepts(AttributeTable(objects, axioms, rules, synonyms), forbidden, aliases)


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word.strip() for word in value):
        raise ValueError(value)
    return tuple(value)
