"""A method's typed `audit` or `apply` function as a command: its signature is the schema."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin

import click

_PLAIN: dict[type, click.ParamType] = {
    str: click.STRING,
    int: click.INT,
    float: click.FLOAT,
    bool: click.BOOL,
    Path: click.Path(path_type=Path),
}


_NAMES: dict[str, Any] = {
    "__builtins__": {},
    **{kind.__name__: kind for kind in (*_PLAIN, list, tuple, Sequence)},
    "Annotated": Annotated,
    "Literal": Literal,
    "Optional": Optional,
}


@dataclass(frozen=True)
class Shape:
    """A type as the command line sees it: what one value is, and whether there may be several."""

    kind: click.ParamType
    several: bool = False
    collect: Callable[[Sequence[Any]], Any] = list


class NotPlainError(Exception):
    """A parameter takes an object of Python's that nobody can type in a shell."""


def declared(path: Path, name: str) -> Callable[..., Any] | None:
    """A function with the signature and docstring of one in a source file, made without importing the file's host.

    None where the signature needs more than plain types, `Literal` names and the defaults of `Config`.
    """
    names: dict[str, Any] = dict(_NAMES)
    for node in _with_imported_names(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            names["Config"] = SimpleNamespace(**dict(_literal_defaults(node)))
        elif isinstance(node, ast.FunctionDef) and node.name == name:
            node.decorator_list, node.returns = [], None
            node.body = [ast.Expr(ast.Constant(ast.get_docstring(node) or ""))]
        elif not isinstance(node, ast.Assign):
            continue
        with contextlib.suppress(NameError, TypeError, AttributeError, ValueError):
            code = compile(ast.fix_missing_locations(ast.Module([node], [])), str(path), "exec", dont_inherit=True)
            exec(code, names)
    found = names.get(name)
    return found if inspect.isfunction(found) else None


def _with_imported_names(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements; before an import from the same package, the assignments there of what is imported."""
    for node in body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transfuse.methods."):
            spec = importlib.util.find_spec(node.module or "")
            wanted = {alias.name for alias in node.names if alias.asname is None}
            source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
            for other in ast.parse(source).body:
                if isinstance(other, ast.Assign) and {t.id for t in other.targets if isinstance(t, ast.Name)} & wanted:
                    yield other
        yield node


def _literal_defaults(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None:
            with contextlib.suppress(ValueError):
                yield item.target.id, ast.literal_eval(item.value)


ARGUMENT = "argument"  # a second note in Annotated[type, "what it is", "argument"]: given by position, without a flag


def options_of(function: Callable[..., Any]) -> list[click.Parameter]:
    """One option for each parameter, an argument for each marked as one; a default that no shell can give is left.

    Raises:
        NotPlainError: a parameter without default takes a Python object.
    """
    options: list[click.Parameter] = []
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation, text = _described(parameter.annotation)
        shape = shape_of(annotation)
        if shape is not None and ARGUMENT in getattr(parameter.annotation, "__metadata__", ()):
            options.append(click.Argument([name], type=shape.kind, required=parameter.default is parameter.empty))
        elif shape is not None:
            options.append(_option(name, shape, parameter.default, text))
        elif parameter.default is parameter.empty:
            raise NotPlainError(name)
    return options


def shape_of(annotation: Any) -> Shape | None:
    """The command line's view of a type; None for a type that cannot be typed in."""
    if annotation in _PLAIN:
        return Shape(_PLAIN[annotation])
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return Shape(_LiteralChoice(inner))
    if origin in (Union, types.UnionType):
        candidates = [shape_of(part) for part in inner if part is not type(None)]
        return next((shape for shape in candidates if shape is not None), None)
    if inner and isinstance(origin, type) and issubclass(origin, Sequence) and len({*inner} - {...}) == 1:
        element = shape_of(inner[0])
        return element and Shape(element.kind, True, tuple if origin is tuple else list)
    return None


class _LiteralChoice(click.Choice):
    """The values of a `Literal`; numbers among them come back as numbers."""

    def __init__(self, values: Sequence[Any]) -> None:
        super().__init__([str(value) for value in values])
        self.by_text = {str(value): value for value in values}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.by_text[super().convert(str(value), param, ctx)]


def _described(annotation: Any) -> tuple[Any, str]:
    if get_origin(annotation) is not Annotated:
        return annotation, ""
    bare, *notes = get_args(annotation)
    return bare, next((note for note in notes if isinstance(note, str)), "")


def _option(name: str, shape: Shape, default: Any, text: str) -> click.Option:
    required = default is inspect.Parameter.empty
    flag = f"--{name.strip('_').replace('_', '-')}"
    is_switch = shape.kind is click.BOOL and not shape.several
    given = {} if required else {"default": default}  # a default of None is not the same to click as none
    return click.Option(
        [f"{flag}/--no-{flag[2:]}" if is_switch else flag, name],
        type=None if is_switch else shape.kind,
        required=required,
        multiple=shape.several,
        show_default=not required and default not in (None, (), []) and default is not False,
        help=text,
        callback=_collector(shape, given.get("default")) if shape.several else None,
        **given,
    )


def _collector(shape: Shape, default: Any) -> Callable[..., Any]:
    """Several values in the sequence type that the function asks for; its own default where none is given."""

    def collect(ctx: click.Context, option: click.Parameter, values: Sequence[Any]) -> Any:
        return shape.collect(values) if values else default

    return collect
