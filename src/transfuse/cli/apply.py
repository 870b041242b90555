"""`transfuse apply`: a method on files of the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import typer

from transfuse.cli.app import example_text
from transfuse.cli.method_group import MethodGroup
from transfuse.cli.tables import facts


def _finish(method_id: str, result: Any, options: dict[str, Any]) -> None:
    """Say where the result is, or what it is."""
    if options.get("json"):
        typer.echo(json.dumps({"method": method_id, "result": result}, default=str))
    elif isinstance(result, Path):
        typer.echo(f"written: {result}")
    elif isinstance(result, dict) and result:
        typer.echo(facts({str(key): str(value) for key, value in result.items()}))
    elif result is not None:
        typer.echo(str(result))


COMMAND = MethodGroup(
    "apply",
    [click.Option(["--json"], is_flag=True, help="Print JSON for programs.")],
    _finish,
    help="Use a method on files of your own.\n\nWithout a method: list those that can be used from the shell.",
    epilog=example_text(["transfuse apply", "transfuse apply lemon --help"]),
)
