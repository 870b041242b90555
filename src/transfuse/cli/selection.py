"""Options that several commands share, and what they select."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transfuse.errors import UserError
from transfuse.registry import Entry, Registry, load_registry

if TYPE_CHECKING:
    from transfuse.study.store import Store

_MOST_SEEDS = 100_000  # a longer plan would take minutes to make

ResultsOption = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="DIR|URL",
        help="Results folder, here or as s3://, gs://, ... [default: $TRANSFUSE_RESULTS or ./results].",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def complete_ids(incomplete: str) -> list[tuple[str, str]]:
    """Method ids for the shell's completion."""
    return [(e.id, e.card.title) for e in load_registry().entries.values() if e.id.startswith(incomplete)]


def complete_families(incomplete: str) -> list[str]:
    """Families that have a method, for the shell's completion."""
    families = {entry.card.family for entry in load_registry().entries.values()}
    return sorted(family for family in families if family.startswith(incomplete))


FamilyOption = Annotated[
    str | None, typer.Option("--family", metavar="FAMILY", help="Only this family.", autocompletion=complete_families)
]


def registry_with_warnings() -> Registry:
    """All methods; a line on stderr for each plug-in that could not be read."""
    registry = load_registry()
    for warning in registry.warnings:
        typer.echo(f"warning: {' '.join(warning.split())}", err=True)
    return registry


def select_studies(
    registry: Registry, ids: Sequence[str], family: str | None, everything: bool, showcase: bool
) -> list[Entry]:
    """The methods with a study that were asked for, each once, in the order asked for."""
    ways = [bool(ids), family is not None, everything, showcase]
    if sum(ways) > 1:
        raise UserError("more than one selection", "method ids, or one of --family, --all and --showcase")
    if ids:
        chosen = [registry[method_id] for method_id in dict.fromkeys(ids)]
        for entry in chosen:
            if entry.study_module is None:
                raise UserError(f"method {entry.id!r} has no study", fix="transfuse list marks those that have one")
        return chosen
    entries = registry.family(family) if family is not None else list(registry.entries.values())
    entries = [entry for entry in entries if entry.study_module and (entry.card.showcase or not showcase)]
    if any(ways) and not entries:
        raise UserError("the selection holds no study", fix="transfuse list marks those that have one")
    return entries if any(ways) else []


def parse_seeds(text: str | None) -> int | list[int] | None:
    """``5`` is five seeds from 0 up; ``0,3,7-9`` names them."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})?", part) for part in parts if part) or not any(parts):
        raise UserError(f"--seeds {text!r}", "a number of seeds such as 5, or seeds such as 0,3,7 or 10-19")
    if len(parts) == 1 and "-" not in text:
        if not 1 <= int(text) <= _MOST_SEEDS:
            raise UserError(f"--seeds {text!r}", f"at least 1 and at most {_MOST_SEEDS}")
        return int(text)
    seeds: list[int] = []
    for part in filter(None, parts):
        first, _, last = part.partition("-")
        if int(last or first) < int(first):
            raise UserError(f"--seeds {text!r}", "ranges that go up, such as 10-19")
        wanted = range(int(first), int(last or first) + 1)
        if len(seeds) + len(wanted) > _MOST_SEEDS:
            raise UserError(f"--seeds {text!r}", f"at most {_MOST_SEEDS} seeds")
        seeds += wanted
    return seeds


def results_folder(given: Path | None) -> Path:
    """``--results``, else ``$TRANSFUSE_RESULTS``, else ``./results``; of an address, the copy here, up to date."""
    folder = given or Path(os.environ.get("TRANSFUSE_RESULTS") or "results")
    if ":" in str(folder):
        from transfuse.study.mirror import as_url, open_mirror

        if url := as_url(folder):
            return open_mirror(url).folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"results folder {str(folder)!r} is a file", "a folder", "name another with --results")
    return folder


def store_to_read(given: Path | None) -> Store:
    """The store of a command that only reads; a folder that was named must be there."""
    from transfuse.study.store import Store

    folder = results_folder(given)
    if given is not None and not folder.is_dir():  # of an address, the copy is there by now
        raise UserError(f"results folder {str(folder)!r} is not there", "a folder that `transfuse run` wrote")
    return Store(folder)


def check_writable(folder: Path, what: str = "results folder", fix: str = "choose another with --results DIR") -> None:
    """Find out before the work, not after it, that nothing can be stored."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # a full disk still takes names
            file.flush()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(f"{what} {str(folder)!r} cannot be written: {reason}", fix=fix) from None


def has_cells(store: Store) -> bool:
    """Whether there is any cell at all."""
    return next(iter(store.folder.glob("*/*/seed*.json")), None) is not None
