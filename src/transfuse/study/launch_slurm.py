"""Cells on a Slurm cluster through submitit, one job a cell; submitit's local executor serves for trying it out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfuse.errors import MissingExtraError
from transfuse.study.launch import Job, Outcome, work
from transfuse.study.store import CellSpec


@dataclass(frozen=True)
class Slurm:
    """One Slurm job a cell, as a job array of limited width.

    Attributes:
        logs: where submitit keeps job files and logs; must be seen by all nodes.
        jobs: how many cells at once.
        cluster: "slurm", or "local" for processes on this machine.
        minutes: time limit of a cell.
        parameters: handed to submitit as they are (slurm_partition, slurm_account, mem_gb, ...).
        retries: how often a cell whose job died is sent again.
        poll_s: seconds between looks at the queue.
    """

    logs: Path
    jobs: int = 8
    cluster: str = "slurm"
    minutes: int = 60
    parameters: Mapping[str, Any] = field(default_factory=dict)
    retries: int = 2
    poll_s: float = 1.0

    def launch(self, cells: Sequence[CellSpec], job: Job) -> Iterator[Outcome]:
        executor = self._executor(job)
        waiting = list(cells)
        running: dict[Any, CellSpec] = {}
        deaths: dict[str, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    spec = waiting.pop(0)
                    running[executor.submit(work, spec, job)] = spec
                for submitted in [submitted for submitted in running if submitted.done()]:
                    spec = running.pop(submitted)
                    outcome = _outcome(submitted, spec)
                    deaths[spec.name] = deaths.get(spec.name, 0) + (outcome is None)
                    if outcome is not None:
                        yield outcome
                    elif deaths[spec.name] <= self.retries:
                        waiting.append(spec)
                    else:
                        yield Outcome(spec, None, f"its job died {deaths[spec.name]} times; logs in {self.logs}")
                if running:
                    time.sleep(self.poll_s)
        finally:
            for submitted in running:
                submitted.cancel()

    def _executor(self, job: Job):  # type: ignore[no-untyped-def]  # submitit is an optional extra
        try:
            import submitit
        except ImportError:
            raise MissingExtraError("--engine slurm", "slurm", "submitit") from None
        executor = submitit.AutoExecutor(folder=self.logs, cluster=self.cluster)
        executor.update_parameters(timeout_min=self.minutes, cpus_per_task=job.threads, **self.parameters)
        return executor


def _outcome(submitted, spec: CellSpec) -> Outcome | None:  # type: ignore[no-untyped-def]
    """What the job returned, or None if it died without an answer."""
    import submitit

    try:
        return submitted.result()
    except submitit.core.utils.UncompletedJobError:
        return None
    except submitit.core.utils.FailedJobError as error:
        return Outcome(spec, None, str(error).splitlines()[0], str(error))
