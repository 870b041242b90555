"""Mined negatives, known positives and candidates from a user's files, and cleaned pairs back.

Pairs may have any layout that sentence-transformers' `mine_hard_negatives` writes, saved with `to_json` or `to_csv`:
one negative a row, `negative_1` to `negative_n`, or documents with labels. A document may be its text or the `id` of a
candidate. Texts are compared without regard to case and white space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfuse.data.row_files import read_rows
from transfuse.data.text_files import write_rows
from transfuse.errors import UserError

QUERY_COLUMNS = ("query", "anchor", "question")
POSITIVE_COLUMNS = ("positive", "answer", "document", "passage")
ID_COLUMNS = ("id", "_id", "docid")
LABEL_COLUMNS = ("label", "labels")
_PAIRS = 'rows with a query and "negative" (or "negative_1", ..., or "label" as 0 and 1)'


@dataclass(frozen=True)
class MinedNegative:
    """One negative of a query.

    Attributes:
        query: the query's text.
        text: the negative's text.
        rank: 1 for the first that the miner named for this query, which is its hardest; or the column `rank`.
        retriever: the column `retriever`; empty if there is none.
    """

    query: str
    text: str
    rank: int
    retriever: str = ""


@dataclass(frozen=True)
class Candidates:
    """The corpus that was mined.

    Attributes:
        texts: in the order of the file.
        by_id: texts by their ids; empty where the file has no ids.
    """

    texts: tuple[str, ...]
    by_id: Mapping[str, str]

    def text_of(self, document: str) -> str:
        """The text of a document that is given as an id or as its text."""
        return self.by_id.get(document, document)


def plain(text: str) -> str:
    """A text as it is compared: case folded, white space as single blanks."""
    return " ".join(text.casefold().split())


def read_candidates(path: Path) -> Candidates:
    """The candidates of a file with a column `text` and, if documents are named by ids, `id`."""
    rows = read_rows(path, ("text",))
    column = next((name for name in ID_COLUMNS if name in rows[0]), None)
    by_id = {str(row[column]): str(row["text"]) for row in rows if row.get(column) is not None} if column else {}
    return Candidates(tuple(str(row["text"]) for row in rows), by_id)


def read_positives(path: Path, candidates: Candidates) -> dict[str, list[str]]:
    """Known positives by query, both as `plain` text."""
    rows = read_rows(path)
    query, positive = _column(path, rows[0], QUERY_COLUMNS, 0), _column(path, rows[0], POSITIVE_COLUMNS, 1)
    known: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 1):
        known.setdefault(plain(_cell(path, number, row, query)), []).extend(
            plain(candidates.text_of(text)) for text in _texts(path, number, row, positive)
        )
    return known


def read_mined(path: Path, candidates: Candidates) -> list[MinedNegative]:
    """The negatives of a file of pairs, in its order.

    Raises:
        UserError: the file is missing, empty, or its columns name no negatives.
    """
    rows = read_rows(path)
    query = _column(path, rows[0], QUERY_COLUMNS, 0)
    mined: list[MinedNegative] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        asked = _cell(path, number, row, query)
        for document in _negatives(path, number, row, query):
            seen[asked] = seen.get(asked, 0) + 1
            rank = _rank(path, number, row["rank"]) if row.get("rank") not in (None, "") else seen[asked]
            mined.append(MinedNegative(asked, candidates.text_of(document), rank, str(row.get("retriever") or "")))
    if not mined:
        raise UserError(f"{str(path)!r} names no negatives", _PAIRS)
    return mined


def read_judged(path: Path) -> list[bool]:
    """Whether each judged negative turned out to be relevant: the column `relevant`, 1 or 0."""
    rows = read_rows(path, ("relevant",))
    values = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if all(not str(row["relevant"]).strip() for row in rows):
        raise UserError(f"{str(path)!r} has not been judged yet", "1 or 0 in the column relevant of each row")
    for number, row in enumerate(rows, 1):
        if str(row["relevant"]).strip().lower() not in values:
            raise UserError(f"row {number} of {str(path)!r}: relevant is {row['relevant']!r}", "1 or 0")
    return [values[str(row["relevant"]).strip().lower()] for row in rows]


def write_cleaned(
    path: Path, mined: Sequence[MinedNegative], positives: Mapping[str, Sequence[str]], suspicion: Iterable[float]
) -> None:
    """Write triplets with a column `suspicion`; JSONL if the name ends so, else CSV.

    Args:
        path: the file to write.
        mined: negatives to keep.
        positives: known positives by plain query; the first is the triplet's.
        suspicion: one number for each negative.
    """
    columns = ("query", "positive", "negative", "rank", "retriever", "suspicion")
    rows = [
        (one.query, positives[plain(one.query)][0], one.text, one.rank, one.retriever, round(float(value), 6))
        for one, value in zip(mined, suspicion, strict=True)
    ]
    write_rows(path, columns, rows)


def write_for_judging(path: Path, mined: Sequence[MinedNegative], positives: Mapping[str, Sequence[str]]) -> None:
    """Write negatives beside a known positive of their query, with a column `relevant` to fill in."""
    rows = [(one.query, positives[plain(one.query)][0], one.text, "") for one in mined]
    write_rows(path, ("query", "positive", "negative", "relevant"), rows)


def _negatives(path: Path, number: int, row: Mapping[str, Any], query: str) -> Iterator[str]:
    labels = next((row[name] for name in LABEL_COLUMNS if name in row), None)
    if labels is not None:
        documents = _texts(path, number, row, _column(path, row, (*POSITIVE_COLUMNS, "negative"), 1))
        labels = labels if isinstance(labels, list) else [labels]
        if len(labels) != len(documents):
            raise UserError(f"row {number} of {str(path)!r}: {len(documents)} documents, {len(labels)} labels", _PAIRS)
        yield from (text for text, label in zip(documents, labels, strict=True) if float(label) == 0)
        return
    columns = [name for name in row if name and (name == "negative" or name.startswith("negative_"))]
    if not columns:
        raise UserError(f"row {number} of {str(path)!r} has {', '.join(map(str, row))}", _PAIRS)
    for name in columns:
        if row[name] not in (None, ""):
            yield from _texts(path, number, row, name)


def _column(path: Path, row: Mapping[str, Any], names: Sequence[str], place: int) -> str:
    """The first of the names that the row has, else the column that stands at that place, as the miner takes it."""
    found = next((name for name in names if name in row), None)
    columns = list(row)
    if found is None and len(columns) <= place:
        raise UserError(f"{str(path)!r} has the columns {', '.join(map(str, columns))}", f"a column {names[0]!r}")
    return found or columns[place]


def _cell(path: Path, number: int, row: Mapping[str, Any], column: str) -> str:
    texts = _texts(path, number, row, column)
    if len(texts) != 1 or not texts[0].strip():
        raise UserError(f"row {number} of {str(path)!r} has no text in {column!r}", "one text")
    return texts[0]


def _texts(path: Path, number: int, row: Mapping[str, Any], column: str) -> list[str]:
    value = row.get(column)
    values = value if isinstance(value, list) else [value]
    if any(not isinstance(one, (str, int)) for one in values):
        raise UserError(f"row {number} of {str(path)!r} has {value!r} in {column!r}", "a text, or a list of texts")
    return [str(one) for one in values]


def _rank(path: Path, number: int, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UserError(f"row {number} of {str(path)!r}: rank {value!r}", "a whole number, 1 for the first") from None
