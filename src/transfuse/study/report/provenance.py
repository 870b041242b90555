"""Where numbers come from: cost, machine, settings that are not the default, and the command that repeats them."""

from __future__ import annotations

import ast
import importlib.util
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transfuse.config import Setting, read_settings
from transfuse.study.evidence import Evidence
from transfuse.study.report.figures import duration, number, seed_list

_UNKNOWN = object()  # a default that is not a literal


@dataclass(frozen=True)
class ChangedSetting:
    """A setting that is not the study's default."""

    name: str
    value: str
    default: str
    by: str  # "scale" or "hand"
    reason: str  # of the default


@dataclass(frozen=True)
class CostRow:
    """What one cell took."""

    seed: str
    wall: str
    cpu: str
    memory: str


def changed_settings(evidence: Evidence) -> list[ChangedSetting]:
    """Settings that differ from the defaults, which are read from the study's source."""
    scale = evidence.study.scales.get(evidence.scale, {})
    found = []
    for declared in _declared_settings(evidence.entry.study_module or ""):
        if declared.name not in evidence.settings:
            continue
        value, default = evidence.settings[declared.name], _literal(declared.default)
        usual = _merged(default, scale[declared.name]) if declared.name in scale else default
        by_hand = usual is not _UNKNOWN and value != usual
        if by_hand or (declared.name in scale and value != default):
            shown = declared.default if default is _UNKNOWN else json.dumps(default)
            by = "hand" if by_hand else "scale"
            found.append(ChangedSetting(declared.name, json.dumps(value), shown, by, declared.reason))
    return found


def own_settings(evidence: Evidence) -> list[ChangedSetting]:
    """Settings that somebody gave by hand; with them the cells are not those of the scale."""
    return [setting for setting in changed_settings(evidence) if setting.by == "hand" and setting.name != "device"]


@cache
def _declared_settings(module: str) -> tuple[Setting, ...]:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return ()
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ()
    return tuple(read_settings(Path(spec.origin).read_text(encoding="utf-8"), "Settings"))


def _literal(text: str) -> Any:
    try:
        return json.loads(json.dumps(ast.literal_eval(text)))  # tuples as the lists that cells hold
    except (ValueError, TypeError, SyntaxError):
        return _UNKNOWN


def _merged(default: Any, given: Any) -> Any:
    """What a scale makes of a default; tables are laid over tables of which we know the rest."""
    if isinstance(given, Mapping):
        return {**default, **given} if isinstance(default, dict) else _UNKNOWN
    return json.loads(json.dumps(given))


def command(evidence: Evidence) -> str:
    """What to type to make the cells again."""
    words = ["transfuse", "run", evidence.study.id, "--scale", evidence.scale]
    words += ["--seeds", _seeds_to_type(evidence.seeds)]
    for setting in changed_settings(evidence):
        if setting.by == "hand":
            words += ["--set", f"{setting.name}={setting.value}"]
    return shlex.join(words)


def _seeds_to_type(seeds: list[int]) -> str:
    """A number of seeds where they are the first; else their list, of which a single one is a range."""
    if seeds == list(range(len(seeds))):
        return str(len(seeds))
    return ",".join(map(str, seeds)) if len(seeds) > 1 else f"{seeds[0]}-{seeds[0]}"


_MOST_ROWS = 30  # of cells whose cost is told one by one


def cost_rows(evidence: Evidence) -> list[CostRow]:
    """One row a cell, unless there are very many, then their total."""
    rows = [
        CostRow(str(cell.spec.seed), duration(wall), duration(cpu), f"{number(memory)} MB")
        for cell in (evidence.cells if len(evidence.cells) <= _MOST_ROWS else ())
        for wall, cpu, memory in [_cost(cell.cost)]
    ]
    costs = [_cost(cell.cost) for cell in evidence.cells]
    walls, cpus, memories = zip(*costs, strict=True)
    return [*rows, CostRow("all", duration(sum(walls)), duration(sum(cpus)), f"{number(max(memories))} MB at most")]


def _cost(cost: Mapping[str, float]) -> tuple[float, float, float]:
    return cost.get("wall_s", 0.0), cost.get("cpu_s", 0.0), cost.get("peak_mb", 0.0)


def mean_wall(evidence: Evidence) -> float:
    """Seconds a cell, all arms together."""
    return sum(_cost(cell.cost)[0] for cell in evidence.cells) / len(evidence.cells)


def environments(evidence: Evidence) -> list[tuple[str, str]]:
    """Seeds, and the machine, threads and versions that they ran with; one line for each that differs."""
    groups: dict[str, list[int]] = {}
    for cell in evidence.cells:
        groups.setdefault(_environment(cell.environment), []).append(cell.spec.seed)
    return [(f"seeds {seed_list(seeds)}", words) for words, seeds in groups.items()]


def _environment(environment: Mapping[str, Any]) -> str:
    versions = environment.get("versions", {})
    parts = [
        f"{environment.get('machine', 'unknown machine')}, {environment.get('cores', '?')} cores",
        f"device {environment.get('device', '?')}",
        f"{environment.get('threads', '?')} thread(s) a cell",
        f"Python {environment.get('python', '?')}",
        *(f"{name} {version}" for name, version in versions.items()),
    ]
    if kept := environment.get("kept"):
        seeds = sorted({seed for change in kept for seed in change["equal_on_seeds"]})
        parts.append(f"code changed since, with equal numbers on seed {seed_list(seeds)}")
    return "; ".join(parts)


def warnings(evidence: Evidence) -> list[tuple[str, str]]:
    """Warnings that the cells raised, each once, with its seeds."""
    groups: dict[str, list[int]] = {}
    for cell in evidence.cells:
        for text in cell.warnings:
            groups.setdefault(text, []).append(cell.spec.seed)
    return [(f"seeds {seed_list(seeds)}", text) for text, seeds in groups.items()]
