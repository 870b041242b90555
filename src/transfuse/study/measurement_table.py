"""Cells as one long table, a row a measurement: what CSV and Parquet files hold."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from transfuse.errors import MissingExtraError
from transfuse.registry import Registry
from transfuse.study.declaration import read_study
from transfuse.study.design import Metric
from transfuse.study.fingerprint import fingerprint
from transfuse.study.store import Cell

Row = dict[str, Any]
_FIXED = ("study", "scale", "seed", "arm", "metric", "value", "step", "better", "unit", "key", "code", "stale")


def measurement_rows(cells: Iterable[Cell], registry: Registry) -> list[Row]:
    """One row a measurement, in the order of the cells.

    Conditions become columns ``where.<name>``. Of studies that are not installed, `better`, `unit` and `stale` are
    unknown. `step` is empty for final values; rows that have one are points of learning curves.
    """
    rows = []
    known: dict[str, tuple[Mapping[str, Metric], str]] = {}
    for cell in cells:
        spec = cell.spec
        if spec.study not in known:
            known[spec.study] = _declared(spec.study, registry)
        metrics, code = known[spec.study]
        for m in cell.measurements:
            metric = metrics.get(m.metric)
            row: Row = {
                "study": spec.study,
                "scale": spec.scale,
                "seed": spec.seed,
                "arm": m.arm,
                "metric": m.metric,
                "value": m.value,
                "step": m.step,
                "better": metric.better if metric else None,
                "unit": metric.unit if metric else None,
                "key": spec.key,
                "code": spec.code,
                "stale": spec.code != code if code else None,
            }
            rows.append(row | {f"where.{name}": value for name, value in m.where.items()})
    return rows


def _declared(study: str, registry: Registry) -> tuple[Mapping[str, Metric], str]:
    entry = registry.entries.get(study)
    if entry is None or entry.study_module is None:
        return {}, ""
    return read_study(entry).metrics, fingerprint(entry.study_module)


def column_names(rows: Sequence[Row]) -> list[str]:
    """The fixed columns, then the conditions of all rows in alphabetical order."""
    return [*_FIXED, *sorted({name for row in rows for name in row if name not in _FIXED})]


def write_csv(rows: Sequence[Row], file: TextIO) -> None:
    """Write with a line of headings; what is unknown or does not apply is empty."""
    writer = csv.DictWriter(file, column_names(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """Write with typed columns; what is unknown or does not apply is null.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    arrow, parquet = import_pyarrow()
    table = arrow.table({name: list(_uniform([row.get(name) for row in rows])) for name in column_names(rows)})
    parquet.write_table(table, path)


def import_pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet, or the line that says how to get them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("Parquet", "parquet", "pyarrow") from None
    return pyarrow, pyarrow.parquet


def _uniform(values: Sequence[Any]) -> Iterator[Any]:
    """A column has one type: numbers stay numbers if all of them are, all else becomes text."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1:
        yield from values
    elif kinds == {int, float}:
        yield from (None if value is None else float(value) for value in values)
    else:
        yield from (None if value is None else str(value) for value in values)
