"""Cells on disk: whole or not there, stale ones replaced, and garbage never fatal."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transfuse import atomic
from transfuse.atomic import replacing, write_text
from transfuse.errors import UserError
from transfuse.study import Measurement
from transfuse.study.store import Cell, CellSpec, Store, read_samples


def cell(seed: int = 0, code: str = "a" * 16, settings: dict[str, Any] | None = None, value: float = 0.5) -> Cell:
    spec = CellSpec("toy", "small", seed, settings or {"epochs": 3}, {"digits": "d1"}, code)
    measurements = (
        Measurement("a", "score", value, {"shift": "semantic", "noise": 0.5}, per_sample=np.arange(3.0)),
        Measurement("a", "score", value, {}, per_sample=np.array([True, False])),
        Measurement("b", "loss", -1e-300, step=7),
    )
    return Cell(spec, measurements, {"wall_s": 1.5}, {"python": "3.11", "versions": {}}, ("a warning",))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store, written = Store(tmp_path), cell()
    assert not store.has(written.spec)
    path = store.write(written)
    assert store.has(written.spec)
    found = store.read(path)
    assert found.spec == written.spec
    assert [(m.arm, m.metric, m.value, dict(m.where), m.step) for m in found.measurements] == [
        (m.arm, m.metric, m.value, dict(m.where), m.step) for m in written.measurements
    ]
    assert (found.cost, found.warnings, found.path) == (written.cost, written.warnings, path)


def test_samples_lie_beside_the_cell_and_come_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    samples = read_samples(store.read(store.write(cell())))
    assert set(samples) == {'a|score|{"noise": 0.5, "shift": "semantic"}', "a|score|{}"}
    assert samples["a|score|{}"].dtype == bool
    assert np.array_equal(samples['a|score|{"noise": 0.5, "shift": "semantic"}'], np.arange(3.0))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", "truncated", "absent"])
def test_damaged_samples_are_as_good_as_none(tmp_path: Path, damage: bytes | str) -> None:
    path = Store(tmp_path).write(cell()).with_suffix(".npz")
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(damage if isinstance(damage, bytes) else path.read_bytes()[:-30])
    assert read_samples(Store(tmp_path).read(path.with_suffix(".json"))) == {}


def test_pickles_among_the_samples_are_not_loaded(tmp_path: Path) -> None:
    path = Store(tmp_path).write(cell()).with_suffix(".npz")
    np.savez(path, x=np.array([object()], dtype=object))
    assert read_samples(Store(tmp_path).read(path.with_suffix(".json"))) == {}


def test_a_crash_before_the_rename_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x" / "file"
    write_text(path, "old")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "fsync", crash)  # written, not yet renamed
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_killed_writer_leaves_no_cell(tmp_path: Path) -> None:
    store = Store(tmp_path)
    child = os.fork()
    if child == 0:  # dies like a machine that loses power: no cleaning up
        with replacing(store.path(cell().spec)) as temporary:
            temporary.write_text('{"format": 1')
            os._exit(9)
    os.waitpid(child, 0)
    assert not store.has(cell().spec)
    assert list(store.cells()) == store.unreadable() == []
    store.write(cell())
    assert len(list(store.cells())) == 1


def test_a_cell_is_there_only_after_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(UserError, match=r"No space left.*--results"):
        Store(tmp_path).write(cell())
    assert not Store(tmp_path).has(cell().spec)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Store(tmp_path).write(cell(value=math.nan))
    assert not Store(tmp_path).has(cell().spec)


def test_a_new_cell_takes_the_place_of_stale_ones_of_its_own_kind_only(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, other_seed = store.write(cell(code="b" * 16)), store.write(cell(seed=1, code="b" * 16))
    other_settings = store.write(cell(code="b" * 16, settings={"epochs": 4}))
    new = store.write(cell())
    assert not old.exists() and not old.with_suffix(".npz").exists()
    assert all(path.exists() for path in (new, other_seed, other_settings))


def test_the_key_follows_settings_and_data_but_not_their_order() -> None:
    spec = cell(settings={"a": 1, "b": 2}).spec
    assert spec.key == cell(settings={"b": 2, "a": 1}).spec.key
    assert spec.key != cell(settings={"a": 1, "b": 3}).spec.key
    assert spec.key != CellSpec("toy", "small", 0, spec.settings, {"digits": "d2"}, spec.code).key
    assert spec.key == CellSpec("toy", "public", 0, spec.settings, spec.data, "other").key  # these are in the path


def garbled(tmp_path: Path, text: str | bytes) -> Store:
    """A store with one good cell and one bad file."""
    store = Store(tmp_path)
    store.write(cell())
    bad = store.path(cell(seed=1).spec)
    bad.write_bytes(text if isinstance(text, bytes) else text.encode())
    return store


GOOD = json.dumps(json.loads('{"format": 1, "study": "toy", "scale": "small", "seed": 1, "code": "c"}'))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"text"',
        b"\xff\xfe",
        GOOD,
        "[" * 100_000,
        "1" * 5000,
        '{"format": 2}',
        '{"format": 1, "study": {}}',
    ],
)
def test_garbage_is_reported_and_the_rest_stays_readable(tmp_path: Path, text: str | bytes) -> None:
    store = garbled(tmp_path, text)
    assert [found.spec.seed for found in store.cells()] == [0]
    assert store.unreadable() == [store.path(cell(seed=1).spec)]
    assert not store.has(cell(seed=1).spec)
    with pytest.raises(UserError, match="delete it and run again") as caught:
        store.read(store.unreadable()[0])
    assert "\n" not in str(caught.value)


def edited(tmp_path: Path, **changes: Any) -> bool:
    """Whether a cell is still readable after an edit of its JSON."""
    path = Store(tmp_path).write(cell())
    table = json.loads(path.read_text())
    table.update(changes)
    path.write_text(json.dumps(table))
    return not Store(tmp_path).unreadable()


@pytest.mark.parametrize(
    "changes",
    [
        {"measurements": [["a", "m", math.nan, {}]]},
        {"measurements": [["a", "m", math.inf, {}]]},
        {"measurements": [["a", "m", "high", {}]]},
        {"measurements": [["a", "m", 10**400, {}]]},
        {"measurements": [["a", "m", 1.0, []]]},
        {"measurements": [["a", "m", 1.0, {"shift": ["x"]}]]},
        {"measurements": [["a", "m", 1.0, {}, math.nan]]},
        {"measurements": [["a", "m", 1.0, {}, "first"]]},
        {"measurements": [[None, "m", 1.0, {}]]},
        {"measurements": [[]]},
        {"measurements": 3},
        {"scale": "huge"},
        {"seed": "0"},
        {"seed": -1},
        {"settings": []},
        {"cost": {"wall_s": "long"}},
        {"environment": None},
        {"environment": {"versions": 3}},
        {"warnings": [3]},
        {"study": 3},
    ],
)
def test_wrong_types_make_a_cell_unreadable_rather_than_a_later_crash(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert edited(tmp_path)
    assert not edited(tmp_path, **changes)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
keys = st.sampled_from(
    ["format", "study", "scale", "seed", "code", "settings", "data", "cost", "environment", "warnings", "measurements"]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(keys, json_values, max_size=3) | st.fixed_dictionaries({"measurements": json_values}))
def test_any_edit_gives_a_readable_cell_or_a_listed_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    readable = edited(tmp_path, **changes)
    for found in Store(tmp_path).cells():
        assert readable and all(math.isfinite(m.value) for m in found.measurements)
        assert found.spec.key and found.spec.name


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.integers(0, 400))
def test_any_damage_to_the_bytes_is_survived(tmp_path: Path, noise: bytes, place: int) -> None:
    path = Store(tmp_path).write(cell())
    content = path.read_bytes()
    path.write_bytes(content[:place] + noise + content[place + len(noise) :])
    assert len(list(Store(tmp_path).cells())) + len(Store(tmp_path).unreadable()) == 1


def test_a_cell_cut_off_anywhere_is_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.write(cell())
    content = path.read_bytes()
    for length in range(len(content) - 1):  # the last byte is a line break
        path.write_bytes(content[:length])
        assert not store.has(cell().spec) and store.unreadable() == [path], content[:length]


def test_samples_cut_off_anywhere_are_as_good_as_none(tmp_path: Path) -> None:
    path = Store(tmp_path).write(cell())
    samples = path.with_suffix(".npz")
    content = samples.read_bytes()
    for length in range(len(content)):
        samples.write_bytes(content[:length])
        assert read_samples(Store(tmp_path).read(path)) == {}


def test_a_copy_of_another_cell_does_not_count(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.write(cell())
    shutil.copy(first, store.path(cell(seed=1).spec))
    assert store.has(cell().spec) and not store.has(cell(seed=1).spec)
    store.write(cell(seed=1))
    assert store.has(cell(seed=1).spec)


def test_a_dangling_link_is_listed_and_a_file_that_has_just_gone_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    path = store.write(cell())
    link = store.path(cell(seed=1).spec)
    link.symlink_to(tmp_path / "nowhere")
    assert [found.path for found in store.cells()] == [path] and store.unreadable() == [link]
    gone = store.path(cell(seed=2).spec)
    monkeypatch.setattr(Store, "_paths", lambda *_: [gone, path])  # another run replaced it after the folder was read
    assert [found.path for found in store.cells()] == [path] and store.unreadable() == []


@pytest.mark.parametrize(
    ("writer", "abandoned"),
    [("dead", True), ("uncollected", True), ("reused", True), ("alive", False), ("x", False), ("9" * 30, False)],
)
def test_only_what_a_killed_writer_left_is_removed(tmp_path: Path, writer: str, abandoned: bool) -> None:
    """In containers nobody may collect the dead, and numbers come round soon."""
    child = os.fork() if writer in ("dead", "uncollected") else 0
    if child == 0 and writer in ("dead", "uncollected"):
        os._exit(0)
    if writer == "dead":
        os.waitpid(child, 0)
    number = child or (writer if writer.isdigit() or writer == "x" else os.getpid())
    store = Store(tmp_path)
    path = store.path(cell(code="b" * 16).spec)  # the code may have changed since
    leftover = path.with_name(f".{path.name}.{number}.partial")
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    if writer == "uncollected":
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # dead, and left lying
    if writer == "reused":
        os.utime(leftover, (1e9, 1e9))  # long before this process began
    store.write(cell())
    assert leftover.exists() != abandoned
    if writer == "uncollected":
        os.waitpid(child, 0)


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "toy").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write"):
        Store(tmp_path).write(cell())
