"""Cells on a Ray cluster: an existing one by address, or one that is started here for the run."""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from transfuse.errors import MissingExtraError, UserError
from transfuse.study.launch import Job, Outcome, attempt, keep, worker_environment
from transfuse.study.store import CellSpec

_OBJECT_STORE = 256 * 2**20  # bytes; cells are small, and Ray would set a third of the memory apart


@dataclass
class RayCluster:
    """One Ray task a cell. A cell whose worker or node died is tried again elsewhere.

    Workers send their cells back and the caller stores them, so that nodes need not share a folder with it.
    They need the same packages and, at scale public, the data folder at the same place.

    Attributes:
        address: of the cluster ("auto", "ray://host:10001", "host:6379"); None starts one on this machine.
        jobs: how many cells at once; by default all that the cluster has CPUs for, and one on a cluster started here.
        retries: how often a cell whose worker or node died is tried again.
        output: whether what workers print is let through.
    """

    address: str | None = None
    jobs: int | None = None
    retries: int = 2
    output: bool = False
    _started: bool = field(default=False, init=False, repr=False)

    def width(self, job: Job) -> int:
        ray = self._connect(job)
        if self.jobs or not self.address:
            return self.jobs or 1
        return max(1, int(ray.cluster_resources().get("CPU", 1)) // job.threads)

    def launch(self, cells: Sequence[CellSpec], job: Job) -> Generator[Outcome, None, None]:
        ray = self._connect(job)
        task = self._task(ray, job)
        waiting: deque[CellSpec] = deque(cells)
        running: dict[Any, CellSpec] = {}
        deaths: Counter[str] = Counter()
        room = self.jobs or (len(waiting) if self.address else 1)
        try:
            while waiting or running:
                while waiting and len(running) < room:
                    spec = waiting.popleft()
                    running[task.remote(spec, job)] = spec
                (done, *_), _ = ray.wait(list(running), num_returns=1)
                spec = running.pop(done)
                outcome = _outcome(ray, done, spec, job)
                if _died(ray, outcome) and deaths[spec.name] < self.retries:
                    deaths[spec.name] += 1
                    waiting.appendleft(spec)
                    continue
                yield outcome if isinstance(outcome, Outcome) else _given_up(spec, outcome, deaths[spec.name] + 1)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            if self._started:
                ray.shutdown()
                self._started = False

    def _task(self, ray: Any, job: Job) -> Any:
        """`attempt` as a Ray task. Deaths are counted here, since Ray would try one that lacks memory for ever."""
        variables = worker_environment(job)
        if self.address and "PYTHONPATH" in variables:
            variables["PYTHONPATH"] += f"{os.pathsep}${{PYTHONPATH}}"  # what a node has of its own stays
        return ray.remote(
            num_cpus=job.threads,
            num_gpus=1 if job.device == "cuda" else 0,
            max_retries=0,
            runtime_env={"env_vars": variables},
        )(attempt)

    def _connect(self, job: Job) -> Any:
        ray = _import_ray()
        if ray.is_initialized():
            return ray
        if self.address:
            _check_reachable(self.address)
        options: dict[str, Any] = {"log_to_driver": self.output, "logging_level": logging.ERROR}
        if not self.address:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of ours reports to nobody
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of a change to come
            cpus = (self.jobs or 1) * job.threads
            options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        try:
            ray.init(address=self.address or "local", **options)
        except (OSError, ValueError, RuntimeError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            what = f"no Ray cluster could be used at {self.address!r}" if self.address else "Ray could not be started"
            raise UserError(f"{what} ({line})", fix="check --address, or leave it out") from None
        self._started = True
        return ray


def _outcome(ray: Any, reference: Any, spec: CellSpec, job: Job) -> Outcome | Exception:
    """What became of a task; Ray's error where it has no result."""
    try:
        result = ray.get(reference)
    except ray.exceptions.RayError as error:
        return error
    return result if isinstance(result, Outcome) else keep(result, job)


def _died(ray: Any, outcome: Outcome | Exception) -> bool:
    """Whether a worker or node died, or took the result with it; anything else would happen again."""
    names = ("WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError", "OutOfMemoryError", "ObjectLostError")
    return isinstance(outcome, tuple(getattr(ray.exceptions, name) for name in names))


def _given_up(spec: CellSpec, error: Exception, times: int) -> Outcome:
    kind = type(error).__name__
    line = (str(error).strip().splitlines() or [kind])[-1]
    if times > 1:
        return Outcome(spec, None, f"its worker died {times} times (Ray says {kind})", str(error))
    return Outcome(spec, None, f"Ray could not run it: {kind}: {line}", str(error))


def _check_reachable(address: str) -> None:
    """A wrong address fails at once, and not after Ray has tried it for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto" and the like
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"no Ray cluster answers at {address!r} ({reason})", fix="check --address") from None


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError("--engine ray", "ray", "ray") from None
    return ray
