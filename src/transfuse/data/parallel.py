"""Parallel text: names of places, tongues, currencies, scripts, units and time zones in many languages (CLDR, which
ships with babel), names of emoji (which ship with emoji), and image captions (Multi30K, from the data folder).

All loaders give one mapping: language -> texts, line by line the same content, in an order that does not depend on the
machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transfuse.data.folder import data_set, read_text
from transfuse.errors import MissingExtraError, UserError, did_you_mean

Parallel = dict[str, list[str]]

_NAMES = ("territories", "languages", "currencies", "scripts", "variants")  # plain tables of babel's Locale
MULTI30K_LANGUAGES = ("en", "de", "fr", "cs")


def cldr_terms(languages: Sequence[str]) -> Parallel:
    """Terms of the Unicode locale data that every one of the languages has a name for.

    A term whose name is the same in all languages (a code, a proper name that nobody translates) is left out: there is
    nothing to translate. Names are unique within the first language.
    """
    try:
        from babel import Locale, UnknownLocaleError
    except ImportError:
        raise MissingExtraError("locale data", "federated", "babel") from None
    tables = {}
    for language in languages:
        try:
            tables[language] = _terms(Locale.parse(language))
        except (UnknownLocaleError, ValueError):
            raise UserError(f"language {language!r}", "a language code that CLDR knows, for example de") from None
    return _aligned(tables)


def emoji_names(languages: Sequence[str]) -> Parallel:
    """Names of emoji, without variants of skin, that every one of the languages has.

    Raises:
        UserError: a language that the package has no names in.
    """
    try:
        import emoji
    except ImportError:
        raise MissingExtraError("names of emoji", "federated", "emoji") from None
    if unknown := [language for language in languages if language not in emoji.LANGUAGES]:
        hint = did_you_mean(unknown[0], emoji.LANGUAGES) or f"one of {', '.join(emoji.LANGUAGES)}"
        raise UserError(f"no names of emoji in {unknown[0]!r}", fix=hint)
    emoji.config.load_language(list(languages))
    skin = {chr(code) for code in range(0x1F3FB, 0x1F400)}
    plain = [sign for sign in sorted(emoji.EMOJI_DATA) if not skin & set(sign)]
    return _aligned({language: {sign: _spoken(emoji.EMOJI_DATA[sign], language) for sign in plain}
                     for language in languages})  # fmt: skip


def multi30k(split: str, languages: Sequence[str] = MULTI30K_LANGUAGES) -> Parallel:
    """Captions of one split ("train", "val", "test_2016_flickr", ...), line by line the same picture."""
    names = [f"{split}.{language}" for language in languages]
    known = [file.name for file in data_set("multi30k").files]
    if missing := [name for name in names if name not in known]:
        raise UserError(f"Multi30K has no {missing[0]!r}", f"one of {', '.join(known)}")
    texts = {}
    for language, name in zip(languages, names, strict=True):
        texts[language] = [" ".join(line.split()) for line in read_text("multi30k", name).splitlines()]
    if len({len(lines) for lines in texts.values()}) != 1:
        raise UserError(f"Multi30K {split} has files of different lengths", fix="fetch them again")
    return texts


def _terms(locale: Any) -> dict[str, str]:
    """Kind and code -> name in the locale's language."""
    found = {f"{name}/{code}": text for name in _NAMES for code, text in getattr(locale, name).items()}
    for unit, names in locale.unit_display_names.items():
        found[f"unit/{unit}"] = names.get("long", "")
    for zone, names in locale.time_zones.items():
        found[f"city/{zone}"] = names.get("city", "")
    for zone, names in locale.meta_zones.items():
        found.update({f"zone/{zone}/{kind}": text for kind, text in names.get("long", {}).items()})
    return {key: text for key, text in found.items() if isinstance(text, str) and text.strip()}


def _spoken(entry: Mapping[str, Any], language: str) -> str:
    """``:red_heart:`` as "red heart"."""
    return str(entry.get(language, "")).strip(":").replace("_", " ").strip()


def _aligned(tables: Mapping[str, Mapping[str, str]]) -> Parallel:
    """The entries that all tables have, in order of their keys, without those that are alike in all languages."""
    languages = list(tables)
    first = tables[languages[0]]
    seen: set[str] = set()
    rows: list[list[str]] = []
    for key in sorted(set(first).intersection(*tables.values())):
        row = [tables[language][key] for language in languages]
        if not all(row) or (len(row) > 1 and len({text.casefold() for text in row}) == 1) or row[0] in seen:
            continue
        seen.add(row[0])
        rows.append(row)
    return {language: [row[index] for row in rows] for index, language in enumerate(languages)}
