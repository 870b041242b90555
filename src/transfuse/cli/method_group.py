"""`transfuse audit ID` and `transfuse apply ID`: a group whose commands are the methods that have the function."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import typer
from typer.core import TyperGroup

from transfuse.cli.selection import registry_with_warnings
from transfuse.cli.signature import NotPlainError, declared, options_of
from transfuse.cli.tables import table
from transfuse.errors import UserError, did_you_mean
from transfuse.registry import Entry, import_method, load_registry

Finish = Callable[[str, Any, dict[str, Any]], None]


class MethodGroup(TyperGroup):
    """Commands named after methods, made from the signature of one function of theirs.

    Args:
        function: "audit" or "apply".
        extra: options that every command has besides those of the signature.
        finish: called with the method's id, what the function returned, and the values of the extra options.
    """

    def __init__(self, function: str, extra: list[click.Option], finish: Finish, **attributes: Any) -> None:
        super().__init__(
            name=function, callback=self._list, invoke_without_command=True, rich_markup_mode=None, **attributes
        )
        self.function, self.extra, self.finish = function, extra, finish

    def list_commands(self, ctx: click.Context) -> list[str]:
        methods = methods_with(self.function)
        names = [name for entry in methods for name in (entry.id, *other_names(entry, self.function))]
        return [*names, *family_commands(self.function)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        entries = load_registry().entries
        if name in entries and defines(entries[name], self.function):
            return self._command(entries[name], name, {})
        for entry in methods_with(self.function):
            if name in (others := other_names(entry, self.function)):
                return self._command(entry, name, others[name])
        family = family_commands(self.function).get(name)
        return self._command(family, name, {}) if family else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = click.utils.make_str(args[0])
        if not name.startswith("-") and name not in self.list_commands(ctx):
            close = did_you_mean(name, self.list_commands(ctx))
            if close and name not in load_registry().entries:
                raise UserError(f"unknown method {name!r}", fix=close)
            entry = load_registry()[name]  # a clear error for an unknown id
            if not defines(entry, self.function):
                known = [found.id for found in methods_with(self.function)]
                hint = did_you_mean(name, known) or f"transfuse {self.function} lists them"
                expected = f"one of {', '.join(known)}" if known else "a method that has one"
                raise UserError(f"method {name!r} has no {self.function}", expected, hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = command_rows(self.function)
        with formatter.section("Methods"):
            formatter.write_dl(rows or [("(none)", f"no installed method has an {self.function}")])

    def _list(self) -> None:
        if click.get_current_context().invoked_subcommand is not None:
            return
        registry_with_warnings()
        rows = command_rows(self.function)
        if rows:
            typer.echo(table(("ID", "WHAT IT DOES"), rows))
            typer.echo(f"\ntype: transfuse {self.function} {rows[0][0]} --help")
        else:
            typer.echo(f"no installed method has an {self.function}")

    def _command(self, entry: Entry, name: str, fixed: Mapping[str, Any]) -> click.Command:
        function = declared(entry.path, self.function) or getattr(import_method(entry), self.function)
        try:
            options = options_of(function)
        except NotPlainError as error:
            raise UserError(
                f"{self.function} of {entry.id!r} takes a Python object ({error})",
                fix=f"use it from Python: from {entry.module} import {self.function}",
            ) from None
        options = [option for option in options if option.name not in fixed]
        own = {option.name for option in options}
        extra = [option for option in self.extra if option.name not in own]

        def call(**values: Any) -> None:
            _check_out(values.get("out"))
            ours = {option.name or "": values.pop(option.name or "") for option in extra}
            try:
                result = getattr(import_method(entry), self.function)(**values, **fixed)
            except RecursionError:  # of a JSON reader; the method itself walks no trees
                raise UserError(f"a file for {self.function} {entry.id} is nested too deeply", "plain rows") from None
            self.finish(entry.id, result, ours)

        return click.Command(
            name, callback=call, params=[*options, *extra], help=inspect.getdoc(function),
            context_settings={"max_content_width": 110},
        )  # fmt: skip


def _check_out(out: object) -> None:
    """A file that cannot be written is named before the work, not after it."""
    if not isinstance(out, Path):
        return
    if out.is_dir():
        raise UserError(f"--out {str(out)!r} is there already", "a file, or a folder that is not there yet")
    above = out.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise UserError(f"--out {str(out)!r} cannot be written: {str(above)!r} is a file", "a path that exists")
    if not os.access(above, os.W_OK):
        raise UserError(f"--out {str(out)!r} cannot be written: no permission in {str(above)!r}", "another path")


def methods_with(function: str) -> list[Entry]:
    """The methods whose module has such a function, found without importing them."""
    return [entry for entry in load_registry().entries.values() if defines(entry, function)]


def defines(entry: Entry, function: str) -> bool:
    """Whether a module defines, imports or assigns a name at its top level."""
    for node in ast.parse(entry.path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return True
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == function for a in node.names):
            return True
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == function for t in node.targets):
            return True
    return False


def other_names(entry: Entry, function: str) -> dict[str, dict[str, Any]]:
    """Further names of a method's command, each with the options that it fixes.

    They are the literal ``APPLY_AS`` or ``AUDIT_AS`` of the method's module, such as ``{"npo": {"method": "npo"}}``.
    """
    return _literal(entry.path, f"{function.upper()}_AS")


def family_commands(function: str) -> dict[str, Entry]:
    """Commands that a whole family shares, by name: modules beside the methods that have such a function.

    A family declares them in its package, ``AUDIT_AS = {"negatives": ("mined_negatives", "cet")}``: the command, the
    module, and the method whose card says what must be installed.
    """
    entries, found = load_registry().entries, {}
    for folder in sorted({entry.path.parent for entry in entries.values() if entry.path.name != "__init__.py"}):
        package = folder / "__init__.py"
        declared_here = _literal(package, f"{function.upper()}_AS") if package.is_file() else {}
        for name, (module, method) in declared_here.items():
            if method in entries:
                at = f"{entries[method].module.rpartition('.')[0]}.{module}"
                found[name] = replace(entries[method], module=at, path=folder / f"{module}.py")
    return found


def command_rows(function: str) -> list[tuple[str, str]]:
    """Name and purpose of every command: the methods', then the families'."""
    methods = [(entry.id, what_it_does(entry, function)) for entry in methods_with(function)]
    return [*methods, *((name, what_it_does(entry, function)) for name, entry in family_commands(function).items())]


def _literal(path: Path, wanted: str) -> dict[str, Any]:
    """The value of a literal dictionary at the top of a module, found without importing it; empty if there is none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == wanted for target in targets):
            return dict(ast.literal_eval(getattr(node, "value", ast.Dict([], []))))
    return {}


def what_it_does(entry: Entry, function: str) -> str:
    """The first paragraph of the function's docstring, else the summary of the card, and its other names."""
    found = declared(entry.path, function)
    text = (inspect.getdoc(found) if found else None) or entry.card.summary
    others = ", ".join(other_names(entry, function))
    return " ".join(text.partition("\n\n")[0].split()) + (f" Also as: {others}." if others else "")
