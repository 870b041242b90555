"""`transfuse export`: stored results for other programs, and for the card of a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transfuse.atomic import replacing, write_text
from transfuse.cli.app import command
from transfuse.cli.selection import ResultsOption, complete_ids, has_cells, registry_with_warnings, store_to_read
from transfuse.cli.tables import count
from transfuse.errors import UserError, did_you_mean
from transfuse.registry import Registry
from transfuse.study.design import SCALES

if TYPE_CHECKING:
    from transfuse.study.store import Store

FORMATS = ("csv", "parquet")


def export(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Only these methods.", autocompletion=complete_ids)
    ] = None,
    scale: Annotated[str | None, typer.Option(metavar="SCALE", help="Only this scale.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write [default: print]; .parquet says the format.")
    ] = None,
    form: Annotated[str | None, typer.Option("--format", metavar="FORMAT", help="csv or parquet.")] = None,
    card: Annotated[
        str | None,
        typer.Option("--card", metavar="ID", help="Instead: a Markdown section with the claims and verdicts of one."),
    ] = None,
    results: ResultsOption = None,
) -> None:
    """Write stored measurements as one table, a row each, or verdicts as a section of a model card.

    Columns where.NAME hold the conditions of a measurement; rows with a step are points of learning curves.
    """
    registry = registry_with_warnings()
    if scale is not None and scale not in SCALES:
        raise UserError(f"unknown scale {scale!r}", f"one of {', '.join(SCALES)}", did_you_mean(scale, SCALES))
    if out is not None and out.is_dir():
        raise UserError(f"--out {str(out)!r} is a folder", "a file")
    if card is not None:
        if ids or form:
            raise UserError("--card together with IDs or --format", "--card ID without them: it prints Markdown")
        _write_card(card, scale, store_to_read(results), registry, out)
        return
    chosen = _format(form, out)
    wanted = [registry[method_id].id for method_id in dict.fromkeys(ids or ())]
    store = store_to_read(results)
    if not has_cells(store):
        raise UserError(f"no cells in {str(store.folder)!r}", "a results folder", "type: transfuse run ID")
    _write_table(wanted, scale, store, registry, chosen, out)


def _format(form: str | None, out: Path | None) -> str:
    chosen = form or ("parquet" if out is not None and out.suffix == ".parquet" else "csv")
    if chosen not in FORMATS:
        raise UserError(f"--format {chosen!r}", f"one of {', '.join(FORMATS)}", did_you_mean(chosen, FORMATS))
    if chosen == "parquet":
        if out is None:
            raise UserError("--format parquet without a file", "--out FILE")
        from transfuse.study.measurement_table import import_pyarrow

        import_pyarrow()  # a missing package is told before the cells are read
    return chosen


def _write_table(
    ids: list[str], scale: str | None, store: Store, registry: Registry, form: str, out: Path | None
) -> None:
    from transfuse.study.measurement_table import measurement_rows, write_csv, write_parquet

    chosen: list[str | None] = [*ids] or [None]
    cells = [cell for method_id in chosen for cell in store.cells(method_id, scale)]
    if not cells:
        raise UserError(f"no cell in {str(store.folder)!r} was chosen", fix="transfuse status lists what is there")
    rows = measurement_rows(cells, registry)
    if out is None:
        write_csv(rows, sys.stdout)
        return
    with replacing(out) as temporary:
        if form == "parquet":
            write_parquet(rows, temporary)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                write_csv(rows, file)
    typer.echo(f"{count(len(rows), 'measurement')} of {count(len(cells), 'cell')} written: {out}")


def _write_card(method: str, scale: str | None, store: Store, registry: Registry, out: Path | None) -> None:
    from transfuse.study.evidence import gather
    from transfuse.study.report import model_card_markdown

    entry = registry[method]
    if entry.study_module is None:
        raise UserError(f"method {method!r} has no study", fix="transfuse list marks those that have one")
    evidence = [group for group in gather(store, registry, [method]) if group.claims and scale in (None, group.scale)]
    if not evidence:
        where = f" at scale {scale}" if scale else ""
        fix = f"type: transfuse run {method}" + (f" --scale {scale}" if scale else "")
        raise UserError(f"no cells of {method!r}{where} in {str(store.folder)!r} that test a claim", fix=fix)
    text = model_card_markdown(entry, evidence)
    if out is None:
        typer.echo(text, nl=False)
        return
    write_text(out, text)
    typer.echo(f"written: {out}")


COMMAND = command(
    export,
    "transfuse export > measurements.csv",
    "transfuse export fedglad --scale public --out fedglad.parquet",
    "transfuse export --card fedglad >> README.md",
)
