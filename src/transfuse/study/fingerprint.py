"""A fingerprint of the code that a cell ran: syntax trees without docstrings, comments and layout.

It covers the module and every transfuse module that it imports, directly or not, except those that cannot
change a measurement: how claims are judged, cells stored, commands parsed. The `CARD` and `STUDY` literals
are left out too; what a study measures is in its settings and its functions.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

_IRRELEVANT = ("transfuse.study", "transfuse.cli", "transfuse.card", "transfuse.registry", "transfuse.config")
_IRRELEVANT_NAMES = ("CARD", "STUDY")


@cache
def fingerprint(module: str) -> str:
    """Sixteen hexadecimal digits for a module and the transfuse code under it."""
    digest = hashlib.sha256()
    for name in sorted(closure(module)):
        digest.update(f"{name}\n{_shape(_tree(name))}\n".encode())
    return digest.hexdigest()[:16]


def closure(module: str) -> set[str]:
    """The module and all relevant modules of its own package, or of transfuse, that it imports."""
    found: set[str] = set()
    open_names = [module]
    while open_names:
        name = open_names.pop()
        if name in found or _source(name) is None:
            continue
        found.add(name)
        open_names += [other for other in _imports(name) if _relevant(other, module)]
    return found


def _relevant(name: str, root: str) -> bool:
    if name == "transfuse.study.streams":
        return True  # the one part of the machinery that numbers depend on
    if name.startswith(_IRRELEVANT):
        return False
    return name.split(".")[0] in ("transfuse", root.split(".")[0])


def _imports(module: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, (_package(module, node.level), node.module)))
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def _package(module: str, level: int) -> str:
    """The package that an import with so many leading dots starts from; empty for one without dots."""
    if level == 0:
        return ""
    path = _source(module)
    parts = module.split(".") if path is not None and path.name == "__init__.py" else module.split(".")[:-1]
    return ".".join(parts[: len(parts) - level + 1])


@cache
def _source(module: str) -> Path | None:
    parent = module.rpartition(".")[0]
    if parent and (_source(parent) or Path()).name not in ("__init__.py", ""):
        return None  # a name inside a module; to ask for its spec would import the module
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


@cache
def _tree(module: str) -> ast.Module:
    path = _source(module)
    assert path is not None  # callers come from `closure`, which has looked
    return ast.parse(path.read_text(encoding="utf-8"))


def _shape(node: ast.AST | list | object) -> str:
    """A dump that is the same on every supported Python: empty fields and positions are left out."""
    if isinstance(node, list):
        return "[" + ",".join(_shape(item) for item in node) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(value, list):
            top = isinstance(node, ast.Module)
            value = [item for index, item in enumerate(value) if not _left_out(item, index, top)]
        if value is None or value == [] or name in ("ctx", "type_comment", "kind"):
            continue
        parts.append(f"{name}={_shape(value)}")
    return f"{type(node).__name__}({','.join(parts)})"


def _left_out(node: ast.AST, index: int, top: bool) -> bool:
    if index == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return isinstance(node.value.value, str)
    if top and isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id in _IRRELEVANT_NAMES
    return False
