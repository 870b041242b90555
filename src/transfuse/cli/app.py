"""The top of the command line: a table of commands, loaded one at a time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

from transfuse import __version__
from transfuse.cli.failure import InterruptError
from transfuse.errors import UserError, did_you_mean

# Name: what `transfuse --help` says. The command is COMMAND of the module transfuse.cli.<name>, loaded when typed.
COMMANDS = {
    "list": "Show all methods.",
    "choose": "Find methods for a problem of yours, in your own words.",
    "show": "Explain one method: its card, its use, its settings, its claims and their verdicts.",
    "run": "Run studies: check the papers' claims with paired seeds.",
    "status": "Show which cells are there, stale, missing or unreadable.",
    "report": "Write the evidence as one static page.",
    "compare": "Compare two results folders, or two scales.",
    "audit": "Audit a model, an index, a federation or data of your own.",
    "apply": "Use a method on files of your own.",
    "export": "Write measurements as CSV or Parquet, or verdicts as a section of a model card.",
    "new": "Write the files of a new method, in this checkout or in a package of your own.",
    "data": "See, fetch and find the data sets of the public scale.",
    "doctor": "Check this installation.",
    "cite": "Print BibTeX entries.",
}
_MODULES = {"list": "listing"}  # a submodule called list would hide the built-in from the package


class LazyGroup(TyperGroup):
    """A group whose commands are known by name and imported when one is typed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"transfuse.cli.{_MODULES.get(name, name)}").COMMAND
        found.name = name
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = click.utils.make_str(args[0])
        if not name.startswith("-") and name not in COMMANDS:
            raise UserError(f"unknown command {name!r}", f"one of {', '.join(COMMANDS)}", did_you_mean(name, COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptError("interrupted; whatever was finished is kept, nothing is half-written") from None


def command(function: Callable[..., Any], *examples: str) -> click.Command:
    """A typed function as a command with examples at the end of its help."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(epilog=example_text(examples))(function)
    return typer.main.get_command(app)


def example_text(examples: Sequence[str]) -> str:
    """Examples as the epilog of a help page, kept line by line."""
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)


def debugging() -> bool:
    """Whether `--debug` was given: tracebacks are wanted."""
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().obj)


def application() -> click.Command:
    """The whole command line."""
    app = typer.Typer(
        cls=LazyGroup,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        invoke_without_command=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(
        epilog=example_text(
            ["transfuse list", "transfuse choose unlearn a chat model", "transfuse run --showcase", "transfuse report"]
        )
    )
    def transfuse(
        ctx: typer.Context,
        version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
    ) -> None:
        """Knowledge transfer between neural networks, with the evidence."""
        if version:
            typer.echo(f"transfuse {__version__}")
            raise typer.Exit
        if ctx.invoked_subcommand is None:
            typer.echo(ctx.get_help())

    return typer.main.get_command(app)
