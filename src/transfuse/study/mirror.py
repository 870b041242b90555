"""A results folder that lies elsewhere (s3://, gs://, sftp://, ...), with a copy here that all commands work on.

Before a command reads, the copy is brought up to date; after a cell is finished, it is sent. A cell that could not be
sent stays in the copy and is sent the next time, so a network that is down costs nothing but a message.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfuse.atomic import replacing, write_text
from transfuse.cache import cache_folder
from transfuse.errors import MissingExtraError, UserError

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):(/+)(.*)")
_NOTE = ".mirror.json"  # which folder this copies, and which files were there when it was last seen
_KEPT = (".npz", ".json")  # in the order of sending: a cell is finished when its .json is there


def as_url(folder: Path | str) -> str | None:
    """The address in what was given as a folder, or None for a folder of this machine.

    Paths fold ``//`` into ``/``, so ``s3:/bucket`` counts as ``s3://bucket``.
    """
    found = _URL.fullmatch(str(folder))
    if found is None:
        return None
    scheme, _, rest = found.groups()
    return f"{scheme}://{'/' if scheme in ('file', 'local') else ''}{rest}".rstrip("/")


def mirror_at(folder: Path) -> Mirror | None:
    """The mirror whose copy this folder is."""
    try:
        return Mirror(json.loads((folder / _NOTE).read_text(encoding="utf-8"))["url"], folder)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def open_mirror(url: str) -> Mirror:
    """The mirror of an address, up to date.

    Raises:
        UserError: the address cannot be read, or its protocol needs a package that is missing.
    """
    mirror = Mirror(url, cache_folder() / "mirrors" / hashlib.sha256(url.encode()).hexdigest()[:16])
    mirror.pull()
    return mirror


@dataclass(frozen=True)
class Mirror:
    """A folder elsewhere and its copy here.

    Attributes:
        url: as fsspec knows it.
        folder: the copy.
    """

    url: str
    folder: Path

    def pull(self) -> None:
        """Fetch what is new there, forget what was removed there, send what had not been sent."""
        before = self._seen()
        with self._reached() as (system, root):
            there = self._there(system, root)
            for name in sorted(there - self._here()):
                with replacing(self.folder / name) as temporary:
                    system.get_file(f"{root}/{name}", str(temporary))
            for name in self._here() - there:
                if name in before:
                    (self.folder / name).unlink(missing_ok=True)
            self._note(there)
        for path in sorted(self.folder / name for name in self._here() - there if name.endswith(".json")):
            self.push(path)

    def push(self, path: Path) -> None:
        """Send a finished cell with its samples, and remove the stale ones of the same seed and settings there."""
        with self._reached() as (system, root):
            inside = path.relative_to(self.folder)
            system.makedirs(f"{root}/{inside.parent.as_posix()}", exist_ok=True)
            sent = set()
            for suffix in _KEPT:
                if path.with_suffix(suffix).exists():
                    sent.add(inside.with_suffix(suffix).as_posix())
                    self._send(system, root, inside.with_suffix(suffix).as_posix())
            there = self._there(system, root)
            stem, code = path.stem.rsplit("-", 1)
            for name in there:
                other = Path(name)
                if other.parent == inside.parent and other.stem.rsplit("-", 1)[0] == stem and code not in other.stem:
                    system.rm_file(f"{root}/{name}")
            self._note(self._there(system, root) | sent)

    def _send(self, system: Any, root: str, name: str) -> None:
        """Under another name first, so that nobody reads half a file."""
        system.put_file(str(self.folder / name), f"{root}/{name}.partial")
        system.mv(f"{root}/{name}.partial", f"{root}/{name}")

    @contextmanager
    def _reached(self) -> Iterator[tuple[Any, str]]:
        """The file system and the path in it; whatever goes wrong there is one line."""
        try:
            import fsspec
        except ImportError:
            raise MissingExtraError(f"a results folder at {self.url!r}", "remote", "fsspec") from None
        try:
            system, root = fsspec.core.url_to_fs(self.url)
            yield system, root.rstrip("/")
        except ImportError as error:
            raise UserError(f"results folder {self.url!r}: {error}", fix="install that package") from None
        except UserError:
            raise
        except Exception as error:  # each protocol has errors of its own
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            where = f"finished cells are safe in {str(self.folder)!r} and are sent the next time"
            raise UserError(f"results folder {self.url!r} cannot be reached: {reason}", fix=where) from None

    def _there(self, system: Any, root: str) -> set[str]:
        """Names of the files of cells, relative to the root."""
        system.invalidate_cache()
        if not system.exists(root):
            return set()
        found = (str(name).removeprefix(root).lstrip("/") for name in system.find(root))
        return {name for name in found if _is_cell(name)}

    def _here(self) -> set[str]:
        names = (path.relative_to(self.folder).as_posix() for path in self.folder.glob("*/*/seed*"))
        return {name for name in names if _is_cell(name)}

    def _seen(self) -> set[str]:
        try:
            return set(json.loads((self.folder / _NOTE).read_text(encoding="utf-8"))["seen"])
        except (OSError, ValueError, LookupError, TypeError):
            return set()

    def _note(self, there: set[str]) -> None:
        write_text(self.folder / _NOTE, json.dumps({"url": self.url, "seen": sorted(there)}))


def _is_cell(name: str) -> bool:
    """Study, scale and file, and nothing that points out of the folder."""
    parts = name.split("/")
    plain = len(parts) == 3 and not any(part.startswith(".") for part in parts)
    return plain and parts[2].startswith("seed") and parts[2].endswith(_KEPT)
