"""Typed settings from layers: the dataclass's defaults, then TOML files, then ``--set a.b=1``.

A settings class is a frozen dataclass; its fields are the one place where a default stands. Values are
validated by pydantic. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import tokenize
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from transfuse.errors import UserError, did_you_mean

T = TypeVar("T")
_DEEPEST = 20  # levels of tables and lists in a settings file; beyond hundreds Python's own stack would give out


def resolve(schema: type[T], *layers: Mapping[str, Any], name: str = "settings") -> T:
    """Build `schema` from its defaults and the given layers; later layers win, key by key.

    Raises:
        UserError: an unknown key, or a value of the wrong type.
    """
    merged = merge(*layers)
    _check_keys(schema, merged, name)
    from pydantic import TypeAdapter, ValidationError  # kept out of `transfuse list`

    try:
        return TypeAdapter(schema).validate_python(merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        raise UserError(f"{name}: {key} = {_short(first['input'])}", message[0].lower() + message[1:]) from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables as one; later layers win, key by key."""
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge(merged, layer)
    return merged


def _merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = merge(value) if isinstance(value, Mapping) else value  # a copy at every depth


def _check_keys(schema: type, values: Mapping[str, Any], name: str) -> None:
    hints = get_type_hints(schema)
    known = [field.name for field in dataclasses.fields(schema)]
    for key, value in values.items():
        if key not in known:
            hint = did_you_mean(key, known) or f"known keys: {', '.join(known)}"
            raise UserError(f"{name} has no key {key!r}", fix=hint)
        _check_inside(hints[key], value, f"{name}.{key}")


def _check_inside(hint: Any, value: Any, name: str) -> None:
    """Look for unknown keys wherever a settings class may stand: alone, optional, in tables and in lists."""
    origin, arguments = get_origin(hint), [a for a in get_args(hint) if a not in (type(None), ...)]
    if hint in (int, float) and isinstance(value, bool):
        raise UserError(f"{name} = {value}", "a number")  # pydantic would take it as 0 or 1
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        _check_keys(hint, value, name)
    elif origin in (Union, UnionType) and len(arguments) == 1:
        _check_inside(arguments[0], value, name)
    elif isinstance(value, Mapping) and len(arguments) == 2:
        for key, inner in value.items():
            _check_inside(arguments[1], inner, f"{name}.{key}")
    elif isinstance(value, list | tuple) and len(arguments) == 1:
        for index, inner in enumerate(value):
            _check_inside(arguments[0], inner, f"{name}[{index}]")


def parse_assignments(assignments: list[str], option: str = "--set", example: str = "epochs=3") -> dict[str, Any]:
    """``["a.b=1", "c=x"]`` as nested dictionaries; values are TOML, or plain strings where that fails."""
    result: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts) or len(parts) > _DEEPEST:
            raise UserError(f"{option} {_short(text)}", "KEY=VALUE", f"for example {option} {example}")
        inner = result
        for part in parts[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UserError(f"{option} {text!r}", f"{part!r} to be a table, but it was given a value before")
        inner[parts[-1]] = _parse_value(value.strip())
    return result


def _parse_value(text: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # no TOML, a number of thousands of digits, brackets that never close
        return text
    if found.keys() != {"value"} or _is_deeper(found["value"], _DEEPEST):
        return text  # a line break in it must not bring in another key
    return found["value"]


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether tables and lists are nested in more than so many levels."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_is_deeper(item, levels - 1) for item in inner))


def read_toml(path: Path) -> dict[str, Any]:
    """A settings file, or one clear line about what is wrong with it."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        if not _is_deeper(found, _DEEPEST):
            return found
    except OSError as error:
        raise UserError(f"settings file {str(path)!r}: {error.strerror}", "a readable TOML file") from None
    except UnicodeDecodeError:
        raise UserError(f"settings file {str(path)!r} is not UTF-8 text", "a TOML file") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise UserError(f"settings file {str(path)!r} is not valid TOML: {error}") from None
    except RecursionError:
        pass
    raise UserError(f"settings file {str(path)!r} is nested too deeply", f"at most {_DEEPEST} levels")


def to_plain(settings: Any) -> dict[str, Any]:
    """Settings as JSON values, for cells and for printing."""
    return {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_plain(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return value


@dataclasses.dataclass(frozen=True)
class Setting:
    """One documented setting: what `show` and the generated pages print."""

    name: str
    type: str
    default: str
    reason: str


def read_settings(source: str, class_name: str = "Config") -> list[Setting]:
    """The fields of a settings class with the reason that stands behind each default, from source text.

    The module is not imported, so this works without the method's host.
    """
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return [
                Setting(
                    name=item.target.id,
                    type=ast.unparse(item.annotation),
                    default=ast.unparse(item.value) if item.value else "(required)",
                    reason=comments.get(item.end_lineno or item.lineno, ""),
                )
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            ]
    return []


def settings_of(schema: type) -> list[Setting]:
    """As `read_settings`, for a class that is already imported."""
    return read_settings(inspect.getsource(inspect.getmodule(schema)), schema.__name__)  # type: ignore[arg-type]
