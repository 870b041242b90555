"""The data folder: ``$TRANSFUSE_DATA/<set>/<file>``, verified against the manifest that ships with the package.

A file may lie there as it is or with ``.gz`` behind its name; both read as what they hold.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tomllib
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transfuse.atomic import replacing
from transfuse.errors import UserError, did_you_mean


@dataclass(frozen=True)
class DataFile:
    """One file: its name, its path upstream, and size and sha256 of its unpacked content."""

    name: str
    upstream: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class DataSet:
    """One data set as the manifest describes it."""

    id: str
    title: str
    repository: str
    commit: str
    licence: str
    citation: str
    files: tuple[DataFile, ...]

    def digest(self) -> str:
        """One hash for the content of all files: part of a cell's key."""
        return hashlib.sha256("".join(file.sha256 for file in self.files).encode()).hexdigest()[:16]

    def file(self, name: str) -> DataFile:
        for file in self.files:
            if file.name == name:
                return file
        raise KeyError(f"data set {self.id!r} has no file {name!r}")


@cache
def manifest() -> dict[str, DataSet]:
    """All known data sets by id."""
    table = tomllib.loads(Path(__file__).with_name("manifest.toml").read_text(encoding="utf-8"))
    return {
        set_id: DataSet(id=set_id, **{**entry, "files": tuple(DataFile(**file) for file in entry["files"])})
        for set_id, entry in table.items()
    }


def data_set(set_id: str) -> DataSet:
    """One entry of the manifest, or a clear error."""
    if set_id not in manifest():
        hint = did_you_mean(set_id, manifest()) or "transfuse data list shows all"
        raise UserError(f"unknown data set {set_id!r}", fix=hint)
    return manifest()[set_id]


def data_folder() -> Path:
    """``$TRANSFUSE_DATA``, or the user's data folder."""
    if folder := os.environ.get("TRANSFUSE_DATA"):
        return Path(folder)
    import platformdirs

    return Path(platformdirs.user_data_dir("transfuse"))


def find(set_id: str, name: str) -> Path | None:
    """Where a file lies, packed or not; None if it is not there."""
    plain = data_folder() / set_id / name
    packed = plain.with_name(plain.name + ".gz")
    return plain if plain.is_file() else packed if packed.is_file() else None


def missing_files(set_id: str) -> list[str]:
    """The files of a set that are not in the data folder."""
    return [file.name for file in data_set(set_id).files if find(set_id, file.name) is None]


def read_bytes(set_id: str, name: str) -> bytes:
    """The unpacked, verified content of a file.

    Raises:
        UserError: the file is missing, damaged, or not the version that the manifest names.
    """
    path = find(set_id, name)
    if path is None:
        raise UserError(
            f"data set {set_id!r} is not in {str(data_folder())!r} (no {name})",
            fix=f"type: transfuse data get {set_id}, or set TRANSFUSE_DATA to a folder that has it",
        )
    content = _unpack(path)
    expected = data_set(set_id).file(name)
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        raise UserError(
            f"{str(path)!r} is not the file that the manifest names (its sha256 differs, {len(content)} bytes)",
            f"{expected.bytes} bytes",
            f"delete it and type: transfuse data get {set_id}",
        )
    return content


def read_text(set_id: str, name: str, encoding: str = "utf-8") -> str:
    """As `read_bytes`, decoded."""
    return read_bytes(set_id, name).decode(encoding)


def _unpack(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}", fix="delete it and fetch it again") from None


def address(set_: DataSet, file: DataFile) -> str:
    """Where `transfuse data get` fetches a file from: the repository at its pinned commit."""
    return f"https://raw.githubusercontent.com/{set_.repository}/{set_.commit}/{file.upstream}"


def fetch(set_id: str, open_address: Callable[[str], bytes] | None = None) -> list[Path]:
    """Download what is missing of a set; each file is verified before it takes its name.

    Args:
        set_id: a set of the manifest.
        open_address: returns the bytes behind an address; the network by default.
    """
    set_ = data_set(set_id)
    fetched = []
    for file in set_.files:
        if find(set_id, file.name) is not None:
            continue
        content = (open_address or _download)(address(set_, file))
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise UserError(f"{address(set_, file)} sent something else than the manifest names", "the pinned file")
        path = data_folder() / set_id / file.name
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        fetched.append(path)
    return fetched


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.read()
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"cannot fetch {url}: {reason}", fix="check the network, or set TRANSFUSE_DATA") from None
