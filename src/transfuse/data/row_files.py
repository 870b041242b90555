"""Rows of files that users name: JSONL, TSV, or CSV with a heading, whatever their columns."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transfuse.errors import UserError
from transfuse.user_file import read_utf8


def read_rows(path: Path, needed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a JSONL file, a TSV file by its name, else of a CSV file with a heading; values as the file has them.

    Args:
        path: the user's file.
        needed: columns that every row must have.

    Raises:
        UserError: the file is missing, empty, of another kind, or a row lacks a column.
    """
    expected = f"columns {' and '.join(needed)}" if needed else "a heading and rows below it"
    content = read_utf8(path)
    if path.suffix.lower() == ".jsonl":
        rows = [_object(path, number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        try:
            with _long_fields():
                rows = list(csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter))
        except csv.Error as error:
            raise UserError(f"{str(path)!r} cannot be read: {error}", expected) from None
    if not rows:
        raise UserError(f"{str(path)!r} holds no rows", expected)
    for number, row in enumerate(rows, 1):
        for column in needed:
            if row.get(column) is None:
                found = ", ".join(str(key) for key in row if key is not None)
                raise UserError(f"row {number} of {str(path)!r} has no {column!r} (it has {found})", expected)
    return rows


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Texts may be longer than csv's limit, which is one for the whole process: other readers keep theirs."""
    before = csv.field_size_limit(2**24)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UserError(f"line {number} of {str(path)!r} is not a JSON object", "one object a line")
    return row
