"""The example app in a real deployment: a SuperLink and two SuperNodes as processes on the loopback interface.

The same server function on a LocalGrid must give the same arrays: that is what the studies rely on.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.fedglad import negative_sampling_report
from transfuse.methods.federated.round_history import read_history

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "examples" / "federated" / "fedglad_app"
BIN = Path(sys.executable).parent
ROUNDS = 2
DEADLINE = 150.0  # seconds for all of it; an idle machine needs about 40

pytestmark = pytest.mark.slow


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the example importable for the length of a test."""
    monkeypatch.syspath_prepend(str(APP))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "fedglad_app"]:
        del sys.modules[name]


def config(**changes: object) -> dict:
    """The app's own defaults, so that a renamed key is noticed."""
    import tomllib

    defaults = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert not set(changes) - set(defaults)
    return {**defaults, **changes}


def local_run(settings: dict, **arguments: object):
    from fedglad_app.client import app as client_app
    from fedglad_app.server import federate

    grid = LocalGrid(client_app, 2, run_config=settings, on_error="raise", **arguments)
    with quiet_flower():
        return federate(grid, settings)


@pytest.mark.parametrize("roundtrip", [False, True])
def test_example_app_learns_on_a_local_grid(app: None, tmp_path: Path, roundtrip: bool) -> None:
    settings = config(rounds=3, out=str(tmp_path))
    result = local_run(settings, roundtrip=roundtrip)
    curve = [result.evaluate_metrics_serverapp[r]["accuracy"] for r in range(4)]
    assert curve[3] > 0.5 > curve[0]
    assert len(negative_sampling_report(read_history(tmp_path / "history.jsonl"))) == 1


def test_deployment_gives_the_arrays_of_the_local_grid(app: None, tmp_path: Path) -> None:
    settings = config(rounds=ROUNDS, out=str(tmp_path / "local"))
    local_run(settings)
    deployed = tmp_path / "deployed"
    started = time.monotonic()
    with Deployment(tmp_path, nodes=2) as deployment:
        code = deployment.flwr_run(f"rounds={ROUNDS} out='{deployed}'", DEADLINE - (time.monotonic() - started))
        assert deployment.wait_for(deployed / "model.npz", DEADLINE - (time.monotonic() - started)), deployment.logs()
        assert code == 0, deployment.logs()
    here, there = np.load(tmp_path / "local" / "model.npz"), np.load(deployed / "model.npz")
    assert sorted(here.files) == sorted(there.files)
    for key in here.files:
        np.testing.assert_allclose(there[key], here[key], rtol=1e-5, atol=1e-6, err_msg=key)
    ours, theirs = (read_history(folder / "history.jsonl") for folder in (tmp_path / "local", deployed))
    np.testing.assert_allclose([r.gsi for r in theirs], [r.gsi for r in ours], rtol=1e-5)


class Deployment:
    """SuperLink and SuperNodes in a Flower home of their own; all processes end with the block."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.processes = folder, []
        self.home = folder / "home"
        self.home.mkdir()
        self.link, *runtimes = free_ports(nodes + 1)
        address = f'default = "loop"\n\n[superlink.loop]\naddress = "127.0.0.1:{self.link}"\ninsecure = true\n'
        (self.home / "config.toml").write_text(f"[superlink]\n{address}")
        self.runtimes = runtimes
        path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        self.environment = {
            **os.environ,
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": path,
            "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")]),
        }

    def __enter__(self) -> Deployment:
        self.start("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.link),
                   "--disable-runtime-dependency-installation")  # fmt: skip
        self.wait_for_port(self.link, 60.0)
        for index, port in enumerate(self.runtimes):
            node = f"partition-id={index} num-partitions={len(self.runtimes)}"
            self.start("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.link}",
                       "--port", str(port), "--node-config", node)  # fmt: skip
        return self

    def start(self, program: str, *arguments: str) -> None:
        log = (self.folder / f"{program}-{len(self.processes)}.log").open("w")
        command = [str(BIN / program), *arguments]
        process = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        log.close()
        self.processes.append(process)

    def flwr_run(self, run_config: str, seconds: float) -> int:
        """`flwr run` on a copy of the app, waited for; its output goes to a log."""
        copy = self.folder / "app"
        shutil.copytree(APP, copy, ignore=shutil.ignore_patterns("__pycache__"))
        command = [str(BIN / "flwr"), "run", str(copy), "loop", "--stream", "--run-config", run_config]
        with (self.folder / "flwr-run.log").open("w") as log:
            process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            self.processes.append(process)
            try:
                return process.wait(timeout=max(seconds, 1.0))
            except subprocess.TimeoutExpired:
                return -1

    def wait_for(self, path: Path, seconds: float) -> bool:
        end = time.monotonic() + max(seconds, 1.0)
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.2)
        return path.exists()

    def wait_for_port(self, port: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.2)
        raise AssertionError(f"the SuperLink did not open its port:\n{self.logs()}")

    def logs(self) -> str:
        """The end of every log, without colours."""
        parts = [f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log"))]
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(parts))

    def __exit__(self, *_: object) -> None:
        for signal_ in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(self.processes):
                try:
                    os.killpg(process.pid, signal_)  # each leads a group of its own, with its children
                except ProcessLookupError:
                    continue
            end = time.monotonic() + 5.0
            while any(process.poll() is None for process in self.processes) and time.monotonic() < end:
                time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
