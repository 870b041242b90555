"""Where cells run: the launcher for ``--engine``, from the command line and the tables [ray] and [slurm] of a file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from transfuse.config import merge, parse_assignments, resolve
from transfuse.errors import UserError

if TYPE_CHECKING:
    from transfuse.study.launch import Launcher

ENGINES = ("local", "ray", "slurm")


@dataclass(frozen=True)
class RaySettings:
    """Table [ray]."""

    address: str | None = None
    retries: Annotated[int, Ge(0)] = 2


@dataclass(frozen=True)
class SlurmSettings:
    """Table [slurm]; all other keys are submitit's."""

    cluster: str = "slurm"
    minutes: Annotated[int, Ge(1)] = 60
    retries: Annotated[int, Ge(0)] = 2
    jobs: Annotated[int, Ge(1)] = 8
    logs: Path | None = None


def engine_tables(settings: dict[str, Any]) -> dict[str, Any]:
    """Take the engines' tables out of a settings file, so that one file holds both; what is left is the studies'."""
    return {name: settings.pop(name) for name in ENGINES if isinstance(settings.get(name), Mapping)}


def make_launcher(
    engine: str,
    tables: Mapping[str, Any],
    assignments: Sequence[str],
    *,
    address: str | None,
    jobs: int | None,
    default_jobs: int,
    results: Path,
    output: bool,
) -> Launcher:
    """The launcher that was asked for; nothing is connected or written yet.

    Raises:
        UserError: a setting that the engine does not have, or of the wrong type.
    """
    given = merge(tables.get(engine, {}), parse_assignments(list(assignments), "--engine-set", "minutes=30"))
    if address is not None:
        if engine != "ray":
            raise UserError(f"--address {address!r} with --engine {engine}", "--engine ray", "only Ray has an address")
        given["address"] = address
    if engine == "local":
        if assignments:
            raise UserError("--engine-set with --engine local", "--engine ray or slurm", "worker processes have none")
        from transfuse.study.launch import LocalProcesses

        return LocalProcesses(jobs or default_jobs, output=output)
    if engine == "ray":
        from transfuse.study.launch_ray import RayCluster

        ray: RaySettings = resolve(RaySettings, given, name="settings of ray")
        return RayCluster(ray.address, jobs or (None if ray.address else default_jobs), ray.retries, output)
    return _slurm(given, jobs, results)


def _slurm(given: Mapping[str, Any], jobs: int | None, results: Path) -> Launcher:
    from transfuse.study.launch_slurm import Slurm

    own = {field.name for field in fields(SlurmSettings)}
    known = {key: value for key, value in given.items() if key in own}
    slurm: SlurmSettings = resolve(SlurmSettings, known, name="settings of slurm")
    logs = slurm.logs or results.absolute() / ".slurm"
    return Slurm(
        logs=logs / time.strftime("%Y%m%d-%H%M%S"),
        jobs=jobs or slurm.jobs,
        cluster=slurm.cluster,
        minutes=slurm.minutes,
        parameters={key: value for key, value in given.items() if key not in own},
        retries=slurm.retries,
    )
