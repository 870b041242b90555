"""`transfuse export`: every measurement once, with its conditions, and verdicts for the card of a model."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from transfuse.registry import load_registry
from transfuse.study.design import Measurement
from transfuse.study.launch import Job, work
from transfuse.study.measurement_table import column_names, measurement_rows, write_parquet
from transfuse.study.plan import make_plan
from transfuse.study.store import Cell, CellSpec, Store

FIXED = ["study", "scale", "seed", "arm", "metric", "value", "step", "better", "unit", "key", "code", "stale"]


@pytest.fixture(scope="module")
def stored(plugin_path: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seeds of the toy study at scale small and one at quick."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFUSE_CACHE", str(folder / "cache"))
        for scale in ("small", "quick"):
            plan = make_plan([load_registry()["mean_shift"]], Store(folder / "results"), scale=scale)
            assert all(work(spec, Job(folder / "results")).path for spec in plan.pending)
    return folder / "results"


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_holds_every_measurement_to_the_last_bit(stored: Path, transfuse: Callable) -> None:
    done = transfuse("export", "--results", stored)
    assert done.status == 0 and done.err == ""
    rows = read(done.out)
    expected = [
        (cell.spec.scale, str(cell.spec.seed), m.arm, m.metric, m.value, m.step)
        for cell in Store(stored).cells()
        for m in cell.measurements
    ]
    found = [
        (r["scale"], r["seed"], r["arm"], r["metric"], float(r["value"]), float(r["step"]) if r["step"] else None)
        for r in rows
    ]
    assert len(found) == 24 and found == expected
    assert list(rows[0]) == FIXED
    assert {(r["better"], r["unit"], r["stale"]) for r in rows} == {("lower", "mm", "False")}


def test_a_choice_of_scale_and_method_goes_to_a_file(stored: Path, transfuse: Callable, workplace: Path) -> None:
    done = transfuse("export", "mean_shift", "--scale", "quick", "--out", "sub/table.csv", "--results", stored)
    assert done.out == "4 measurements of 1 cell written: sub/table.csv\n"
    assert {row["scale"] for row in read(Path("sub/table.csv").read_text(encoding="utf-8"))} == {"quick"}
    done = transfuse("export", "--scale", "public", "--results", stored)
    assert done.status == 2 and "no cell" in done.err and "transfuse status" in done.err


def test_stale_cells_and_unknown_studies_say_so(stored: Path, transfuse: Callable, workplace: Path) -> None:
    shutil.copytree(stored, "results")
    for path in Path("results").rglob("seed00[01]*.json"):
        cell = json.loads(path.read_text(encoding="utf-8"))
        changed = {"code": "0" * 16} if cell["seed"] == 0 else {"study": "gone"}
        path.write_text(json.dumps(cell | changed), encoding="utf-8")
    rows = read(transfuse("export").out)
    assert {(r["study"], r["seed"], r["stale"], r["better"]) for r in rows if r["seed"] in "012"} == {
        ("mean_shift", "0", "True", "lower"),
        ("gone", "1", "", ""),
        ("mean_shift", "2", "False", "lower"),
    }


def conditions_cell() -> Cell:
    measurements = (
        Measurement("a", "m", 1.0, {"samples": 3, "shift": "near", "noise": 1}),
        Measurement("a", "m", 2.0, {"noise": 0.5, "mixed": 3}),
        Measurement("a", "m", 3.0, {"mixed": "three"}, step=0.5),
    )
    return Cell(CellSpec("gone", "small", 0, {}, {}, "code"), measurements, {}, {})


def test_conditions_are_columns() -> None:
    rows = measurement_rows([conditions_cell()], load_registry())
    assert column_names(rows) == [*FIXED, "where.mixed", "where.noise", "where.samples", "where.shift"]
    assert rows[0]["where.samples"] == 3 and "where.samples" not in rows[1]


@pytest.fixture
def arrow(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """A stand-in for pyarrow that refuses what Arrow refuses: columns of several types or lengths."""
    written: dict[str, list[Any]] = {}
    pyarrow, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")

    def table(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        assert len({len(values) for values in columns.values()}) == 1
        for name, values in columns.items():
            assert len({type(value) for value in values if value is not None}) <= 1, name
        return columns

    def write_table(columns: dict[str, list[Any]], path: Path) -> None:
        path.write_bytes(b"PAR1")
        written.update(columns)

    pyarrow.table, parquet.write_table, pyarrow.parquet = table, write_table, parquet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", pyarrow)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    return written


def test_parquet_by_the_name_of_the_file(arrow: dict, stored: Path, transfuse: Callable, workplace: Path) -> None:
    done = transfuse("export", "--out", "table.parquet", "--results", stored)
    assert done.status == 0 and "24 measurements of 6 cells" in done.out, done.err
    assert Path("table.parquet").read_bytes() == b"PAR1"
    assert [path.name for path in workplace.iterdir()] == ["table.parquet"]
    assert arrow["seed"][:4] == [0] * 4 and arrow["step"][3] == 1.0 and arrow["step"][0] is None


def test_parquet_columns_have_one_type(arrow: dict, tmp_path: Path) -> None:
    write_parquet(measurement_rows([conditions_cell()], load_registry()), tmp_path / "table.parquet")
    assert arrow["where.noise"] == [1.0, 0.5, None]
    assert arrow["where.mixed"] == [None, "3", "three"]
    assert arrow["step"] == [None, None, 0.5]


def test_parquet_without_its_package_is_one_line(
    stored: Path, transfuse: Callable, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = transfuse("export", "--out", "table.parquet", "--results", stored)
    assert done.status == 2
    reason = "Parquet needs the package 'pyarrow', which is not installed"
    assert done.err == f"error: {reason}; type: pip install 'transfuse[parquet]'\n"
    assert list(workplace.iterdir()) == []


def test_card_tells_claims_verdicts_and_how_to_repeat_them(stored: Path, transfuse: Callable) -> None:
    done = transfuse("export", "--card", "mean_shift", "--results", stored)
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "## Evidence for the method `mean_shift`"
    assert "they do not measure this model" in done.out
    assert "<https://example.org/mean-shift>" in done.out and "### Scale small" in lines
    (row,) = [line for line in lines if line.startswith("| centred beats raw by more than 0.1 on gap")]
    assert "supported" in row and "| 5 |" in row
    assert any(line.startswith("| control: placebo is within 0.5 of raw on gap") for line in lines)
    assert "published: 0.4 (at the paper's scale)" in done.out
    assert "transfuse run mean_shift --scale small --seeds 5" in lines
    assert lines[-1] == "1. The paper centres twice; once is the same."
    assert "quick" not in done.out  # no claim is tested there


def test_card_marks_stale_cells_and_goes_to_a_file(stored: Path, transfuse: Callable, workplace: Path) -> None:
    shutil.copytree(stored, "results")
    for path in Path("results").rglob("seed*.json"):
        cell = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(cell | {"code": "0" * 16}), encoding="utf-8")
    done = transfuse("export", "--card", "mean_shift", "--scale", "small", "--out", "CARD.md")
    assert done.out == "written: CARD.md\n"
    assert "**Stale**" in Path("CARD.md").read_text(encoding="utf-8")
    done = transfuse("export", "--card", "mean_shift", "--scale", "full")
    assert done.status == 2 and "transfuse run mean_shift --scale full" in done.err
