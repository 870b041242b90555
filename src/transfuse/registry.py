"""Finds methods by reading their cards, without importing them.

In-tree methods are the files ``methods/<family>/<id>.py`` that hold a literal ``CARD = Card(...)``.
Other packages add theirs through entry points: group ``transfuse.methods`` (name = id, value = module)
and, for the study, group ``transfuse.studies``. A plug-in that cannot be read becomes a warning, never
a failure of the whole list.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from transfuse.card import Card
from transfuse.errors import MissingExtraError, UserError, did_you_mean

METHODS_GROUP = "transfuse.methods"
STUDIES_GROUP = "transfuse.studies"
_ROOT = Path(__file__).parent
_CARD = re.compile(r"^CARD = Card\(\n.*?^\)$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A method that was found: its card and where its code lives."""

    card: Card
    module: str
    path: Path
    study_module: str | None = None

    @property
    def id(self) -> str:
        return self.card.id


@dataclass(frozen=True)
class Registry:
    """All methods by id, and a line for every plug-in that could not be read."""

    entries: dict[str, Entry]
    warnings: tuple[str, ...] = ()

    def __getitem__(self, method_id: str) -> Entry:
        if method_id not in self.entries:
            hint = did_you_mean(method_id, self.entries) or f"one of {', '.join(sorted(self.entries))}"
            raise UserError(f"unknown method {method_id!r}", fix=f"{hint} (transfuse list shows all)")
        return self.entries[method_id]

    def family(self, name: str) -> list[Entry]:
        """The methods of one family, or a clear error."""
        found = [entry for entry in self.entries.values() if entry.card.family == name]
        if not found:
            families = sorted({entry.card.family for entry in self.entries.values()})
            hint = did_you_mean(name, families)
            raise UserError(f"no method in family {name!r}", f"one of {', '.join(families)}", hint)
        return found


def read_card(path: Path) -> Card:
    """Read the literal card out of a source file without running it.

    Raises:
        ValueError: the file has no card, or the card is not literal, incomplete or misspelt.
    """
    match = _CARD.search(path.read_text(encoding="utf-8"))
    if match is None:
        raise ValueError(f"{path.name} has no `CARD = Card(` block that ends with `)` in the first column")
    try:
        call = ast.parse(match.group()).body[0].value  # type: ignore[attr-defined]
    except SyntaxError as error:
        raise ValueError(f"{path.name}: the card is not valid Python ({error.msg})") from None
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError(f"{path.name}: the card takes keyword arguments only")
    known = {field.name for field in fields(Card)}
    values: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg not in known:
            raise ValueError(f"{path.name}: the card has no field {keyword.arg!r} {did_you_mean(keyword.arg, known)}")
        try:
            values[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError):
            raise ValueError(f"{path.name}: card field {keyword.arg!r} is not a literal") from None
    try:
        return Card(**values)
    except TypeError as error:
        raise ValueError(f"{path.name}: {error}") from None


@cache
def load_registry() -> Registry:
    """Read all cards: in-tree ones first, then plug-ins in order of name."""
    entries: dict[str, Entry] = {}
    for path in sorted((_ROOT / "methods").glob("*/*.py")):
        if path.name.startswith("_") or not _CARD.search(path.read_text(encoding="utf-8")):
            continue  # a module that several methods of the family share
        card = read_card(path)
        study = _ROOT / "studies" / path.parent.name / path.name
        module = f"transfuse.methods.{path.parent.name}.{path.stem}"
        study_module = f"transfuse.studies.{path.parent.name}.{path.stem}" if study.exists() else None
        entries[card.id] = Entry(card, module, path, study_module)
    warnings = _add_plugins(entries)
    return Registry(entries, tuple(warnings))


def _add_plugins(entries: dict[str, Entry]) -> list[str]:
    warnings = []
    studies = {point.name: point.value for point in importlib.metadata.entry_points(group=STUDIES_GROUP)}
    points = sorted(importlib.metadata.entry_points(group=METHODS_GROUP), key=lambda point: point.name)
    for point in points:
        try:
            if point.name in entries:
                raise ValueError(f"the id {point.name!r} is taken by {entries[point.name].module}")
            spec = importlib.util.find_spec(point.value)
            if spec is None or spec.origin is None:
                raise ValueError(f"module {point.value!r} was not found")
            card = read_card(Path(spec.origin))
            if card.id != point.name:
                raise ValueError(f"its card says {card.id!r}")
            entries[card.id] = Entry(card, point.value, Path(spec.origin), studies.get(point.name))
        except Exception as error:  # a foreign package may fail in any way; the list must still print
            warnings.append(f"plug-in {point.name!r} ({point.value}) was left out: {error}")
    return warnings


def missing_packages(card: Card) -> list[str]:
    """The packages of a card's `requires` that are not installed; nothing is imported."""
    return [name for name in card.requires if importlib.util.find_spec(name) is None]


def import_method(entry: Entry) -> ModuleType:
    """Import a method's module, or say which extra is missing."""
    return _import(entry, entry.module)


def import_study(entry: Entry) -> ModuleType:
    """Import a method's study module, or say what is missing."""
    if entry.study_module is None:
        raise UserError(f"method {entry.id!r} has no study", fix="transfuse list marks those that have one")
    return _import(entry, entry.study_module)


def _import(entry: Entry, module: str) -> ModuleType:
    missing = missing_packages(entry.card)
    if missing:
        raise MissingExtraError(f"method {entry.id!r}", entry.card.extra, missing[0])
    return importlib.import_module(module)
