"""Runs one cell: the study's function at one seed, checked, timed, and ready to store."""

from __future__ import annotations

import math
import os
import platform
import random
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np

from transfuse.cache import cache_folder
from transfuse.config import resolve
from transfuse.registry import import_study, load_registry
from transfuse.study.design import Measurement, Study
from transfuse.study.stage import Stages
from transfuse.study.store import Cell, CellSpec
from transfuse.study.streams import Streams

_VERSIONS = ("transfuse", "numpy", "scipy", "scikit-learn", "torch", "transformers", "flwr", "pykeen", "pytorch-ood")
_PATH = re.compile(r"(?:/[\w.@+-]+){2,}")  # paths say something about a machine, nothing about a result


class StudyError(Exception):
    """A study yielded something that it did not declare; a fault of the study, not of the user."""


def run_cell(spec: CellSpec, *, threads: int = 1, device: str = "cpu", stages: Stages | None = None) -> Cell:
    """Run one cell in this process.

    Args:
        spec: what to run.
        threads: threads for the arithmetic. Sums are grouped by thread, so numbers are the same bit for bit
            only at the same count; it is therefore fixed and does not follow the number of jobs.
        device: "cpu" or "cuda"; handed to studies whose settings have a `device`.
        stages: the stage cache; the user's cache folder by default.
    """
    limit_threads(threads)
    module = import_study(load_registry()[spec.study])
    study: Study = module.STUDY
    settings: Any = resolve(study.settings, spec.settings, name=f"settings of {spec.study}")
    _seed_everything(spec.seed)
    wall, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as caught, _PeakMemory() as peak:
        warnings.simplefilter("default")
        measurements = tuple(
            checked(study, module.run(settings, spec.seed, Streams(spec.seed), stages or Stages(cache_folder())))
        )
    cost = {
        "wall_s": round(time.perf_counter() - wall, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
        "peak_mb": round(peak.megabytes, 1),
    }
    return Cell(spec, measurements, cost, _environment(module, threads, device), _texts(caught))


def checked(study: Study, measurements: Iterator[Measurement]) -> Iterator[Measurement]:
    """Pass measurements on, and stop at the first that the study did not declare or that is not finite."""
    for m in measurements:
        if m.arm not in study.arms:
            raise StudyError(f"study {study.id!r} measured an arm it does not declare: {m.arm!r}")
        if m.metric not in study.metrics:
            raise StudyError(f"study {study.id!r} measured a metric it does not declare: {m.metric!r}")
        for key, value in m.where.items():
            if value not in study.conditions.get(key, ()):
                raise StudyError(f"study {study.id!r} measured under an undeclared condition: {key}={value!r}")
        if not math.isfinite(m.value):
            raise StudyError(f"study {study.id!r}: {m.metric} of {m.arm} is {m.value} under {dict(m.where)}")
        yield Measurement(m.arm, m.metric, float(m.value), dict(m.where), m.step, m.per_sample)


def limit_threads(threads: int) -> None:
    """Cap the threads of the arithmetic libraries that are loaded, and of those loaded later."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)


def _seed_everything(seed: int) -> None:
    """Studies draw from named streams; this is for the code of others that draws from global generators."""
    random.seed(seed)
    np.random.seed(seed)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)


class _PeakMemory:
    """Peak resident memory of the block: sampled, since the kernel's mark is that of the whole process."""

    megabytes = 0.0

    def __enter__(self) -> _PeakMemory:
        import psutil

        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while True:
            self.megabytes = max(self.megabytes, self._process.memory_info().rss / 2**20)
            if self._stop.wait(0.2):
                return

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _environment(module: ModuleType, threads: int, device: str) -> dict[str, Any]:
    versions = {}
    for name in _VERSIONS:
        try:
            if name in ("transfuse", "numpy", "scipy") or name.replace("-", "_") in _imported_packages():
                versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count() or 1,
        "threads": threads,
        "device": device,
        "versions": versions,
    }


def _imported_packages() -> set[str]:
    names = {name.split(".")[0] for name in sys.modules}
    return names | ({"scikit_learn"} if "sklearn" in names else set())


def _texts(caught: list[warnings.WarningMessage]) -> tuple[str, ...]:
    """Each warning once, without deprecations, which concern us and not the reader of a result."""
    texts = [
        f"{warning.category.__name__}: {_PATH.sub('<path>', str(warning.message))}"
        for warning in caught
        if not issubclass(warning.category, DeprecationWarning | FutureWarning | PendingDeprecationWarning)
    ]
    return tuple(dict.fromkeys(text[:300] for text in texts))
