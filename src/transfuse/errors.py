"""Errors that are the user's to mend: one line, no traceback, exit status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something was asked for that cannot be done as asked.

    Args:
        given: what was found, quoted where it is the user's own word.
        expected: what would have been right; empty where `given` already says it.
        fix: what to type or change.
    """

    def __init__(self, given: str, expected: str = "", fix: str = "") -> None:
        self.given, self.expected, self.fix = given, expected, fix
        parts = [given]
        if expected:
            parts.append(f"expected {expected}")
        if fix:
            parts.append(fix)
        super().__init__(" ".join("; ".join(parts).split()))


class MissingExtraError(UserError):
    """A host that a method needs is not installed."""

    def __init__(self, what: str, extra: str, missing: str) -> None:
        super().__init__(
            f"{what} needs the package {missing!r}, which is not installed",
            fix=f"type: pip install 'transfuse[{extra}]'",
        )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A closing hint such as ``did you mean 'lemon'?``, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""
