"""`--results URL`: a results folder that fsspec reaches, with a copy here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from transfuse.errors import UserError
from transfuse.study.mirror import as_url, open_mirror

RUN = ("run", "mean_shift", "--scale", "quick", "--jobs", "1")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An empty folder in memory, and a cache folder of its own."""
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))
    MemoryFileSystem.store.clear()
    return "memory://bucket/runs"


def there(url: str) -> list[str]:
    system, root = fsspec.core.url_to_fs(url)
    return sorted(name.removeprefix(root).lstrip("/") for name in system.find(root))


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket/runs/", "s3://bucket/runs"),
        (Path("s3://bucket/runs"), "s3://bucket/runs"),
        (Path("file:///tmp/runs"), "file:///tmp/runs"),
        ("results", None),
        ("/tmp/a:b", None),
        ("results:small", None),
        ("C:/results", None),
    ],
)
def test_addresses_are_told_from_folders(given: Path | str, url: str | None) -> None:
    assert as_url(given) == url


def test_cells_are_sent_and_fetched(transfuse: Callable, bucket: str, tmp_path: Path, monkeypatch) -> None:
    done = transfuse(*RUN, "--seeds", "2", "--results", bucket)
    assert done.status == 0, done.err
    names = there(bucket)
    assert len([name for name in names if name.endswith(".json")]) == 2
    assert not [name for name in names if "partial" in name]
    again = transfuse(*RUN, "--seeds", "3", "--results", bucket)
    assert "1 of 3 to run" in again.out or "1 cell run" in again.out
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "another machine"))
    assert "mean_shift" in transfuse("status", "--results", bucket).out
    assert transfuse(*RUN, "--seeds", "3", "--results", bucket).out.count("nothing had to be run") == 1


def test_stale_cells_are_replaced_there(transfuse: Callable, bucket: str, tmp_path: Path) -> None:
    transfuse(*RUN, "--seeds", "1", "--results", bucket)
    (name,) = [name for name in there(bucket) if name.endswith(".json")]
    mirror = open_mirror(bucket)
    current, code = mirror.folder / name, Path(name).stem.rsplit("-", 1)[1]
    old = current.with_name(current.name.replace(code, "0" * len(code)))
    old.write_bytes(current.read_bytes())
    mirror.push(old)
    assert len([name for name in there(bucket) if name.endswith(".json")]) == 1
    mirror.push(current)
    assert [name for name in there(bucket) if name.endswith(".json")] == [name]


def test_what_was_removed_there_is_forgotten_here(transfuse: Callable, bucket: str) -> None:
    transfuse(*RUN, "--seeds", "2", "--results", bucket)
    system, root = fsspec.core.url_to_fs(bucket)
    for name in there(bucket):
        if "seed000" in name:
            system.rm_file(f"{root}/{name}")
    folder = open_mirror(bucket).folder
    assert {path.name[:7] for path in folder.glob("*/*/seed*.json")} == {"seed001"}


def test_network_that_is_down_stops_no_run(transfuse: Callable, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def refuse(*arguments: object, **options: object) -> None:
            raise ConnectionError("no route\nto host")

        patch.setattr(MemoryFileSystem, "put_file", refuse)
        done = transfuse(*RUN, "--seeds", "2", "--results", bucket)
        assert done.status == 0
        assert done.err.count("no route") == 2
        assert "sent the next time" in done.err
        assert there(bucket) == []
    transfuse("status", "--results", bucket)
    assert len([name for name in there(bucket) if name.endswith(".json")]) == 2


@pytest.mark.parametrize(("url", "says"), [("s4://bucket/x", "s4"), ("gs://b/x", "gcsfs"), ("memory://x", "403")])
def test_addresses_that_cannot_be_reached_are_one_line(
    transfuse: Callable, bucket: str, url: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError("403\nforbidden")

    monkeypatch.setattr(MemoryFileSystem, "exists", refuse)
    done = transfuse("status", "--results", url)
    assert done.status == 2
    assert says in done.err
    assert "Traceback" not in done.err


def test_names_that_point_out_of_the_folder_are_not_fetched(bucket: str) -> None:
    system, root = fsspec.core.url_to_fs(bucket)
    for name in ("a/b/seed000-x-y.json", "../../seed001-x-y.json", "a/../seed002-x-y.json", "a/b/c/seed003.json"):
        system.pipe_file(f"{root}/{name}", b"{}")
    folder = open_mirror(bucket).folder
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("seed*")]
    assert found == ["a/b/seed000-x-y.json"]


def test_unknown_protocol_is_named(bucket: str) -> None:
    with pytest.raises(UserError, match="nonsense"):
        open_mirror("nonsense://x")
