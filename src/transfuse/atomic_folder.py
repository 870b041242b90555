"""Folders that are either whole or not there: filled under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transfuse.errors import UserError


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends well; after an error nothing is left.

    Raises:
        UserError: `out` is there already and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {str(out)!r} is there already", "a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield temporary
        if out.is_dir():
            out.rmdir()
        temporary.chmod(0o755)  # a temporary folder is its owner's alone
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
