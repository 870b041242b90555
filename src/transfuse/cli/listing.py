"""`transfuse list`: all methods. Reads cards and file names; imports no framework."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import typer

from transfuse.cli.app import command
from transfuse.cli.selection import FamilyOption, JsonOption, ResultsOption, registry_with_warnings, results_folder
from transfuse.cli.tables import count, print_json, table
from transfuse.registry import Entry, missing_packages
from transfuse.study.design import SCALES


def list_methods(family: FamilyOption = None, results: ResultsOption = None, json: JsonOption = False) -> None:
    """Show all methods, their hosts, and how many seeds of evidence are stored at which scale."""
    registry = registry_with_warnings()
    entries = registry.family(family) if family is not None else list(registry.entries.values())
    entries.sort(key=lambda entry: (entry.card.family, entry.id))
    folder = results_folder(results)
    if json:
        print_json([_facts(entry, folder) for entry in entries])
        return
    if not entries:
        typer.echo("no methods are installed")
        return
    rows = [
        (entry.id, entry.card.family, entry.card.host, entry.card.summary, _evidence(entry, folder), _installed(entry))
        for entry in entries
    ]
    typer.echo(table(("ID", "FAMILY", "HOST", "WHAT IT DOES", "SEEDS STORED", "INSTALLED"), rows))
    typer.echo(f"\n{count(len(entries), 'method')}; transfuse show ID explains one, transfuse choose WORDS finds one")


def stored_seeds(method_id: str, folder: Path) -> dict[str, int]:
    """Seeds by scale, from file names alone: opening every cell would not be instant."""
    counts = Counter(
        {
            scale: len({path.name.split("-")[0] for path in (folder / method_id / scale).glob("seed*.json")})
            for scale in SCALES
        }
    )
    return {scale: count for scale, count in counts.items() if count}


def _evidence(entry: Entry, folder: Path) -> str:
    if entry.study_module is None:
        return "no study"
    return ", ".join(f"{scale} {count}" for scale, count in stored_seeds(entry.id, folder).items()) or "none"


def _installed(entry: Entry) -> str:
    return f"no: pip install 'transfuse[{entry.card.extra}]'" if missing_packages(entry.card) else "yes"


def _facts(entry: Entry, folder: Path) -> dict[str, Any]:
    missing = missing_packages(entry.card)
    return {
        **dataclasses.asdict(entry.card),
        "module": entry.module,
        "study": entry.study_module,
        "installed": not missing,
        "missing": missing,
        "seeds_stored": stored_seeds(entry.id, folder),
    }


COMMAND = command(
    list_methods, "transfuse list", "transfuse list --family negatives", "transfuse list --json | jq '.[].id'"
)
