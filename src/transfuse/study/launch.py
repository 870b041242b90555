"""Launchers: the same list of pending cells goes to worker processes here, or elsewhere.

A launcher is anything with ``launch(cells, job)`` that yields an `Outcome` for each cell as it ends. Workers
that share a disk with the caller write the cell themselves, so that only a name has to travel back; the others
send it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from transfuse.disk import OUT_OF_SPACE, out_of_space
from transfuse.errors import UserError
from transfuse.study.store import Cell, CellSpec, StorageError, Store

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """How cells are run: where they are kept, with how many threads, on which device."""

    results: Path
    threads: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Outcome:
    """The end of one cell: the path it was written to, or what went wrong.

    Attributes:
        spec: which cell.
        path: where it lies, if it was finished.
        error: one line, if not.
        details: the traceback, for `--debug`.
        halts: whether no other cell could be kept either, so that the run should end.
    """

    spec: CellSpec
    path: Path | None
    error: str = ""
    details: str = ""
    halts: bool = False


class Launcher(Protocol):
    """Runs cells somewhere."""

    def width(self, job: Job) -> int:
        """How many cells run at once; asked before anything is written.

        Raises:
            UserError: no cell can be run there: a package is missing, no cluster answers, a parameter is unknown.
        """
        ...

    def launch(self, cells: Sequence[CellSpec], job: Job) -> Generator[Outcome, None, None]:
        """Yield one outcome for each cell, in the order in which they end."""
        ...


def work(spec: CellSpec, job: Job) -> Outcome:
    """Run one cell and store it, in a worker that sees the results folder."""
    result = attempt(spec, job)
    return result if isinstance(result, Outcome) else keep(result, job)


def attempt(spec: CellSpec, job: Job) -> Cell | Outcome:
    """Run one cell, in a worker anywhere; an outcome where it failed. Nothing is written."""
    from transfuse.study.run import run_cell  # the worker pays for the imports, not the command line

    try:
        cell = run_cell(spec, threads=job.threads, device=job.device)
        _check_code(spec)
        return cell
    except UserError as error:
        return Outcome(spec, None, str(error), halts=isinstance(error, StorageError))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
            return Outcome(spec, None, out_of_space(error), traceback.format_exc(), halts=True)
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        return Outcome(spec, None, line, traceback.format_exc())


def _check_code(spec: CellSpec) -> None:
    """A cell is named after the code that was planned with: numbers of any other code must not get that name."""
    from transfuse.registry import load_registry
    from transfuse.study.fingerprint import fingerprint

    if fingerprint(load_registry()[spec.study].study_module or "") != spec.code:
        raise UserError(
            f"the worker ran other code of {spec.study!r} than was planned with: it changed, or differs there",
            fix="the same command runs it with the code of now; nodes need the same version",
        )


def keep(cell: Cell, job: Job) -> Outcome:
    """Store a cell that was run."""
    try:
        return Outcome(cell.spec, Store(job.results).write(cell))
    except StorageError as error:
        return Outcome(cell.spec, None, str(error), halts=True)
    except UserError as error:
        return Outcome(cell.spec, None, str(error))


def arithmetic(job: Job) -> dict[str, str]:
    """The environment in which a job's numbers come from the threads and the device that it names.

    Thread counts must be there before arithmetic libraries are loaded. Hosts such as sentence-transformers take a GPU
    by themselves where they see one: a job on the processor shows them none.
    """
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if job.device == "cpu" else {}
    return dict.fromkeys(_THREAD_VARIABLES, str(job.threads)) | hidden


def worker_environment(job: Job) -> dict[str, str]:
    """What the environment of a worker elsewhere must hold to do as a worker here would.

    The folders of this process and the places that it imports from (a checkout, a plug-in) go along; where they do not
    exist elsewhere they do no harm.
    """
    variables = arithmetic(job)
    for name in ("TRANSFUSE_DATA", "TRANSFUSE_CACHE"):
        if folder := os.environ.get(name):
            variables[name] = str(Path(folder).absolute())
    if "HF_HUB_OFFLINE" in os.environ:
        variables["HF_HUB_OFFLINE"] = os.environ["HF_HUB_OFFLINE"]
    if paths := _own_paths():
        variables["PYTHONPATH"] = os.pathsep.join(paths)
    return variables


def _own_paths() -> list[str]:
    """The places on this process's import path that Python alone would not look at."""
    standard = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")}
    found = dict.fromkeys(Path(path).absolute() for path in sys.path)
    return [
        str(path)
        for path in found
        if path.is_dir() and not any(path == place or place in path.parents for place in standard)
    ]


@dataclass(frozen=True)
class LocalProcesses:
    """Worker processes on this machine.

    Attributes:
        jobs: how many cells run at once.
        retries: how often a cell whose worker died is tried again.
        output: whether what workers print (bars and logs of hosts) is let through.
    """

    jobs: int = 1
    retries: int = 2
    output: bool = False

    def width(self, job: Job) -> int:
        return self.jobs

    def launch(self, cells: Sequence[CellSpec], job: Job) -> Generator[Outcome, None, None]:
        waiting = list(cells)
        while waiting:
            finished: set[str] = set()
            suspects: list[CellSpec] = []
            try:
                for outcome in self._pool_run(waiting, job):
                    finished.add(outcome.spec.name)
                    yield outcome
            except BrokenProcessPool:
                # Cells start in order, so only the first few can have been under way when a worker died.
                suspects = [spec for spec in waiting if spec.name not in finished][: self.jobs + 1]
            for spec in suspects:  # one at a time, so that a cell does not fail for what its neighbour did
                finished.add(spec.name)
                yield self._alone(spec, job)
            waiting = [spec for spec in waiting if spec.name not in finished]

    def _alone(self, spec: CellSpec, job: Job) -> Outcome:
        for _ in range(self.retries):
            with contextlib.suppress(BrokenProcessPool):
                (outcome,) = self._pool_run([spec], job)
                return outcome
        return Outcome(
            spec,
            None,
            f"its worker process died {self.retries + 1} times (out of memory? --debug shows what it printed)",
        )

    def _pool_run(self, cells: Sequence[CellSpec], job: Job) -> Iterator[Outcome]:
        workers = max(1, min(self.jobs, len(cells)))
        others = set(multiprocessing.active_children())
        with environment(arithmetic(job)):
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, context, _start_worker, (os.getpid(), self.output))
            patience = 0.0
            try:
                futures: set[Future[Outcome]] = {pool.submit(work, spec, job) for spec in cells}
                while futures:
                    done, futures = wait(futures, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
                patience = 5.0
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                _end(set(multiprocessing.active_children()) - others, patience)
                pool.shutdown(wait=True)


def _end(processes: set[BaseProcess], patience: float) -> None:
    """Give workers that have nothing left to do some seconds to tidy up; a cell under way is simply not there yet."""
    end = time.monotonic() + patience
    alive = {process.sentinel: process for process in processes}
    while alive and (left := end - time.monotonic()) > 0:
        for sentinel in connection.wait(list(alive), left):
            del alive[sentinel]  # type: ignore[arg-type]
    for process in alive.values():
        process.terminate()


def _start_worker(parent: int, output: bool) -> None:
    """Leave Ctrl-C to the parent, end with it even if it is killed, and leave the terminal to it."""
    if not output:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Put variables into the environment that child processes get, and take them out again."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
