"""`transfuse doctor`: is everything here that the methods need, and is anything broken?"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import typer

from transfuse import __version__
from transfuse.cli.app import command
from transfuse.cli.requirements import Requirement, requirements
from transfuse.cli.selection import JsonOption, ResultsOption, results_folder
from transfuse.cli.tables import count, print_json, size, table
from transfuse.errors import UserError
from transfuse.registry import load_registry

State = Literal["ok", "missing", "broken"]
_PYTHONS = ((3, 11), (3, 13))


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis; "missing" is something optional that is not here."""

    name: str
    state: State
    finding: str
    fix: str = ""


def doctor(results: ResultsOption = None, json: JsonOption = False) -> None:
    """Check this installation: Python, machine, GPU, extras, folders. Exit status 1 if something is broken."""
    checks: list[Check] = []
    for step in (
        _python,
        _machine,
        lambda: _folders(results),
        _torch,
        _packages,
        _plugins,
        _data,
        lambda: _cells(results),
    ):
        checks += _guarded(step)
    broken = [check for check in checks if check.state == "broken"]
    if json:
        print_json({"broken": bool(broken), "checks": [asdict(check) for check in checks]})
    else:
        typer.echo(table(("", "WHAT", "FOUND", "TYPE"), [(c.state, c.name, c.finding, c.fix) for c in checks]))
        typer.echo(f"\n{count(len(broken), 'thing is', 'things are')} broken" if broken else "\nnothing is broken")
    if broken:
        raise typer.Exit(1)


def _guarded(step: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """A check that fails itself is a finding, not the end of the diagnosis."""
    try:
        yield from step()
    except Exception as error:
        yield Check("a check failed", "broken", f"{type(error).__name__}: {error}".splitlines()[0])


def _python() -> Iterator[Check]:
    fits = _PYTHONS[0] <= sys.version_info[:2] <= _PYTHONS[1]
    wanted = "" if fits else "use Python 3.11, 3.12 or 3.13"
    yield Check("transfuse", "ok", f"{__version__} in {Path(__file__).resolve().parent.parent}")
    yield Check("python", "ok" if fits else "broken", f"{platform.python_version()} ({sys.executable})", wanted)


def _machine() -> Iterator[Check]:
    import psutil

    from transfuse.study.plan import default_jobs

    memory = psutil.virtual_memory()
    yield Check("machine", "ok", f"{platform.system()} {platform.machine()}, {count(default_jobs(), 'usable core')}")
    yield Check("memory", "ok", f"{size(memory.available)} free of {size(memory.total)}")


def _folders(results: Path | None) -> Iterator[Check]:
    from transfuse.cache import cache_folder

    with contextlib.suppress(UserError):
        yield _folder("results folder", results_folder(results))
    cache = cache_folder()
    yield _folder("cache folder", cache)
    stages = [path for path in (cache / "stages").glob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in stages)
    yield Check(
        "stage cache",
        "ok",
        f"{count(len([p for p in stages if p.suffix != '.lock']), 'stage')}, {size(total)}; may be deleted",
    )


def _folder(name: str, folder: Path) -> Check:
    """Whether one can write there, or make it, without doing either."""
    nearest = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = size(shutil.disk_usage(nearest).free)
    if nearest.is_dir() and os.access(nearest, os.W_OK):
        return Check(name, "ok", f"{folder}, {free} free" + ("" if folder.exists() else " (made when needed)"))
    return Check(name, "broken", f"{folder} cannot be written", "choose another folder")


def _torch() -> Iterator[Check]:
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        yield Check("torch", "missing", "not installed", "pip install 'transfuse[all]'")
        return
    import torch

    yield Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        yield Check("gpu", "ok", f"{names} (CUDA {torch.version.cuda})")
    else:
        yield Check("gpu", "ok", "none; everything but the scale full runs on the CPU")


def _packages() -> Iterator[Check]:
    wanted = requirements()
    if not wanted:
        yield Check("packages", "missing", "transfuse runs from source and is not installed", "pip install -e .")
        return
    for extra in sorted(wanted.keys() - {"dev", "docs"}):
        unmet = [requirement for requirement in wanted[extra] if not requirement.met]
        yield _extra(extra, wanted[extra], unmet)


def _extra(extra: str, wanted: list[Requirement], unmet: list[Requirement]) -> Check:
    name = f"extra {extra}" if extra else "core packages"
    if not unmet:
        return Check(name, "ok", ", ".join(map(str, wanted)))
    fix = f"pip install 'transfuse[{extra}]'" if extra else "pip install --upgrade transfuse"
    return Check(name, "missing" if extra else "broken", ", ".join(map(str, unmet)), fix)


def _plugins() -> Iterator[Check]:
    registry = load_registry()
    yield Check("methods", "ok", count(len(registry.entries), "method"))
    for warning in registry.warnings:
        yield Check("plug-in", "missing", " ".join(warning.split()), "mend or remove the package")


def _data() -> Iterator[Check]:
    from transfuse.data.folder import data_folder, manifest, missing_files

    here = [set_id for set_id in manifest() if not missing_files(set_id)]
    lacking = len(manifest()) - len(here)
    fix = "transfuse data get --all" if lacking else ""
    yield Check(
        "data folder", "missing" if lacking else "ok", f"{data_folder()}: {len(here)} of {len(manifest())} sets", fix
    )


def _cells(results: Path | None) -> Iterator[Check]:
    from transfuse.study.store import Store

    store = Store(results_folder(results))
    cells = len(list(store.folder.glob("*/*/seed*.json")))
    unreadable = store.unreadable()
    yield Check("cells", "broken" if unreadable else "ok", f"{cells} in {store.folder}, {len(unreadable)} unreadable")
    for path in unreadable:
        yield Check("unreadable cell", "broken", str(path), "delete it and run its study again")


COMMAND = command(doctor, "transfuse doctor", "transfuse doctor --json")
