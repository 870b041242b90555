"""Runs that are killed, run out of disk, meet damaged files or each other: nothing is lost, nothing half-done counts.

The plug-in's cells are long enough here (20,000 samples and a stage each) for kills to land while one is written.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from transfuse.study.store import Store

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups on this system")

SEEDS = 40
KILLS = 30
COMMAND = [sys.executable, "-m", "transfuse", "run", "mean_shift", "--jobs", "2", "--set", "samples=20000"]


def begin(results: Path, *words: str, seeds: int = SEEDS, sleep: float = 0.0) -> subprocess.Popen[str]:
    """Start a run as the leader of its own process group, so that all of it can be killed at once."""
    return subprocess.Popen(
        [*COMMAND, "--seeds", str(seeds), "--results", str(results), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TOYPLUG_SLEEP": str(sleep)},
    )


def finish(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), out + err


def content(results: Path) -> dict[str, tuple[str, bytes]]:
    """All of every cell but its cost, byte for byte."""
    found = {}
    for path in sorted(results.glob("*/*/*.json")):
        table = json.loads(path.read_text(encoding="utf-8"))
        found[path.name] = (
            json.dumps({key: table[key] for key in table if key != "cost"}),
            path.with_suffix(".npz").read_bytes(),
        )
    return found


def leftovers(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob(".*.partial")]


@pytest.fixture(scope="module")
def undisturbed(plugin_path: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, bytes]]:
    """What a run measures that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFUSE_CACHE", str(folder / "cache"))
        finish(begin(folder / "results"))
    return content(folder / "results")


def killed(process: subprocess.Popen[str], sign: str, moment: float, alone: bool) -> bool:
    """Kill a run some time after it printed `sign`: all of it, or the command `alone`; False if it was quicker."""
    assert process.stdout
    for line in process.stdout:
        if sign in line:
            break
    time.sleep(moment)
    if process.poll() is not None:
        return False
    if alone:
        process.kill()  # its workers have to notice, while the next run is already under way
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    return True


@pytest.mark.slow
def test_thirty_kills_at_random_moments_cost_time_and_nothing_else(
    undisturbed: dict[str, tuple[str, bytes]], tmp_path: Path
) -> None:
    rng, cache = random.Random(0), tmp_path / "cache"
    folders = [tmp_path / "results0"]
    hit = {"kills": 0, "of a run that was resumed": 0, "in mid-cell": 0, "in mid-write": 0}
    while hit["kills"] < KILLS:
        results = folders[-1]
        resumed = any(results.rglob("*.json"))
        process = begin(results, sleep=0.03)
        # a third right after the plan, while workers start; the others in the midst of the work
        sign, latest = (" to run, ", 1.0) if hit["kills"] % 3 == 0 else ("[1/", 0.3)
        if not killed(process, sign, rng.uniform(0.0, latest), alone=hit["kills"] % 4 == 3):
            finish(process)
            folders.append(tmp_path / f"results{len(folders)}")  # nothing is left to kill here
            shutil.rmtree(cache)
            continue
        assert Store(results).unreadable() == []
        cells, stages = len(list(results.rglob("*.json"))), len(list(cache.rglob("*.safetensors")))
        hit["kills"] += 1
        hit["of a run that was resumed"] += resumed
        hit["in mid-cell"] += stages > cells  # begun, not finished
        hit["in mid-write"] += bool(leftovers(results, cache))
    for folder in folders:
        finish(begin(folder))
        assert content(folder) == undisturbed
    assert leftovers(*folders, cache) == []
    print(hit)
    assert hit["of a run that was resumed"] and hit["in mid-cell"], hit


def test_two_runs_at_once_in_one_folder(undisturbed: dict[str, tuple[str, bytes]], tmp_path: Path) -> None:
    """Both do all the work, neither sees half a file of the other's, and the cells are those of one run."""
    results = tmp_path / "results"
    runs = [begin(results) for _ in range(2)]
    while any(run.poll() is None for run in runs):
        assert Store(results).unreadable() == []
        time.sleep(0.05)
    for run in runs:
        finish(run)
    assert content(results) == undisturbed
    assert leftovers(results, tmp_path / "cache") == []


def test_a_run_makes_whatever_is_damaged_anew(
    undisturbed: dict[str, tuple[str, bytes]], transfuse: Callable, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    words = ("run", "mean_shift", "--set", "samples=20000", "--seeds", "8", "--jobs", "2", "--results", results)
    assert transfuse(*words).status == 0
    expected = content(results)
    assert expected == {name: undisturbed[name] for name in expected}
    cells = sorted(results.rglob("*.json"))
    text = cells[0].read_text(encoding="utf-8")
    cells[0].write_text(text[: len(text) // 2], encoding="utf-8")
    cells[1].write_bytes(b"")
    cells[2].write_text(text.replace('"format": 1', '"format": 7'), encoding="utf-8")
    cells[3].write_text(text, encoding="utf-8")  # a copy of another seed
    cells[4].write_text(cells[4].read_text(encoding="utf-8").replace("3.0", "NaN"), encoding="utf-8")
    cells[5].unlink()
    cells[5].symlink_to(tmp_path / "nowhere")
    state = json.loads(transfuse("status", "--results", results, "--json").out)
    assert state["unreadable"] == [str(cells[i]) for i in (0, 1, 2, 4, 5)]
    for number, stage in enumerate(sorted((tmp_path / "cache").rglob("*.safetensors"))):
        stage.write_bytes(stage.read_bytes()[: 9 * number])
        stage.with_name(f".{stage.name}.999999999.partial").write_bytes(b"half")
        stage.with_name(f"{stage.name}.lock").touch()  # as a killed run leaves it
    kept = {path: path.stat().st_mtime_ns for path in cells[6:]}
    done = transfuse(*words)
    assert done.status == 0 and "6 of 8 cells to run" in done.out, done
    assert content(results) == expected
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert Store(results).unreadable() == []
    assert len(leftovers(tmp_path / "cache")) == 2  # of the stages that nobody asked for
    assert transfuse(*words, "--force").status == 0 and leftovers(tmp_path / "cache") == []
    assert content(results) == expected


def test_files_that_grow_too_large_end_the_run_with_one_line_and_keep_the_rest(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the kernel refuses the write, whoever asks."""
    results = tmp_path / "results"
    finish(begin(results, "--set", "samples=10", seeds=2))

    def limited(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, "--results", str(results), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        )  # fmt: skip

    done = limited("--seeds", "2", "--set", "samples=10")
    assert done.returncode == 0, done.stderr
    done = limited("--seeds", "5", "--set", "samples=1000")  # 8 kB a stage, 23 kB of samples
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"cannot write '{results}/mean_shift" in done.stderr and "--results" in done.stderr
    assert "0 of 5 cells finished and kept" in done.stderr
    done = limited("--seeds", "5")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"cannot write '{tmp_path}/cache/stages" in done.stderr and "TRANSFUSE_CACHE" in done.stderr
    assert len(content(results)) == 2 and leftovers(results, tmp_path / "cache") == []


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """On a disk of 64 kB that only the run sees; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = [*COMMAND[3:], "--seeds", "8", "--set", "samples=1200", "--results", str(disk / "results")]
    script = (
        f'mount -t tmpfs -o size=64k tmpfs {disk} || exit 77; "$@"; code=$?; cp -r {disk} {tmp_path}/kept; exit $code'
    )
    shell = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *COMMAND[:3], *words]
    try:
        done = subprocess.run(shell, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare on this system")
    if done.returncode in (1, 77):
        pytest.skip("no right to mount a disk")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    assert f"cannot write '{disk}/results" in done.stderr and "No space left on device" in done.stderr
    kept = content(tmp_path / "kept" / "results")
    assert f"{len(kept)} of 8 cells finished and kept" in done.stderr and kept
    assert leftovers(tmp_path / "kept") == []


@pytest.mark.parametrize("place", ["file/below", "/proc/transfuse", "/dev/null/results"])
def test_folders_that_cannot_be_written_are_told_before_any_work(
    place: str, transfuse: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / place  # an absolute place stays itself
    done = transfuse("run", "mean_shift", "--results", folder)
    assert done.status == 2 and done.out == "" and f"results folder '{folder}' cannot be written" in done.err
    monkeypatch.setenv("TRANSFUSE_CACHE", str(folder))
    done = transfuse("run", "mean_shift")
    assert done.status == 2 and done.out == "" and done.err.count("\n") == 1
    assert f"cache folder '{folder}' cannot be written" in done.err and "TRANSFUSE_CACHE" in done.err
