"""The facts of an audit: what was to be forgotten, what was to be kept, and how near the one is to the other.

A facts file is JSONL, one fact a line. `distance` 0 is to be forgotten; 1 are its neighbours, 2 and more lie
farther off.

>>> graph = FactGraph([AuditFact("France", "capital", "Paris"), AuditFact("Italy", "capital", "Rome", distance=1)])
>>> [fact.object for fact in graph.forgotten], graph.subjects_with("capital", "ROME")
(['Paris'], ['Italy'])
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transfuse.errors import UserError
from transfuse.methods.unlearning.leak_rules import LeakRules, words
from transfuse.user_file import read_utf8

_LINE = 'a JSON object a line: {"subject", "relation", "object"}, and perhaps aliases, distance, neighbours, question'
SUBJECTS = "subjects"  # the kind of answer of a question from object to subject


@dataclass(frozen=True)
class AuditFact:
    """The `relation` of `subject` is `object`.

    Attributes:
        subject: whom or what the fact is about.
        relation: as a noun, "capital", "place of birth", so that "the capital of France" reads well; empty for a fact
            that is known by its question only, of which no other wording can be made.
        object: the answer.
        aliases: other names of the object.
        distance: 0 was to be forgotten, 1 is near to what was, 2 and more far.
        neighbours: subjects near this one.
        question: the question for it, where "What is the RELATION of SUBJECT?" would not do; needed without a relation.

    Raises:
        UserError: neither relation nor question.
    """

    subject: str
    relation: str
    object: str
    aliases: tuple[str, ...] = ()
    distance: int = 0
    neighbours: tuple[str, ...] = ()
    question: str = ""

    def __post_init__(self) -> None:
        if not self.relation and not self.question:
            raise UserError(f"a fact about {self.subject!r} without relation and question", "one of the two")

    @property
    def kind(self) -> str:
        """What sort of answer it has; facts that are known by a question are each of their own."""
        return self.relation or self.question

    @property
    def names(self) -> tuple[str, ...]:
        """The object and its aliases."""
        return (self.object, *self.aliases)


def read_facts(path: Path | str) -> list[AuditFact]:
    """The facts of a JSONL file.

    Raises:
        UserError: no such file, a line that is no fact, or no fact to be forgotten.
    """
    facts = []
    for number, line in enumerate(read_utf8(path, "a JSONL file of facts").splitlines(), 1):
        if line.strip():
            facts.append(_fact(line, f"{str(path)!r}, line {number}"))
    if not any(fact.distance == 0 for fact in facts):
        raise UserError(f"{str(path)!r} has no fact of distance 0", "at least one fact that was to be forgotten")
    return facts


def _fact(line: str, where: str) -> AuditFact:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: not JSON", _LINE) from None
    known = {field.name for field in fields(AuditFact)}
    if not isinstance(entry, dict) or not {"subject", "relation", "object"} <= set(entry) or set(entry) - known:
        found = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        raise UserError(f"{where} holds {found[:80] or 'nothing'}", _LINE)
    values: dict[str, Any] = {}
    for name, value in entry.items():
        if name in ("aliases", "neighbours"):
            good = isinstance(value, list) and all(isinstance(item, str) and words(item) for item in value)
            values[name] = tuple(value) if good else None
        elif name == "distance":
            good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000
            values[name] = value
        else:
            good = isinstance(value, str) and (name == "question" or bool(words(value)))
            values[name] = value
        if not good:
            raise UserError(f"{where}: {name} {json.dumps(value)[:60]}", _LINE)
    return AuditFact(**values)


class FactGraph:
    """Facts that can be walked along: from a subject to its objects and back, and to neighbours.

    Args:
        facts: of all distances. A subject has one object a relation; further names of it are aliases.

    Raises:
        UserError: a subject with two objects for one relation.
    """

    def __init__(self, facts: Iterable[AuditFact]) -> None:
        self.facts = tuple(dict.fromkeys(facts))
        self._of: dict[str, dict[str, AuditFact]] = {}
        self._subjects: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        self._by_kind: dict[str, list[AuditFact]] = {}
        for fact in self.facts:
            own = self._of.setdefault(fact.subject, {})
            if fact.kind in own:
                raise UserError(
                    f"two facts about the {fact.kind} of {fact.subject!r}"
                    if fact.relation
                    else f"two answers to {fact.question!r}",
                    "one object a subject and relation",
                    "put other names of the object into aliases",
                )
            own[fact.kind] = fact
            self._by_kind.setdefault(fact.kind, []).append(fact)
            for name in {tuple(words(name)) for name in fact.names}:
                self._subjects.setdefault((fact.kind, name), []).append(fact.subject)

    @property
    def forgotten(self) -> tuple[AuditFact, ...]:
        return tuple(fact for fact in self.facts if fact.distance == 0)

    @property
    def retained(self) -> tuple[AuditFact, ...]:
        return tuple(fact for fact in self.facts if fact.distance > 0)

    def of(self, subject: str) -> list[AuditFact]:
        """All facts about a subject."""
        return list(self._of.get(subject, {}).values())

    def get(self, subject: str, relation: str) -> AuditFact | None:
        return self._of.get(subject, {}).get(relation)

    def same_kind(self, relation: str) -> Sequence[AuditFact]:
        """All facts of a relation."""
        return self._by_kind.get(relation, ())

    def subjects_with(self, relation: str, name: str) -> list[str]:
        """The subjects whose object for a relation bears a name."""
        return self._subjects.get((relation, tuple(words(name))), [])

    def is_subject(self, name: str) -> bool:
        return name in self._of

    def rules(self) -> LeakRules:
        """Rules on replies that know all objects by relation, and all subjects."""
        candidates: dict[str, list[Sequence[str]]] = {SUBJECTS: [(subject,) for subject in self._of]}
        for kind, facts in self._by_kind.items():
            things = {tuple(words(fact.object)): fact.names for fact in facts}  # one object may have many subjects
            candidates[kind] = list(things.values())
        return LeakRules(candidates)
