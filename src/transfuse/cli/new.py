"""`transfuse new`: a method, its study, its tests and its bench as small working files to replace by one's own."""

from __future__ import annotations

import importlib.util
import keyword
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Annotated, Any

import typer

from transfuse.atomic import write_text
from transfuse.card import FAMILIES
from transfuse.cli.app import command
from transfuse.cli.selection import registry_with_warnings
from transfuse.errors import UserError, did_you_mean
from transfuse.registry import METHODS_GROUP, STUDIES_GROUP


@dataclass(frozen=True)
class Place:
    """Where the files of a method go, and how its modules are called; `package` is the plug-in's, if it is one."""

    root: Path
    method: Path
    study: Path
    test: Path
    bench: Path
    module: str
    study_module: str
    package: str = ""


def complete_family(incomplete: str) -> list[str]:
    """All ten families, also those that have no method yet."""
    return [family for family in FAMILIES if family.startswith(incomplete)]


def new(
    method: Annotated[str, typer.Argument(metavar="ID", help="Name of the method: lower case, digits, underscores.")],
    family: Annotated[
        str,
        typer.Option("--family", metavar="FAMILY", help=f"{', '.join(FAMILIES)}.", autocompletion=complete_family),
    ],
    package: Annotated[
        Path | None,
        typer.Option("--package", metavar="DIR", help="In a package of your own; by default in this checkout."),
    ] = None,
) -> None:
    """Write the files of a new method: method, study, tests and bench, which work as they are.

    In a checkout of transfuse they go where its methods are. With --package they become a plug-in: a package that is
    made, or one made before that gets one more method. Nothing that exists is overwritten.
    """
    _check_id(method)
    if family not in FAMILIES:
        raise UserError(f"unknown family {family!r}", f"one of {', '.join(FAMILIES)}", did_you_mean(family, FAMILIES))
    place = _in_checkout(method, family) if package is None else _in_package(method, package)
    for path in (place.method, place.study, place.test, place.bench):
        if path.exists():
            raise UserError(f"{str(path)!r} is already there", fix="choose another ID; nothing was written")
    files = _files(place, method, family)
    _write(files)
    typer.echo("written:")
    for path in files:
        typer.echo(f"  {path}")
    typer.echo("\nall of it works as it is; replace it by your method. type:")
    if place.package:
        typer.echo(f"  pip install -e {place.root}")
    typer.echo(f"  transfuse run {method} --scale quick")
    typer.echo(f"  pytest {place.test}")


def _check_id(method: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", method) or keyword.iskeyword(method):
        raise UserError(f"method id {method!r}", "up to 40 lower-case letters, digits and underscores, a letter first")
    if (entry := registry_with_warnings().entries.get(method)) is not None:
        raise UserError(f"the id {method!r} is taken by {entry.module}", "an id that transfuse list does not show")


def _in_checkout(method: str, family: str) -> Place:
    root = _checkout()
    source = root / "src" / "transfuse"
    return Place(
        root=root,
        method=source / "methods" / family / f"{method}.py",
        study=source / "studies" / family / f"{method}.py",
        test=root / "tests" / "methods" / family / f"test_{method}.py",
        bench=root / "bench" / f"{method}.py",
        module=f"transfuse.methods.{family}.{method}",
        study_module=f"transfuse.studies.{family}.{method}",
    )


def _checkout() -> Path:
    """The nearest folder above that is a checkout of transfuse."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "src" / "transfuse" / "methods").is_dir() and _project(folder).get("name") == "transfuse":
            return folder
    raise UserError(
        f"{str(here)!r} is not in a checkout of transfuse", fix="add --package DIR for a package of your own"
    )


def _project(folder: Path) -> Mapping[str, Any]:
    path = folder / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return {}
    return project if isinstance(project, dict) else {}


def _in_package(method: str, folder: Path) -> Place:
    """A plug-in that is to be made, or one that is there and gets one more method."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--package {str(folder)!r} is a file", "a folder")
    package, source = _package(folder)
    return Place(
        root=folder,
        method=source / f"{method}.py",
        study=source / f"{method}_study.py",
        test=folder / "tests" / f"test_{method}.py",
        bench=folder / "bench" / f"{method}.py",
        module=f"{package}.{method}",
        study_module=f"{package}.{method}_study",
        package=package,
    )


def _package(folder: Path) -> tuple[str, Path]:
    """The name of the package in a folder, and where its modules are: as its entry points say, or as we would."""
    project = folder / "pyproject.toml"
    facts = _project(folder)
    points = facts.get("entry-points", {})
    methods = points.get(METHODS_GROUP, {}) if isinstance(points, dict) else {}
    first = next(iter(methods.values()), "") if isinstance(methods, dict) else ""
    name = str(facts.get("name", "")) if project.exists() else folder.resolve().name
    package = str(first).rpartition(".")[0] or re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in package.split(".")):
        given = f"{str(project)!r} names no project" if project.exists() else f"--package {str(folder)!r}"
        raise UserError(given, "a name that can be imported: letters, digits, '-' and '_', a letter first")
    inside = Path(*package.split("."))
    source = folder / inside if (folder / inside / "__init__.py").exists() else folder / "src" / inside
    _check_free(package, source)
    return package, source


def _check_free(package: str, source: Path) -> None:
    """A package that shadows an installed one could never be imported; mere folders shadow nothing."""
    top = package.split(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return
    if Path(spec.origin).resolve().parent not in (source.resolve(), *source.resolve().parents):
        raise UserError(f"the name {top!r} is taken by an installed package", fix="choose another --package DIR")


def _with_entry_points(project: Path, method: str, place: Place) -> str:
    """The project file of a package with one more method; its other lines stay as they are."""
    text = project.read_text(encoding="utf-8")
    wanted = {METHODS_GROUP: place.module, STUDIES_GROUP: place.study_module}
    for group, module in wanted.items():
        heading, line = f'[project.entry-points."{group}"]\n', f'{method} = "{module}"\n'
        text = text if heading in text else f"{text.rstrip()}\n\n{heading}"
        text = text.replace(heading, heading + line)
    try:
        found = tomllib.loads(text)["project"]["entry-points"]
        if all(found[group][method] == module for group, module in wanted.items()):
            return text
    except (tomllib.TOMLDecodeError, LookupError, TypeError):
        pass
    raise UserError(
        f"{str(project)!r} has entry points that cannot be extended",
        f'tables [project.entry-points."{METHODS_GROUP}"] and [project.entry-points."{STUDIES_GROUP}"]',
    )


def _files(place: Place, method: str, family: str) -> dict[Path, str]:
    """All files by path, the one that makes the method known last."""
    parts = {"method": place.method, "study": place.study, "test": place.test, "bench": place.bench}
    files = {path: _filled(f"{part}.py", place, method, family) for part, path in parts.items()}
    if place.package:  # a checkout has one contract test for all its methods
        files[place.test] = _with_contract(files[place.test], _filled("contract.py", place, method, family))
    files = {path: _arranged(text, place) for path, text in files.items()}
    about = "Methods for transfuse" if place.package else family.capitalize()
    for folder in {place.method.parent, place.study.parent}:
        if not (folder / "__init__.py").exists():
            files[folder / "__init__.py"] = f'"""{about}."""\n'
    if place.package:
        project = place.root / "pyproject.toml"
        known = project.exists()
        files[project] = (
            _with_entry_points(project, method, place) if known else _filled("pyproject.toml", place, method, family)
        )
    return files


def _filled(name: str, place: Place, method: str, family: str) -> str:
    text = resources.files("transfuse").joinpath("skeleton", f"{name}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(
        id=method,
        family=family,
        module=place.module,
        study_module=place.study_module,
        package=place.package,
        distribution=place.package.replace("_", "-"),
    )


def _with_contract(test: str, contract: str) -> str:
    line = "from transfuse.errors import UserError\n"
    return test.replace(line, f"{line}from transfuse.testing import CHECKS, check\n") + contract


def _arranged(text: str, place: Place) -> str:
    """Imports in the order that linters ask for: transfuse is ours in its checkout, and another's in a plug-in."""
    lines = text.splitlines(keepends=True)
    places = [i for i, line in enumerate(lines) if line.startswith(("from transfuse.", f"from {place.module} "))]
    first, last = places[0], places[-1]
    block = sorted(lines[first : last + 1])
    if place.package:
        own = [line for line in block if line.startswith(f"from {place.module} ")]
        rest = [line for line in block if line not in own]
        block = [*rest, "\n", *own] if rest and own else block
        if rest and lines[first - 1] == "\n":
            first -= 1  # joins the imports of other packages above
    return "".join([*lines[:first], *block, *lines[last + 1 :]])


def _write(files: Mapping[Path, str]) -> None:
    """All files, or none: those written before one that cannot be are taken back."""
    written: list[Path] = []
    try:
        for path, text in files.items():
            existed = path.exists()
            write_text(path, text)
            if not existed:
                written.append(path)
    except OSError:
        for path in written:
            path.unlink(missing_ok=True)
        raise


COMMAND = command(
    new,
    "transfuse new my_method --family distillation",
    "transfuse new my_method --family unlearning --package transfuse-mine",
)
