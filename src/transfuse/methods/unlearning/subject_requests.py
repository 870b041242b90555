"""Whom an edit of names is about: from names, from rows with a subject, or from a JSONL file of such rows.

>>> rows = [{"subject": "Ann Lee", "aliases": ["A. Lee"], "prompt": "Where was Ann Lee born?", "answer": "Leeds"}]
>>> redirections(rows, to="a sailor")
{'Ann Lee': 'a sailor', 'A. Lee': 'a sailor'}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transfuse.errors import UserError
from transfuse.user_file import read_utf8

_LINE = 'one object a line with "subject", and "to" and "aliases" where wanted'


def redirections(forget: Sequence[str | Mapping[str, Any]], to: str | None = None) -> dict[str, str | None]:
    """Name -> what is perceived instead, aliases included, each name once and in order.

    Args:
        forget: names, or rows with "subject" and, where wanted, "to" (else the argument) and "aliases". Other fields,
            such as a question and its answer, are not needed: an edit of names removes all that is known under them.
        to: for names and rows that do not say.
    """
    found: dict[str, str | None] = {}
    for item in forget:
        row = {"subject": item} if isinstance(item, str) else item
        names = [row.get("subject"), *_aliases(row)]
        wanted = row.get("to") or to
        for name in names:
            if not isinstance(name, str) or not name.strip():
                raise UserError(f"a row with subject {name!r}", "the subject's name, as it stands in text")
            if found.setdefault(name.strip(), wanted) != wanted:
                raise UserError(
                    f"{name.strip()!r} redirected to {found[name.strip()]!r} and to {wanted!r}", "one of them"
                )
    if not found:
        raise UserError("nobody to forget", "at least one name")
    return found


def read_requests(path: Path | str) -> list[dict[str, Any]]:
    """Rows of a JSONL file; blank lines are left out.

    Raises:
        UserError: the file is missing, empty, or a line is no object with a subject.
    """
    rows = []
    for number, line in enumerate(read_utf8(path, f"a JSONL file, {_LINE}").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not row.get("subject"):
            raise UserError(f"line {number} of {str(path)!r} has no subject", _LINE)
        rows.append(row)
    if not rows:
        raise UserError(f"{str(path)!r} is empty", _LINE)
    return rows


def _aliases(row: Mapping[str, Any]) -> list[Any]:
    aliases = row.get("aliases") or []
    if isinstance(aliases, str) or not isinstance(aliases, Sequence):
        raise UserError(f"aliases {aliases!r}", "a list of names")
    return list(aliases)
