"""`transfuse cite`: BibTeX of the papers."""

from __future__ import annotations

from typing import Annotated

import typer

from transfuse.cli.app import command
from transfuse.cli.selection import complete_ids, registry_with_warnings
from transfuse.errors import UserError


def cite(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Methods.", autocompletion=complete_ids)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All methods.")] = False,
) -> None:
    """Print BibTeX entries of the papers behind methods."""
    registry = registry_with_warnings()
    if bool(ids) == everything:
        raise UserError(
            "ids and --all together" if ids else "nothing to cite",
            "method ids or --all",
            "for example transfuse cite --all",
        )
    entries = (
        registry.entries.values() if everything else [registry[method_id] for method_id in dict.fromkeys(ids or ())]
    )
    typer.echo("\n\n".join(entry.card.bibtex() for entry in entries))


COMMAND = command(cite, "transfuse cite lemon", "transfuse cite --all > transfer.bib")
