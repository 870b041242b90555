"""Cells: one JSON file for each (study, settings, seed), named by what went into it.

A cell exists only when it is finished: it is written under a temporary name and renamed. The name carries
a key over settings and data and a fingerprint of the code; a cell whose code has changed since is *stale*
and stays readable until a new one takes its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from transfuse.atomic import replacing, write_text
from transfuse.errors import UserError
from transfuse.study.design import SCALES, Measurement

FORMAT = 1


class StorageError(UserError):
    """Nothing more can be kept: a disk is full, or a folder may not be written. Other cells would fare no better."""

    def __init__(self, path: Path, error: Exception, fix: str) -> None:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        super().__init__(f"cannot write {str(path)!r}: {reason}", fix=fix)


@dataclass(frozen=True)
class CellSpec:
    """What a cell is to be: enough to run it in another process, on this machine or elsewhere.

    Attributes:
        study: the study's id.
        scale: the scale's name, for people; what counts is the settings.
        seed: the seed.
        settings: the resolved settings as JSON values.
        data: content digests of the data sets that the scale reads, by set.
        code: fingerprint of the study's code.
    """

    study: str
    scale: str
    seed: int
    settings: Mapping[str, Any]
    data: Mapping[str, str]
    code: str

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits over settings and data; the code is named apart."""
        text = json.dumps({"settings": self.settings, "data": self.data}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def stem(self) -> str:
        return f"seed{self.seed:03d}-{self.key}-{self.code}"

    @property
    def name(self) -> str:
        """Unique among all cells: the path inside a store, without its ending."""
        return f"{self.study}/{self.scale}/{self.stem}"

    def __str__(self) -> str:
        return f"{self.study} {self.scale} seed {self.seed}"


@dataclass(frozen=True)
class Cell:
    """A finished cell."""

    spec: CellSpec
    measurements: tuple[Measurement, ...]
    cost: Mapping[str, float]
    environment: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    path: Path | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Store:
    """A folder of cells: ``<folder>/<study>/<scale>/seed000-<key>-<code>.json``."""

    folder: Path

    def path(self, spec: CellSpec) -> Path:
        return self.folder / spec.study / spec.scale / f"{spec.stem}.json"

    def has(self, spec: CellSpec) -> bool:
        """Whether a readable cell lies there; a truncated one counts as absent, and so does a copy of another."""
        try:
            return self.read(self.path(spec)).spec.name == spec.name
        except (FileNotFoundError, UserError):
            return False

    def write(self, cell: Cell) -> Path:
        """Write a cell, then remove the stale ones of the same seed, settings and data."""
        path = self.path(cell.spec)
        try:
            _write_samples(path.with_suffix(".npz"), cell.measurements)
            write_text(path, _to_json(cell))  # last, since a cell is finished when this file is there
        except OSError as error:
            raise StorageError(path, error, "make room, or choose a folder with --results") from None
        of_same_kind = f"seed{cell.spec.seed:03d}-{cell.spec.key}-*"
        with contextlib.suppress(OSError):  # the cell is kept; what it replaces may be tidied up another time
            for other in path.parent.glob(of_same_kind):
                if other.suffix in (".json", ".npz") and other.stem != cell.spec.stem:
                    other.unlink(missing_ok=True)
            for leftover in path.parent.glob(f".{of_same_kind}.partial"):
                if _is_abandoned(leftover):
                    leftover.unlink(missing_ok=True)
        return path

    def renew(self, cell: Cell, code: str, seeds: Sequence[int]) -> Path:
        """Keep a cell under today's code, which gave bit-equal numbers on other seeds; the cell says so from now on."""
        spec = replace(cell.spec, code=code)
        ran = {"code": cell.spec.code, "equal_on_seeds": list(seeds)}
        kept = replace(
            cell, spec=spec, environment={**cell.environment, "kept": [*cell.environment.get("kept", []), ran]}
        )
        samples = cell.path.with_suffix(".npz") if cell.path else None
        if samples is not None and samples.exists():
            with replacing(self.path(spec).with_suffix(".npz")) as temporary:
                shutil.copyfile(samples, temporary)
        return self.write(kept)

    def read(self, path: Path) -> Cell:
        """One cell; a file that cannot be read is an error of one line."""
        try:
            return _from_json(json.loads(path.read_text(encoding="utf-8")), path)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{str(path)!r} is not a readable cell ({reason})", fix="delete it and run again") from None

    def cells(self, study: str | None = None, scale: str | None = None) -> Iterator[Cell]:
        """All readable cells, in order of study, scale and seed; unreadable ones are left to `unreadable`."""
        for path in self._paths(study, scale):
            try:
                yield self.read(path)
            except (UserError, FileNotFoundError):  # the second: another run has just replaced it
                continue

    def unreadable(self) -> list[Path]:
        """Files that should be cells and are not."""
        found = []
        for path in self._paths(None, None):
            try:
                self.read(path)
            except UserError:
                found.append(path)
            except FileNotFoundError:
                found += [path] if path.is_symlink() else []  # else another run has just replaced it
        return found

    def _paths(self, study: str | None, scale: str | None) -> list[Path]:
        return sorted(self.folder.glob(f"{study or '*'}/{scale or '*'}/seed*.json"))


def _is_abandoned(leftover: Path) -> bool:
    """Whether the writer of a half-written file was killed.

    Its number may since have gone to a younger process, and where nobody collects the dead, as in many containers,
    the dead one itself is still listed.
    """
    import psutil

    writer = leftover.name.split(".")[-2]
    if not (writer.isascii() and writer.isdigit() and len(writer) < 10):
        return False
    try:
        process = psutil.Process(int(writer))
        dead = process.status() == psutil.STATUS_ZOMBIE
        return dead or process.create_time() > leftover.stat().st_mtime + 1
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):
        return False


def _to_json(cell: Cell) -> str:
    """One measurement a line, so that changes of stored cells can be read in a diff."""
    spec = cell.spec
    head = {
        "format": FORMAT,
        "study": spec.study,
        "scale": spec.scale,
        "seed": spec.seed,
        "code": spec.code,
        "settings": spec.settings,
        "data": spec.data,
        "cost": cell.cost,
        "environment": cell.environment,
        "warnings": cell.warnings,
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    rows = ",\n".join(f"  {json.dumps(_measurement_row(m), allow_nan=False)}" for m in cell.measurements)
    return "{\n" + ",\n".join(lines) + ',\n "measurements": [\n' + rows + "\n ]\n}\n"


def _measurement_row(m: Measurement) -> list[Any]:
    row: list[Any] = [m.arm, m.metric, m.value, dict(m.where)]
    return row if m.step is None else [*row, m.step]


def _from_json(table: Mapping[str, Any], path: Path) -> Cell:
    if table["format"] != FORMAT:
        raise ValueError(f"format {table['format']!r}, this version reads {FORMAT}")
    spec = CellSpec(table["study"], table["scale"], table["seed"], table["settings"], table["data"], table["code"])
    measurements = _from_rows(table["measurements"])
    cell = Cell(spec, measurements, table["cost"], table["environment"], tuple(table["warnings"]), path)
    _check(cell)
    return cell


def _from_rows(rows: list[list[Any]]) -> tuple[Measurement, ...]:
    """Rows as measurements. Conditions repeat from row to row: each set is checked once, and shared from then on."""
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    made = []
    for row in rows:
        arm, metric, value, where = row[:4]
        step = row[4] if len(row) > 4 else None
        if arm.__class__ is not str or metric.__class__ is not str or where.__class__ is not dict:
            raise ValueError(f"{row[:4]} is not [arm, metric, value, conditions]")
        value = float(value)
        if not math.isfinite(value) or not (step is None or math.isfinite(step)):
            raise ValueError(f"{metric} of {arm} is not a finite number")
        items = (*where.items(), *map(type, where.values()))  # 1, 1.0 and True are equal, and yet different conditions
        if items not in known:
            if not all(isinstance(condition, str | int | float) for condition in where.values()):
                raise ValueError(f"conditions {where} are not plain values")
            known[items] = where
        made.append(Measurement(arm, metric, value, known[items], step))
    return tuple(made)


def _check(cell: Cell) -> None:
    """Types that the rest relies on; a cell may come from another version, or from an editor."""
    spec = cell.spec
    if spec.scale not in SCALES:
        raise ValueError(f"scale {spec.scale!r}")
    for name in ("study", "code"):
        if not isinstance(getattr(spec, name), str):
            raise ValueError(f"{name} is not text")
    if not isinstance(spec.seed, int) or isinstance(spec.seed, bool) or spec.seed < 0:
        raise ValueError(f"seed {spec.seed!r}")
    for name, table in (
        ("settings", spec.settings),
        ("data", spec.data),
        ("cost", cell.cost),
        ("environment", cell.environment),
        ("versions", cell.environment.get("versions", {})),
    ):
        if not isinstance(table, dict):
            raise ValueError(f"{name} is not a table")
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in cell.cost.values()):
        raise ValueError("cost is not made of numbers")
    if not all(isinstance(text, str) for text in cell.warnings):
        raise ValueError("warnings are not texts")


def sample_name(measurement: Measurement) -> str:
    """The name of a measurement's per-sample array in the file beside the cell."""
    where = json.dumps(dict(measurement.where), sort_keys=True)
    return f"{measurement.arm}|{measurement.metric}|{where}"


def _write_samples(path: Path, measurements: Sequence[Measurement]) -> None:
    arrays = {sample_name(m): m.per_sample for m in measurements if m.per_sample is not None and m.step is None}
    if not arrays:
        return
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_samples(cell: Cell) -> dict[str, np.ndarray]:
    """Per-sample arrays of a cell by `sample_name`; empty where they were not kept."""
    path = cell.path.with_suffix(".npz") if cell.path else None
    if path is None or not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}
