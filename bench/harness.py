"""What the machinery costs beside the studies: time a cell, and CPU time of the commands people type most.

A cell's overhead is the slope of the wall time over the number of trivial cells, so that the start of the worker
process, which is paid once, does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

METHOD = '''"""A method that does nothing."""

CARD = Card(
    id="idle", title="Idle", summary="Does nothing.", authors="Nobody", year=2026, venue="none", url="https://example.org",
    family="negatives", host="none", entry="idle_method.CARD", needs=("nothing",), data="numbers", problems=("none",),
    extra="kg", requires=("numpy",), differs=("all of it",),
)
'''
STUDY = '''"""A study that measures nothing, twice."""

from dataclasses import dataclass

from transfuse.study import Beats, Measurement, Metric, Study


@dataclass(frozen=True)
class Settings:
    n: int = 1  # one number


STUDY = Study(id="idle", question="None?", arms=("a", "b"), controls=("b",), metrics={"x": Metric("higher")},
              claims=(Beats("a", "b", on="x"),), settings=Settings)


def run(settings, seed, streams, stage):
    yield Measurement("a", "x", 1.0 + seed)
    yield Measurement("b", "x", 0.5)
'''


def install_idle_study(folder: Path) -> None:
    """Write a plug-in package into `folder` and put it on the path of this process and its children."""
    info = folder / "idle-0.dist-info"
    info.mkdir(parents=True)
    (folder / "idle_method.py").write_text(METHOD, encoding="utf-8")
    (folder / "idle_study.py").write_text(STUDY, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: idle\nVersion: 0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[transfuse.methods]\nidle = idle_method\n[transfuse.studies]\nidle = idle_study\n", encoding="utf-8"
    )
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    sys.path.insert(0, str(folder))


def seconds_for(cells: int, results: Path) -> float:
    """Wall time of a run of so many trivial cells in one worker."""
    from transfuse.registry import load_registry
    from transfuse.study.launch import Job, LocalProcesses
    from transfuse.study.plan import make_plan
    from transfuse.study.store import Store

    store = Store(results)
    plan = make_plan([load_registry()["idle"]], store, seeds=cells)
    start = time.perf_counter()
    outcomes = list(LocalProcesses(1).launch(plan.pending, Job(results)))
    assert all(outcome.path for outcome in outcomes), outcomes[0].error
    return time.perf_counter() - start


def cpu_seconds(*words: str) -> float:
    """User and system time of one command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "transfuse", *words], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(repeats: int = 5) -> dict[str, float]:
    """All figures, medians over the repeats."""
    figures: dict[str, list[float]] = {}
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            few = seconds_for(5, Path(folder) / "few")
            many = seconds_for(105, Path(folder) / "many")
        figures.setdefault("overhead a cell, ms", []).append((many - few) / 100 * 1000)
        for words in (("--help",), ("list",), ("show", "idle")):
            figures.setdefault(f"transfuse {' '.join(words)}, CPU s", []).append(cpu_seconds(*words))
        if repeat == 0:  # the first pass warms the file cache
            figures = {name: [] for name in figures}
    return {name: statistics.median(values) for name, values in figures.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as plugin:
        install_idle_study(Path(plugin))
        found = measure()
    if arguments.json:
        print(json.dumps(found))
    else:
        for figure, value in found.items():
            print(f"{figure:<36}{value:8.3f}")
