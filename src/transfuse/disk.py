"""Which disk is full: the error of a write says that one is, and often not where."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transfuse.cache import cache_folder

OUT_OF_SPACE = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name))
_PARTIAL = re.compile(r"\.([^/\\]+)\.\d+\.partial$")  # see transfuse.atomic
_ROOM = 2**20  # bytes; a disk with less is full for us
_NOT_DISKS = ("efivarfs", "squashfs", "iso9660")  # always full


def out_of_space(error: OSError) -> str:
    """One line for an error with a number of `OUT_OF_SPACE`: what could not be written, or the folders to look at."""
    if error.filename is not None:
        place = repr(final_name(str(error.filename)))
    else:
        full = dict.fromkeys(str(folder) for folder in _places() if _is_full(folder))
        place = ", ".join(map(repr, full)) or f"a large file, or a quota; the cache is {str(cache_folder())!r}"
    return f"no space left on device ({place}); make room, or set TRANSFUSE_CACHE or TMPDIR to another folder"


def final_name(path: str) -> str:
    """What the user calls a file that is written under a temporary name first."""
    return _PARTIAL.sub(r"\1", path)


def _places() -> Iterator[Path]:
    """Where this process may have been writing: its usual folders, then every disk that can be written."""
    import psutil

    yield from (Path.cwd(), cache_folder(), Path(tempfile.gettempdir()))
    for disk in psutil.disk_partitions(all=True):
        if disk.fstype not in _NOT_DISKS and "ro" not in disk.opts.split(","):
            yield Path(disk.mountpoint)


def _is_full(folder: Path) -> bool:
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        usage = shutil.disk_usage(folder)
    except OSError:
        return False
    return usage.total > 0 and usage.free < _ROOM
