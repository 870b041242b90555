"""The stage cache: made once, made again after damage or a change, and never by two at once."""

from __future__ import annotations

import functools
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from transfuse.cache import cache_folder
from transfuse.study import stage as module
from transfuse.study.stage import Stages


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
