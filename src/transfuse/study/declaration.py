"""Reads a study's declaration without importing its module, so that reports need no host installed.

`STUDY = Study(...)` is data: it is evaluated with nothing but the names that declarations are made of and
the module's own literal assignments above it.
"""

from __future__ import annotations

import ast
import contextlib
from dataclasses import make_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transfuse.errors import UserError
from transfuse.registry import Entry, import_study
from transfuse.study import claims, design
from transfuse.study.design import Study

_NAMES: dict[str, Any] = {
    **{name: getattr(claims, name) for name in ("AtLeast", "AtMost", "Beats", "Trend", "Within")},
    **{name: getattr(design, name) for name in ("Metric", "Study")},
    "dict": dict,
    "tuple": tuple,
    "range": range,
}


@cache
def read_study(entry: Entry) -> Study:
    """The declaration of a method's study.

    Its `settings` is a placeholder. A declaration that needs more than literals is imported instead.
    """
    if entry.study_module is None:
        raise UserError(f"method {entry.id!r} has no study")
    path = _study_path(entry)
    study = _evaluate(path) if path is not None else None
    return study if study is not None else import_study(entry).STUDY


def _study_path(entry: Entry) -> Path | None:
    import importlib.util

    assert entry.study_module is not None  # read_study has looked
    spec = importlib.util.find_spec(entry.study_module)
    return Path(spec.origin) if spec and spec.origin else None


def _evaluate(path: Path) -> Study | None:
    names: dict[str, Any] = {**_NAMES, "Settings": make_dataclass("Settings", [])}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            continue
        code = compile(ast.Module([node], []), str(path), "exec")
        with contextlib.suppress(NameError, TypeError, ImportError):
            exec(code, {"__builtins__": {}, **names}, names)
    study = names.get("STUDY")
    return study if isinstance(study, Study) else None
