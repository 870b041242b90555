"""Cells on a Slurm cluster through submitit, one job a cell; submitit's local executor serves for trying it out."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfuse.errors import MissingExtraError, UserError, did_you_mean
from transfuse.study.launch import Job, Outcome, environment, work, worker_environment
from transfuse.study.store import CellSpec

CLUSTERS = ("slurm", "local")
_ARRAY = 1000  # jobs of one array; Slurm's own limit is 1001 unless the site has raised it
_LOOK_S = 30.0  # between questions to Slurm about jobs that may have died; answers of jobs are seen at once


@dataclass(frozen=True)
class Slurm:
    """One Slurm job a cell, in job arrays of limited width. A cell whose job died is sent again.

    The results folder and the folder of the logs must be seen by all nodes.

    Attributes:
        logs: where submitit keeps job files and logs of this run; removed at its end unless a cell failed.
        jobs: how many cells at once.
        cluster: "slurm", or "local" for processes on this machine.
        minutes: time limit of a cell.
        parameters: for submitit: `partition`, `account`, `mem_gb`, `gpus_per_node`, ...
        retries: how often a cell whose job died is sent again.
        poll_s: seconds between looks for answers.
    """

    logs: Path
    jobs: int = 8
    cluster: str = "slurm"
    minutes: int = 60
    parameters: Mapping[str, Any] = field(default_factory=dict)
    retries: int = 2
    poll_s: float = 1.0

    def width(self, job: Job) -> int:
        self._check(_import_submitit())
        return self.jobs

    def launch(self, cells: Sequence[CellSpec], job: Job) -> Generator[Outcome, None, None]:
        job = Job(job.results.absolute(), job.threads, job.device)
        executor = self._executor(job)
        waiting = list(cells)
        running: dict[Any, CellSpec] = {}
        deaths: Counter[str] = Counter()
        failed, looked = 0, time.monotonic()
        # Slurm keeps to the width of an array by itself; processes here must be held back.
        room = _ARRAY if self.cluster == "slurm" else self.jobs
        try:
            while waiting or running:
                if waiting and len(running) < room:
                    batch, waiting = waiting[: room - len(running)], waiting[room - len(running) :]
                    running |= _submit(executor, batch, job)
                for submitted in [submitted for submitted in running if submitted.done()]:
                    spec = running.pop(submitted)
                    outcome = _outcome(submitted, spec)
                    if isinstance(outcome, str) and deaths[spec.name] < self.retries:
                        deaths[spec.name] += 1
                        waiting.append(spec)
                        continue
                    if isinstance(outcome, str):
                        outcome = self._given_up(spec, outcome, deaths[spec.name] + 1)
                    failed += outcome.path is None
                    yield outcome
                if running:
                    time.sleep(self.poll_s)
                    looked = _look(next(iter(running)), looked)
        finally:
            for submitted in running:
                submitted.cancel(check=False)
        if not failed:
            shutil.rmtree(self.logs, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.logs.parent.rmdir()  # unless it holds more than this run's

    def _executor(self, job: Job) -> Any:
        submitit = _import_submitit()
        given = self._check(submitit)
        own = {
            "timeout_min": self.minutes,
            "cpus_per_task": job.threads,
            "name": "transfuse",
            "slurm_array_parallelism": self.jobs,
        }
        if job.device == "cuda":
            own["gpus_per_node"] = 1
        executor = submitit.AutoExecutor(folder=self.logs, cluster=self.cluster)
        executor.update_parameters(**own | given)
        return executor

    def _check(self, submitit: Any) -> dict[str, Any]:
        """The parameters under submitit's names, or one line on what is wrong with them; nothing is written."""
        if self.cluster not in CLUSTERS:
            raise UserError(f"Slurm setting cluster = {self.cluster!r}", f"one of {', '.join(CLUSTERS)}")
        general = submitit.AutoExecutor._typed_parameters()
        special = submitit.SlurmExecutor._valid_parameters()
        found = {}
        for key, value in self.parameters.items():
            name = key.removeprefix("slurm_")
            if name not in general and name not in special:
                raise UserError(
                    f"submitit has no parameter {key!r}", fix=did_you_mean(name, {*general, *special, "minutes"})
                )
            kind = general.get(name)
            if kind is not None and not isinstance(value, (int, float) if kind is float else kind):
                raise UserError(f"Slurm parameter {key} = {value!r}", f"a value of type {kind.__name__}")
            found[name if name in general else f"slurm_{name}"] = value
        if self.cluster == "slurm" and submitit.SlurmExecutor.affinity() < 0:
            raise UserError(
                "no Slurm here: the command srun was not found",
                fix="run this on a login node, or try it out with --engine-set cluster=local",
            )
        return found

    def _given_up(self, spec: CellSpec, state: str, times: int) -> Outcome:
        limit = f"a cell has {self.minutes} min (--engine-set minutes={2 * self.minutes} gives it more)"
        return Outcome(
            spec, None, f"its job ended {times} times without an answer ({state}); {limit}; logs in {self.logs}"
        )


def _submit(executor: Any, batch: Sequence[CellSpec], job: Job) -> dict[Any, CellSpec]:
    """Send cells as one array; jobs get the environment of the command that sends them."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with environment(worker_environment(job)), executor.batch():
            submitted = [executor.submit(work, spec, job) for spec in batch]
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"Slurm refused the cells ({lines[-1] if lines else error!r})", fix="check --engine-set"
        ) from None
    return dict(zip(submitted, batch, strict=True))


def _look(submitted: Any, looked: float) -> float:
    """Ask Slurm about all jobs from time to time: submitit alone would wait longer and longer."""
    if time.monotonic() - looked < _LOOK_S:
        return looked
    submitted.get_info(mode="force")
    return time.monotonic()


def _outcome(submitted: Any, spec: CellSpec) -> Outcome | str:
    """What the job returned, or the state in which it ended without an answer."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        outcome: Outcome = submitted.result()
    except FailedJobError as error:  # before the other, which it is a kind of
        return Outcome(spec, None, f"its job could not run it: {_reason(str(error))}", str(error))
    except UncompletedJobError:
        return str(submitted.state)
    if outcome.error.startswith("UncompletedJobError"):  # Slurm's warning before the end came as an exception
        return "stopped at its time limit, or by Slurm"
    if outcome.path is not None and not _arrived(outcome.path):
        return Outcome(spec, None, f"{str(outcome.path)!r} was written but cannot be seen from here; share the folder")
    return outcome


def _reason(text: str) -> str:
    """The last line of the traceback that submitit sets between dashes."""
    parts = text.split("-" * 22)
    lines = [line.strip() for line in parts[min(1, len(parts) - 1)].splitlines() if line.strip()]
    return lines[-1] if lines else text


def _arrived(path: Path, patience: float = 20.0) -> bool:
    """Whether a file that a node has written is there; shared folders show it with a delay."""
    end = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > end:
            return False
        with contextlib.suppress(OSError):
            list(path.parent.iterdir())  # makes a network folder look again
        time.sleep(0.5)
    return True


def _import_submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise MissingExtraError("--engine slurm", "slurm", "submitit") from None
    return submitit
