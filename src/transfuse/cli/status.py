"""`transfuse status`: which cells are there, stale, missing or unreadable."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import typer

from transfuse.cli.app import command
from transfuse.cli.selection import JsonOption, ResultsOption, has_cells, registry_with_warnings, store_to_read
from transfuse.cli.tables import count, print_json, table

if TYPE_CHECKING:
    from transfuse.study.evidence import Evidence


def status(results: ResultsOption = None, json: JsonOption = False) -> None:
    """Show for each study and scale which cells are there, stale, missing or unreadable."""
    registry = registry_with_warnings()
    store = store_to_read(results)
    if not has_cells(store) and not json:
        typer.echo(f"no cells in {str(store.folder)!r} yet; type: transfuse run ID")
        return
    from transfuse.study.evidence import gather

    groups = [_facts(evidence) for evidence in gather(store, registry)]
    unreadable = [str(path) for path in store.unreadable()]
    unknown = Counter(cell.spec.study for cell in store.cells() if cell.spec.study not in registry.entries)
    if json:
        print_json({"results": str(store.folder), "groups": groups, "unreadable": unreadable, "unknown": dict(unknown)})
        return
    rows = [
        (g["study"], g["scale"], g["key"], len(g["seeds"]), _seeds(g["stale"]), _seeds(g["missing"])) for g in groups
    ]
    if rows:
        typer.echo(table(("STUDY", "SCALE", "SETTINGS", "SEEDS", "STALE", "MISSING"), rows))
    for path in unreadable:
        typer.echo(f"unreadable: {path}; the next run of its study makes it anew")
    for study, number in unknown.items():
        typer.echo(f"unknown study {study!r}: {count(number, 'cell')} of a method that is not installed")
    if any(group["stale"] for group in groups):
        typer.echo("stale cells were made by other code than today's; type: transfuse run --stale")


def _facts(evidence: Evidence) -> dict[str, Any]:
    wanted = set(range(evidence.study.seed_count(evidence.scale)))
    return {
        "study": evidence.study.id,
        "scale": evidence.scale,
        "key": evidence.cells[0].spec.key,
        "seeds": evidence.seeds,
        "stale": evidence.stale,
        "missing": sorted(wanted - set(evidence.seeds)),
    }


def _seeds(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"


COMMAND = command(status, "transfuse status", "transfuse status --results other/results --json")
