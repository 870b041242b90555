"""The stage cache: made once, made again after damage or a change, and never by two at once."""

from __future__ import annotations

import functools
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError

from transfuse.cache import cache_folder
from transfuse.study import stage as module
from transfuse.study.stage import Stages
from transfuse.study.store import StorageError


class Made:
    """Counts how often it is called."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, value: float = 1.0) -> dict[str, np.ndarray]:
        self.count += 1
        return {"x": np.arange(4.0) * value, "n": np.array([3], dtype=np.int64)}


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_made_once_and_read_back_bit_for_bit(tmp_path: Path) -> None:
    make = Made()
    first = Stages(tmp_path)("s", make, inputs={"seed": 0})
    second = Stages(tmp_path)("s", make, inputs={"seed": 0})
    assert make.count == 1
    for key in first:
        assert second[key].dtype == first[key].dtype and np.array_equal(second[key], first[key])
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_as_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    shared = torch.ones(2, 3).to(dtype)
    made = {"w": shared.T, "again": shared, "b": torch.zeros(0)}  # transposed, shared memory, empty
    Stages(tmp_path)("t", lambda: made, inputs={})
    found = Stages(tmp_path)("t", lambda: pytest.fail("made twice"), inputs={})
    assert all(torch.equal(found[key], made[key]) and found[key].dtype == made[key].dtype for key in made)


def test_other_inputs_names_and_code_are_other_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, stage = Made(), Stages(tmp_path)
    stage("s", make, inputs={"seed": 0})
    stage("s", make, inputs={"seed": 1})
    stage("other", make, inputs={"seed": 0})
    monkeypatch.setattr(module, "fingerprint", lambda name: "changed")
    stage("s", make, inputs={"seed": 0})
    assert make.count == len(files(tmp_path)) == 4


def test_large_arrays_among_the_inputs_are_told_apart(tmp_path: Path) -> None:
    make, stage = Made(), Stages(tmp_path)
    x = np.zeros(5000)
    y = x.copy()
    y[2500] = 1  # NumPy's text of both is the same
    for array in (x, y, torch.from_numpy(x.copy()).float(), x.copy()):
        stage("s", make, inputs={"x": array})
    assert make.count == 3


def test_a_partial_function_has_the_code_of_its_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "fingerprint", lambda name: asked.append(name) or "code")

    def make(value: float) -> dict[str, np.ndarray]:
        return {"x": np.array([value])}

    Stages(tmp_path)("s", functools.partial(functools.partial(make), 2.0), inputs={})
    assert asked == [__name__]


@pytest.mark.parametrize("damage", [b"", b"\x00" * 5, None])
def test_a_truncated_file_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    make, stage = Made(), Stages(tmp_path)
    good = stage("s", make, inputs={})
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    again = stage("s", make, inputs={})
    assert make.count == 2
    assert np.array_equal(again["x"], good["x"])


@pytest.mark.parametrize("made", [{"x": np.arange(4.0)}, {"w": torch.ones(2, 3)}], ids=["arrays", "tensors"])
def test_a_file_cut_off_anywhere_is_made_anew(tmp_path: Path, made: dict) -> None:
    def make() -> dict:
        return made

    key = next(iter(made))
    Stages(tmp_path)("s", make, inputs={})
    (path,) = files(tmp_path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert module._load(path) is None, length
        assert (Stages(tmp_path)("s", make, inputs={})[key] == made[key]).all()
        assert path.read_bytes() == content


def test_what_a_killed_run_left_is_removed_and_its_lock_is_free(tmp_path: Path) -> None:
    make, stage = Made(), Stages(tmp_path)
    stage("s", make, inputs={})
    (path,) = files(tmp_path)
    path.unlink()
    leftover = path.with_name(f".{path.name}.{os.getpid()}.partial")  # a killed writer's number may be in use again
    leftover.write_bytes(b"half")
    child = os.fork()
    if child == 0:  # dies with the lock in its hands
        lock = FileLock(f"{path}.lock")
        lock.acquire()
        os._exit(9)
    os.waitpid(child, 0)
    stage("s", make, inputs={})
    assert make.count == 2 and files(tmp_path) == [path] and not leftover.exists()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(path: Path, arrays: dict) -> None:
        with module.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    monkeypatch.setattr(module, "_save", full)
    with pytest.raises(StorageError, match=r"^cannot write .*No space left on device; .*TRANSFUSE_CACHE"):
        Stages(tmp_path)("s", Made(), inputs={})
    assert files(tmp_path) == [] and not list(tmp_path.rglob("*.partial"))


def test_an_unwritable_cache_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "stages").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cannot write"):
        Stages(tmp_path)("s", Made(), inputs={})


def test_an_error_while_making_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Stages(tmp_path)("s", lambda: {"x": np.array([1 / 0])}, inputs={})
    assert files(tmp_path) == []
    assert Stages(tmp_path)("s", Made(), inputs={})["n"] == [3]


def test_switched_off_it_makes_every_time(tmp_path: Path) -> None:
    make = Made()
    for _ in range(2):
        Stages(tmp_path, enabled=False)("s", make, inputs={})
    assert make.count == 2 and files(tmp_path) == []


def _slowly(folder: Path) -> None:
    def make() -> dict[str, np.ndarray]:
        with (folder / "made").open("a") as file:
            file.write("once\n")
        time.sleep(0.3)
        return {"x": np.ones(3)}

    assert Stages(folder)("s", make, inputs={})["x"].sum() == 3


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # spawning would cost seconds of imports
    processes = [context.Process(target=_slowly, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "made").read_text() == "once\n"


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TRANSFUSE_CACHE")
    assert "transfuse" in str(cache_folder())
