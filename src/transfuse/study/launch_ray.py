"""Cells on a Ray cluster: an existing one by address, or one that is started here for the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transfuse.errors import MissingExtraError, UserError
from transfuse.study.launch import Job, Outcome, work
from transfuse.study.store import CellSpec


@dataclass(frozen=True)
class RayCluster:
    """One Ray task a cell. A cell whose worker or node died is tried again elsewhere.

    The results folder must be one that all nodes see: a shared folder, or an address that fsspec knows.

    Attributes:
        address: of the cluster ("auto", "ray://host:10001", ...); None starts one on this machine.
        jobs: how many cells at once on a cluster started here; an existing one has its own CPUs.
        retries: how often a lost cell is tried again.
    """

    address: str | None = None
    jobs: int | None = None
    retries: int = 2

    def launch(self, cells: Sequence[CellSpec], job: Job) -> Iterator[Outcome]:
        ray = _import_ray()
        started = not ray.is_initialized()
        if started:
            self._connect(ray, job)
        try:
            # Errors of a study come back as outcomes; only deaths of workers and nodes are retried by Ray.
            task = ray.remote(num_cpus=job.threads, max_retries=self.retries)(work)
            pending = {task.remote(spec, job): spec for spec in cells}
            while pending:
                done, _ = ray.wait(list(pending), num_returns=1)
                for reference in done:
                    yield _outcome(ray, reference, pending.pop(reference))
        finally:
            if started:
                ray.shutdown()

    def _connect(self, ray, job: Job) -> None:  # type: ignore[no-untyped-def]  # Ray is an optional extra
        cpus = None if self.address else (self.jobs or 1) * job.threads
        try:
            ray.init(address=self.address or "local", num_cpus=cpus, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, ValueError) as error:
            line = str(error).splitlines()[0]
            raise UserError(
                f"no Ray cluster at {self.address!r} ({line})", fix="check --address, or leave it out"
            ) from None


def _outcome(ray, reference, spec: CellSpec) -> Outcome:  # type: ignore[no-untyped-def]
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return Outcome(spec, None, f"lost on the cluster: {type(error).__name__}", str(error))


def _import_ray():  # type: ignore[no-untyped-def]
    try:
        import ray
    except ImportError:
        raise MissingExtraError("--engine ray", "ray", "ray") from None
    return ray
