"""`transfuse choose`: methods for a problem in the user's own words, by counting words in the cards."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import typer

from transfuse.card import Card
from transfuse.cli.app import command
from transfuse.cli.selection import JsonOption, registry_with_warnings
from transfuse.cli.tables import print_json, table
from transfuse.errors import UserError, did_you_mean
from transfuse.registry import Entry, missing_packages

# What a word is worth that stands in a field of the card; only its best field counts.
WEIGHTS = {"id": 4, "problems": 4, "data": 3, "summary": 2, "family": 2, "host": 2, "needs": 1, "title": 1}
_COMMON = frozenset(
    re.findall(
        r"\w+",
        """a an and any are as at be by can do does for from get has have how i in into is it its like me my need of on
        or our out some that the their them they this to too use using want was we what when where which who why will
        with you your""",
    )
)
_ENDINGS = (
    "isation",
    "ization",
    "ations",
    "ation",
    "ingly",
    "ings",
    "ing",
    "edly",
    "ions",
    "ion",
    "ers",
    "er",
    "ies",
    "es",
    "ed",
    "ly",
    "s",
    "e",
    "y",
)


@dataclass(frozen=True)
class Match:
    """A method with its score and, for each matched word, the field that it stands in."""

    entry: Entry
    score: int
    why: tuple[tuple[str, str], ...]

    @property
    def reason(self) -> str:
        return "; ".join(f"{word!r} in its {field}" for word, field in self.why) or "meets the conditions"


def choose(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORDS]...", help="Your problem, in your own words.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="KIND", help="Only methods for this kind of data.")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", metavar="HOST", help="Only methods of this host tool.")] = None,
    installed: Annotated[bool, typer.Option("--installed", help="Only methods whose host is installed.")] = False,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="How many to show.")] = 5,
    json: JsonOption = False,
) -> None:
    """Find methods for a problem of yours, and say why each was found.

    A word counts where it stands in a card: 4 points in the id or the problems that the method answers, 3 in
    its kind of data, 2 in its summary, family or host, 1 in its needs or title.
    """
    if not words and data is None and host is None and not installed:
        raise UserError(
            "nothing to choose by", "words, --data or --host", "for example transfuse choose hard negatives"
        )
    entries = list(registry_with_warnings().entries.values())
    entries = _narrowed(entries, "data", data)
    entries = _narrowed(entries, "host", host)
    if installed:
        entries = [entry for entry in entries if not missing_packages(entry.card)]
    found = rank(entries, " ".join(words or ()))[:top]
    if json:
        print_json([{"id": m.entry.id, "score": m.score, "why": [list(pair) for pair in m.why]} for m in found])
    elif found:
        rows = [(m.entry.id, m.score, m.entry.card.summary, m.reason) for m in found]
        typer.echo(table(("ID", "POINTS", "WHAT IT DOES", "WHY"), rows))
        typer.echo(f"\ntype: transfuse show {found[0].entry.id}")
    else:
        typer.echo("no method matches; try other words, or see transfuse list")


def rank(entries: list[Entry], text: str) -> list[Match]:
    """Methods in order of points; without words all of them, with words only those that match one."""
    wanted = {stem(word): word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in _COMMON}
    matches = [_match(entry, wanted) for entry in entries]
    matches = [match for match in matches if match.score or not text.strip()]
    return sorted(matches, key=lambda match: (-match.score, match.entry.id))


def stem(word: str) -> str:
    """A word without its ending, so that "unlearn" finds "unlearning"; short words stay as they are."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return stem(word[: -len(ending)])
    return word


def _match(entry: Entry, wanted: dict[str, str]) -> Match:
    fields = {field: _stems(entry.card, field) for field in WEIGHTS}
    why, score = [], 0
    for stemmed, word in wanted.items():
        field = next((field for field in WEIGHTS if stemmed in fields[field]), None)  # WEIGHTS is in falling order
        if field is not None:
            why.append((word, field))
            score += WEIGHTS[field]
    return Match(entry, score, tuple(why))


def _stems(card: Card, field: str) -> set[str]:
    value = getattr(card, field)
    text = value if isinstance(value, str) else " ".join(value)
    return {stem(word) for word in re.findall(r"[a-z0-9]+", text.lower())}


def _narrowed(entries: list[Entry], field: str, wanted: str | None) -> list[Entry]:
    """Those whose field contains all the words that were asked for."""
    if wanted is None:
        return entries
    stems = {stem(word) for word in re.findall(r"[a-z0-9]+", wanted.lower())}
    found = [entry for entry in entries if stems and stems <= _stems(entry.card, field)]
    if not found:
        known = sorted({str(getattr(entry.card, field)) for entry in entries})
        raise UserError(
            f"no method with --{field} {wanted!r}", f"one of {', '.join(known)}", did_you_mean(wanted, known)
        )
    return found


COMMAND = command(
    choose,
    "transfuse choose hard negatives for a knowledge graph",
    "transfuse choose --data text --installed",
    "transfuse choose federated learning with changing clients --json",
)
