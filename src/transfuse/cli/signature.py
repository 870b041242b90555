"""A method's typed `audit` or `apply` function as a command: its signature is the schema."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click

_PLAIN: dict[type, click.ParamType] = {
    str: click.STRING,
    int: click.INT,
    float: click.FLOAT,
    bool: click.BOOL,
    Path: click.Path(path_type=Path),
}


@dataclass(frozen=True)
class Shape:
    """A type as the command line sees it: what one value is, and whether there may be several."""

    kind: click.ParamType
    several: bool = False
    collect: Callable[[Sequence[Any]], Any] = list


class NotPlainError(Exception):
    """A parameter takes an object of Python's that nobody can type in a shell."""


def options_of(function: Callable[..., Any]) -> list[click.Option]:
    """One option for each parameter; those with a default that no shell can give are left to it.

    Raises:
        NotPlainError: a parameter without default takes a Python object.
    """
    options = []
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation, text = _described(parameter.annotation)
        shape = shape_of(annotation)
        if shape is not None:
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
    if required:
        text = f"{text} (required)".strip()
    given = {} if required else {"default": default}  # a default of None is not the same to click as none
    return click.Option(
        [f"{flag}/--no-{flag[2:]}" if is_switch else flag, name],
        type=None if is_switch else shape.kind,
        required=required,
        multiple=shape.several,
        show_default=not required and default not in (None, (), [], False),
        help=text,
        callback=_collector(shape, given.get("default")) if shape.several else None,
        **given,
    )


def _collector(shape: Shape, default: Any) -> Callable[..., Any]:
    """Several values in the sequence type that the function asks for; its own default where none is given."""

    def collect(ctx: click.Context, option: click.Parameter, values: Sequence[Any]) -> Any:
        return shape.collect(values) if values else default

    return collect
