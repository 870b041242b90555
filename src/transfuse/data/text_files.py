"""Text files of the user's own: CSV, TSV or JSONL with a column `text` (and `label`), or plain lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfuse.atomic import replacing
from transfuse.errors import UserError
from transfuse.user_file import read_utf8


def read_labelled(path: Path | str) -> tuple[list[str], list[str]]:
    """Texts and labels of a CSV, TSV or JSONL file with the columns `text` and `label`.

    Raises:
        UserError: the file is missing, empty, of another kind, or a row lacks a column.
    """
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".tsv", ".jsonl"):
        raise UserError(f"{str(path)!r} has no labels", "a .csv, .tsv or .jsonl file with columns text and label")
    rows = _rows(path, ("text", "label"))
    return [str(row["text"]) for row in rows], [str(row["label"]) for row in rows]


def read_texts(path: Path | str) -> list[str]:
    """Texts of a CSV, TSV or JSONL file with a column `text`; of any other file, its lines. Empty ones are left out."""
    path = Path(path)
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl"):
        texts = [str(row["text"]) for row in _rows(path, ("text",))]
    else:
        texts = read_utf8(path).split("\n")
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise UserError(f"{str(path)!r} holds no texts", "one text a line, or a column text")
    return texts


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write rows as JSONL if the name ends so, else as CSV; the file is whole or not there."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        if path.suffix.lower() == ".jsonl":
            file.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
        else:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)


def _rows(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    content = read_utf8(path)
    if path.suffix.lower() == ".jsonl":
        rows = [_object(path, number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    else:
        csv.field_size_limit(2**24)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        try:
            rows = list(csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter))
        except csv.Error as error:
            raise UserError(f"{str(path)!r} cannot be read: {error}", f"columns {' and '.join(needed)}") from None
    if not rows:
        raise UserError(f"{str(path)!r} holds no rows", f"columns {' and '.join(needed)}")
    for number, row in enumerate(rows, 1):
        for column in needed:
            if row.get(column) is None:
                found = ", ".join(str(key) for key in row if key is not None)
                raise UserError(
                    f"row {number} of {str(path)!r} has no {column!r} (it has {found})",
                    f"columns {' and '.join(needed)}",
                )
    return [row for row in rows if str(row["text"]).strip()]


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UserError(f"line {number} of {str(path)!r} is not a JSON object", "one object a line")
    return row
