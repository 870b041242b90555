"""Which packages an installation asks for, by extra, and which of them are there."""

from __future__ import annotations

import importlib.metadata
import re
from collections import defaultdict
from dataclasses import dataclass

_NAME = re.compile(r"^\s*([A-Za-z0-9][\w.-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?$")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")
_BOUND = re.compile(r"(>=|<=|==|!=|<|>|~=)\s*([\d.]+)")


@dataclass(frozen=True)
class Requirement:
    """A package, the versions that will do, and the version that is here."""

    name: str
    bounds: str
    installed: str | None

    @property
    def met(self) -> bool:
        """Whether it is here in a version that will do."""
        if self.installed is None:
            return False
        here = _numbers(self.installed)
        return all(_holds(here, operator, _numbers(bound)) for operator, bound in _BOUND.findall(self.bounds))

    def __str__(self) -> str:
        if self.installed is None:
            return f"{self.name} missing"
        return f"{self.name} {self.installed}" + ("" if self.met else f" (needs {self.bounds})")


def requirements(package: str = "transfuse") -> dict[str, list[Requirement]]:
    """By extra; the core's own stand under the empty name. Empty where the package is not installed as one."""
    found: dict[str, list[Requirement]] = defaultdict(list)
    try:
        lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    for line in lines:
        match = _NAME.match(line)
        if match is None or match[1].lower() == package:
            continue
        extra = _EXTRA.search(match[3] or "")
        found[extra[1] if extra else ""].append(Requirement(match[1], match[2].strip(), _version(match[1])))
    return dict(found)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].strip(".").split(".") if part)  # type: ignore[index]


def _holds(here: tuple[int, ...], operator: str, bound: tuple[int, ...]) -> bool:
    width = max(len(here), len(bound))
    a, b = (part + (0,) * (width - len(part)) for part in (here, bound))
    if operator == "~=":
        return a >= b and here[: len(bound) - 1] == bound[:-1]
    return {">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, "<": a < b, ">": a > b}[operator]
