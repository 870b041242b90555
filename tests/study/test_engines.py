"""Ray and Slurm: the same numbers as local processes to the last byte, and cells that outlive their workers."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from transfuse.errors import UserError
from transfuse.registry import Entry
from transfuse.study.launch import Job, Launcher, LocalProcesses, Outcome, arithmetic, attempt, worker_environment
from transfuse.study.launch_ray import RayCluster
from transfuse.study.launch_slurm import Slurm
from transfuse.study.plan import make_plan
from transfuse.study.store import Store

SEEDS = 4


def outcomes(launcher: Launcher, entry: Entry, store: Store, settings: Mapping[str, Any]) -> dict[int, Outcome]:
    plan = make_plan([entry], store, seeds=SEEDS, overrides=settings)
    return {outcome.spec.seed: outcome for outcome in launcher.launch(plan.pending, Job(store.folder))}


def measured(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Measurements and per-sample arrays of all cells, byte for byte."""
    return {
        path.stem: (json.dumps(json.loads(path.read_text())["measurements"]), path.with_suffix(".npz").read_bytes())
        for path in sorted(folder.glob("*/*/*.json"))
    }


@pytest.fixture
def expected(guest: Entry, tmp_path: Path) -> dict[str, tuple[str, bytes]]:
    """What local processes measure."""
    store = Store(tmp_path / "local")
    assert all(outcome.path for outcome in outcomes(LocalProcesses(1), guest, store, {}).values())
    return measured(store.folder)


# ---- what goes along to a worker elsewhere


def test_workers_import_what_the_caller_imports(guest: Entry, plugin_folder: Path) -> None:
    """The plug-in is on this process's path only; standard places stay those of the worker."""
    paths = worker_environment(Job(Path("results"), 3))["PYTHONPATH"].split(os.pathsep)
    assert str(plugin_folder) in paths
    assert not [path for path in paths if "site-packages" in path]
    assert worker_environment(Job(Path("results"), 3))["OMP_NUM_THREADS"] == "3"


def test_folders_of_the_caller_go_along_as_absolute_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFUSE_DATA", "somewhere/data")
    assert worker_environment(Job(Path("results"), 1))["TRANSFUSE_DATA"] == str(Path.cwd() / "somewhere" / "data")


def test_a_job_on_the_processor_shows_no_gpu_to_hosts_that_would_take_it() -> None:
    assert arithmetic(Job(Path("results"), 2)) == {
        "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""
    }  # fmt: skip
    assert "CUDA_VISIBLE_DEVICES" not in arithmetic(Job(Path("results"), 2, "cuda"))


def test_a_worker_with_other_code_does_not_name_its_cell_after_ours(guest: Entry, tmp_path: Path) -> None:
    """A node with another version, or a file that was edited after the plan was made."""
    import dataclasses

    (spec,) = make_plan([guest], Store(tmp_path), seeds=1).pending
    assert not isinstance(attempt(spec, Job(tmp_path)), Outcome)
    other = attempt(dataclasses.replace(spec, code="0" * 16), Job(tmp_path))
    assert isinstance(other, Outcome) and "other code" in other.error


@pytest.mark.parametrize(("package", "launcher"), [("ray", RayCluster()), ("submitit", Slurm(Path("logs")))])
def test_missing_package_is_one_line_before_any_work(
    package: str, launcher: Launcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"ray": "ray", "submitit": "slurm"}[package]
    with pytest.raises(UserError, match=rf"'{package}', which is not installed; type: pip install 'transfuse\[{extra}"):
        launcher.width(Job(tmp_path))


# ---- Slurm

# What Slurm's own commands do, as far as submitit uses them: each job is a process of this machine.
FAKE_SLURM = {
    "sbatch": """
import os, re, subprocess, sys
from pathlib import Path
script = Path(sys.argv[1]).read_text()
home = Path(__file__).parent
(home / "scripts").mkdir(exist_ok=True)
number = len(list((home / "scripts").iterdir())) + 100
(home / "scripts" / str(number)).write_text(script)
array = re.search(r"--array=0-(\\d+)%", script)
for index in range(int(array[1]) + 1) if array else [None]:
    name = str(number) if index is None else f"{number}_{index}"
    environment = {**os.environ, "SLURM_JOB_ID": name, "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1",
                   "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    if index is not None:
        environment |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(index)}
    ended = f"echo COMPLETED > {home}/state-{name}"
    (home / f"state-{name}").write_text("RUNNING")
    subprocess.Popen(["bash", "-c", f"bash {home}/scripts/{number}; {ended}"], env=environment,
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(f"Submitted batch job {number}")
""",
    "srun": """
import os, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    words = words[1:] if words[0] == "--unbuffered" else words[2:]
os.execvp(words[0], words)
""",
    "sacct": """
from pathlib import Path
print("JobID|State|NodeList")
for path in Path(__file__).parent.glob("state-*"):
    print(f"{path.name.removeprefix('state-')}|{path.read_text().strip()}|here")
""",
    "scancel": "pass",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with Slurm's commands, first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in FAKE_SLURM.items():
        path = folder / name
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitit waits a quarter of a minute for the answer of a job that has ended."""
    core = pytest.importorskip("submitit.core.core")
    monkeypatch.setattr(core.Job, "_results_timeout_s", 0)


def test_slurm_array_gives_the_same_bytes(
    slurm: Path, guest: Entry, expected: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)  # a results folder may be given as a relative path
    launcher = Slurm(
        tmp_path / "logs" / "run", jobs=3, minutes=7, parameters={"partition": "cpu", "mem_gb": 2}, poll_s=0.1
    )
    assert launcher.width(Job(Path("results"))) == 3
    found = outcomes(launcher, guest, Store(Path("results")), {})
    assert [found[seed].error for seed in range(SEEDS)] == [""] * SEEDS
    assert measured(tmp_path / "results") == expected
    (script,) = (slurm / "scripts").iterdir()  # one array for all cells
    lines = script.read_text().splitlines()
    for line in ("--array=0-3%3", "--partition=cpu", "--mem=2GB", "--time=7", "--cpus-per-task=1"):
        assert f"#SBATCH {line}" in lines
    assert not (tmp_path / "logs").exists()  # nothing failed, so nobody will look there


@pytest.mark.parametrize("death", ["SIGKILL", "SIGUSR2"])  # the second is what Slurm sends before it ends a job
def test_slurm_job_that_dies_is_sent_again(
    death: str, guest: Entry, expected: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    launcher = Slurm(tmp_path / "logs", jobs=2, minutes=5, cluster="local", poll_s=0.1)
    settings = {"dies_at": 1, "dies_by": death, "deaths": str(tmp_path / "died")}
    found = outcomes(launcher, guest, Store(tmp_path / "results"), settings)
    assert (tmp_path / "died").exists()
    assert [found[seed].error for seed in range(SEEDS)] == [""] * SEEDS
    values = [text for text, _ in measured(tmp_path / "results").values()]
    assert values == [text for text, _ in expected.values()]


def test_slurm_job_that_always_dies_or_raises_is_one_line_and_its_logs_stay(
    guest: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    launcher = Slurm(tmp_path / "logs", jobs=4, cluster="local", retries=1, poll_s=0.1)
    found = outcomes(launcher, guest, Store(tmp_path / "results"), {"dies_at": 1, "fails_at": 2})
    assert found[0].error == found[3].error == ""
    assert "ended 2 times without an answer" in found[1].error and str(tmp_path / "logs") in found[1].error
    assert found[2].error == "RuntimeError: the study broke"
    assert list((tmp_path / "logs").glob("*_log.err"))


def test_slurm_that_refuses_is_one_line(slurm: Path, guest: Entry, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"invalid partition specified: gpu.*--engine-set"):
        outcomes(Slurm(tmp_path / "logs"), guest, Store(tmp_path / "results"), {})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"partiton": "cpu"}, "'partiton'; did you mean 'partition'"),
        ({"mem_gb": "much"}, "mem_gb = 'much'; expected a value of type float"),
        ({"slurm_qos": "low"}, "srun was not found.*cluster=local"),
    ],
)
def test_slurm_parameters_are_checked_before_any_work(
    parameters: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=message):
        Slurm(tmp_path / "logs", parameters=parameters).width(Job(tmp_path))
    assert not (tmp_path / "logs").exists()


# ---- Ray


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """Two Ray nodes of one CPU on this machine, quick to notice that one is gone."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    system = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "_system_config": system})
    yield cluster, cluster.add_node(**small)
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_ray_started_here_gives_the_same_bytes_and_survives_dead_workers(
    guest: Entry, expected: dict, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray")
    settings = {"dies_at": 1, "deaths": str(tmp_path / "died")}
    launcher = RayCluster(jobs=1)
    assert launcher.width(Job(tmp_path)) == 1
    found = outcomes(launcher, guest, Store(tmp_path / "results"), settings)
    assert (tmp_path / "died").exists()
    assert [found[seed].error for seed in range(SEEDS)] == [""] * SEEDS
    assert [text for text, _ in measured(tmp_path / "results").values()] == [text for text, _ in expected.values()]
    assert not ray.is_initialized()


@pytest.mark.slow
def test_ray_node_that_is_killed_in_mid_run_costs_no_cell(
    two_nodes: Any, guest: Entry, expected: dict, tmp_path: Path
) -> None:
    cluster, node = two_nodes
    gate = tmp_path / "gate"
    gate.mkdir()
    begun: list[list[str]] = []

    def kill() -> None:
        """As soon as both nodes are at work."""
        end = time.monotonic() + 60
        while len(list(gate.glob("begun-*"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        begun.append(sorted(path.name for path in gate.glob("begun-*")))
        cluster.remove_node(node, allow_graceful=False)
        (gate / "open").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    launcher = RayCluster(address=cluster.address)
    assert launcher.width(Job(tmp_path)) == 2
    found = outcomes(launcher, guest, Store(tmp_path / "results"), {"gate": str(gate)})
    killer.join()
    assert begun == [["begun-0", "begun-1"]]
    assert [found[seed].error for seed in range(SEEDS)] == [""] * SEEDS
    assert [text for text, _ in measured(tmp_path / "results").values()] == [text for text, _ in expected.values()]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_ray_address_where_nobody_listens_fails_at_once(address: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=r"no Ray cluster answers at .*127\.0\.0\.1:1.*--address"):
        RayCluster(address).width(Job(tmp_path))
