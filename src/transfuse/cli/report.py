"""`transfuse report`: the evidence as one static page."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from transfuse.cli.app import command
from transfuse.cli.selection import ResultsOption, has_cells, registry_with_warnings, store_to_read
from transfuse.cli.tables import count
from transfuse.errors import UserError


def report(
    results: ResultsOption = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write into.")] = Path("build/report"),
    title: Annotated[str, typer.Option("--title", help="Title of the page.")] = "transfuse report",
    open_page: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
) -> None:
    """Write verdicts, effects, curves and costs of all stored studies as one HTML page, and as Markdown."""
    registry = registry_with_warnings()
    store = store_to_read(results)
    if not has_cells(store):
        raise UserError(f"no cells in {str(store.folder)!r}", "a results folder", "type: transfuse run ID")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {str(out)!r} is a file", "a folder")
    from transfuse.study.evidence import gather

    gc.disable()  # millions of measurements, none of them garbage: looking for some would take half of the time
    evidence = gather(store, registry)
    if not evidence:
        raise UserError(
            f"no cell in {str(store.folder)!r} belongs to an installed method", fix="type: transfuse status"
        )
    from transfuse.study.report import write_report

    files = write_report(evidence, out, title=title)
    cells = sum(len(group.cells) for group in evidence)
    typer.echo(f"{count(len(evidence), 'study', 'studies')}, {count(cells, 'cell')}")
    typer.echo(f"page: {files.html}\ntext: {files.markdown}")
    if open_page:
        import webbrowser

        webbrowser.open(files.html.resolve().as_uri())


COMMAND = command(report, "transfuse report", "transfuse report --results other/results --out build/other --open")
