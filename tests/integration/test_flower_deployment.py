"""The example app in a real deployment: a SuperLink and two SuperNodes as processes on the loopback interface.

The same server function on a LocalGrid must give the same arrays: that is what the studies rely on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flower_deployment import ROOT, Deployment, app_config, importable

from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.fedglad import negative_sampling_report
from transfuse.methods.federated.round_history import read_history

APP = ROOT / "examples" / "federated" / "fedglad_app"
ROUNDS = 3
DEADLINE = 150.0  # seconds for all of it; an idle machine needs about 40

pytestmark = pytest.mark.slow


@pytest.fixture
def app() -> Iterator[None]:
    """The example can be imported for the length of a test."""
    with importable(APP):
        yield


def local_run(settings: dict, **arguments: object):
    from fedglad_app.client import app as client_app
    from fedglad_app.server import federate

    grid = LocalGrid(client_app, 2, run_config=settings, on_error="raise", **arguments)
    with quiet_flower():
        return federate(grid, settings)


@pytest.mark.parametrize("roundtrip", [False, True])
def test_example_app_learns_on_a_local_grid(app: None, tmp_path: Path, roundtrip: bool) -> None:
    settings = app_config(APP, rounds=3, out=str(tmp_path))
    result = local_run(settings, roundtrip=roundtrip)
    curve = [result.evaluate_metrics_serverapp[r]["accuracy"] for r in range(4)]
    assert curve[3] > 0.5 > curve[0]
    assert len(negative_sampling_report(read_history(tmp_path / "history.jsonl"))) == 1


@pytest.mark.parametrize("secure", [False, True])
def test_deployment_gives_the_arrays_of_the_local_grid(app: None, tmp_path: Path, secure: bool) -> None:
    settings = app_config(APP, rounds=ROUNDS, out=str(tmp_path / "local"))
    local_run(settings)
    deployed = tmp_path / "deployed"
    started = time.monotonic()
    with Deployment(tmp_path, APP, nodes=2, secure=secure) as deployment:
        code = deployment.flwr_run(f"rounds={ROUNDS} out='{deployed}'", DEADLINE - (time.monotonic() - started))
        assert deployment.wait_for(deployed / "model.npz", DEADLINE - (time.monotonic() - started)), deployment.logs()
        assert code == 0, deployment.logs()
    here, there = np.load(tmp_path / "local" / "model.npz"), np.load(deployed / "model.npz")
    assert sorted(here.files) == sorted(there.files)
    for key in here.files:
        np.testing.assert_allclose(there[key], here[key], rtol=1e-5, atol=1e-6, err_msg=key)
    ours, theirs = (read_history(folder / "history.jsonl") for folder in (tmp_path / "local", deployed))
    np.testing.assert_allclose([r.gsi for r in theirs], [r.gsi for r in ours], rtol=1e-5)
