"""Text files that users name: read as UTF-8, or refused in one line."""

from __future__ import annotations

from pathlib import Path

from transfuse.errors import UserError


def read_utf8(path: Path | str, expected: str = "a readable text file") -> str:
    """The content of a user's file without a byte-order mark.

    Raises:
        UserError: the file is missing, may not be read, is a folder, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{str(path)!r}: {(error.strerror or 'cannot be read').lower()}", expected) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{str(path)!r} is not UTF-8 text (byte {error.start})", expected, "convert it, for example with iconv"
        ) from None
