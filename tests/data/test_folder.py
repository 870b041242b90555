"""The data folder: packed or not, verified, fetched whole or not at all, and nothing asked of the network."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import pytest

from transfuse.data import folder
from transfuse.data.folder import (
    DataFile,
    DataSet,
    address,
    data_folder,
    data_set,
    fetch,
    find,
    manifest,
    missing_files,
    read_bytes,
    read_text,
)
from transfuse.errors import UserError

CONTENT = {"train.tsv": "a\t1\nß\t2\n".encode(), "test.tsv": b""}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and a manifest of one set."""
    files = tuple(
        DataFile(name, f"data/{name}", len(content), hashlib.sha256(content).hexdigest())
        for name, content in CONTENT.items()
    )
    known = DataSet("toy", "Toy", "owner/name", "c" * 40, "CC0-1.0", "A. Author 2024", files)
    monkeypatch.setattr(folder, "manifest", lambda: {"toy": known})
    monkeypatch.setattr(folder, "_download", lambda url: pytest.fail(f"asked the network for {url}"))
    monkeypatch.setenv("TRANSFUSE_DATA", str(tmp_path))
    return tmp_path


def put(place: Path, name: str, content: bytes, packed: bool = False) -> Path:
    path = place / "toy" / (name + (".gz" if packed else ""))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_files_are_read_as_what_they_hold(place: Path, packed: bool) -> None:
    path = put(place, "train.tsv", CONTENT["train.tsv"], packed)
    assert find("toy", "train.tsv") == path
    assert read_bytes("toy", "train.tsv") == CONTENT["train.tsv"]
    assert read_text("toy", "train.tsv") == "a\t1\nß\t2\n"
    assert missing_files("toy") == ["test.tsv"]


def test_a_missing_file_says_what_to_type(place: Path) -> None:
    with pytest.raises(UserError, match="transfuse data get toy") as caught:
        read_bytes("toy", "train.tsv")
    assert "TRANSFUSE_DATA" in str(caught.value) and "\n" not in str(caught.value)


def test_other_content_is_refused(place: Path) -> None:
    put(place, "train.tsv", b"something else")
    with pytest.raises(UserError, match="sha256 differs, 14 bytes"):
        read_bytes("toy", "train.tsv")


@pytest.mark.parametrize(
    "content", [b"not gzip", b"", b"\x1f\x8b\x08", gzip.compress(b"x" * 999, mtime=0)[:-10]], ids=range(4)
)
def test_damaged_archives_are_one_line(place: Path, content: bytes) -> None:
    put(place, "train.tsv", b"").with_name("train.tsv.gz").write_bytes(content)
    (place / "toy" / "train.tsv").unlink()
    with pytest.raises(UserError) as caught:
        read_bytes("toy", "train.tsv")
    assert "\n" not in str(caught.value)


def test_unknown_sets_are_answered_with_the_nearest_known_one() -> None:
    with pytest.raises(UserError, match="did you mean 'toy'"):
        data_set("toyy")
    with pytest.raises(KeyError, match="has no file"):
        data_set("toy").file("absent")


def test_fetching_takes_only_what_is_missing_from_the_pinned_commit(place: Path) -> None:
    put(place, "test.tsv", b"")
    asked = []

    def upstream(url: str) -> bytes:
        asked.append(url)
        return CONTENT["train.tsv"]

    assert fetch("toy", upstream) == [place / "toy" / "train.tsv"]
    assert asked == [address(data_set("toy"), data_set("toy").file("train.tsv"))]
    assert "c" * 40 in asked[0] and asked[0].endswith("owner/name/" + "c" * 40 + "/data/train.tsv")
    assert fetch("toy", upstream) == [] and missing_files("toy") == []


def test_a_wrong_download_leaves_nothing_behind(place: Path) -> None:
    with pytest.raises(UserError, match="something else than the manifest names"):
        fetch("toy", lambda url: b"<html>not found</html>")
    assert [path for path in place.rglob("*") if path.is_file()] == []


def test_the_digest_follows_the_content() -> None:
    known = data_set("toy")
    other = DataSet(**{**known.__dict__, "files": known.files[:1]})
    assert known.digest() != other.digest()
    assert re.fullmatch("[0-9a-f]{16}", known.digest())


def test_the_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    assert data_folder() == place
    monkeypatch.delenv("TRANSFUSE_DATA")
    assert "transfuse" in str(data_folder())


def test_the_manifest_of_this_package_is_complete() -> None:
    for known in manifest().values():  # imported before the fixture put another in its place
        assert re.fullmatch(r"[0-9a-f]{40}|v\d[\w.]*", known.commit), known.id  # a tag may move; the sha256 may not
        assert known.licence and known.citation and known.title and known.files
        for file in known.files:
            assert re.fullmatch("[0-9a-f]{64}", file.sha256) and file.bytes >= 0
            assert not Path(file.name).is_absolute() and ".." not in Path(file.name).parts
