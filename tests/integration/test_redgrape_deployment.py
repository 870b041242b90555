"""RedGrape's example app as real processes: the arrays and prototypes of a LocalGrid, through the same strategy.

Unlike FedGLAD's, its messages carry records of their own in both directions, each node another one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flower_deployment import ROOT, Deployment, app_config, importable

from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower

APP = ROOT / "examples" / "federated" / "redgrape_app"
ROUNDS = 3
DEADLINE = 180.0  # seconds for all of it; an idle machine needs about 50

pytestmark = pytest.mark.slow


@pytest.fixture
def app() -> Iterator[None]:
    """The example can be imported for the length of a test."""
    with importable(APP):
        yield


def local_run(settings: dict, nodes: int = 2, **arguments: object):
    from redgrape_app.client import app as client_app
    from redgrape_app.server import federate

    grid = LocalGrid(client_app, nodes, run_config=settings, on_error="raise", **arguments)
    with quiet_flower():
        return federate(grid, settings)


def test_example_app_learns_on_a_local_grid(app: None, tmp_path: Path) -> None:
    settings = app_config(APP, rounds=10, out=str(tmp_path))
    result = local_run(settings, roundtrip=True)
    assert result.evaluate_metrics_serverapp[10]["accuracy"] > 0.6 > result.evaluate_metrics_serverapp[0]["accuracy"]
    assert len(np.load(tmp_path / "prototypes.npz")["classes"]) == 10


def test_deployment_gives_the_arrays_of_the_local_grid(app: None, tmp_path: Path) -> None:
    local_run(app_config(APP, rounds=ROUNDS, out=str(tmp_path / "local")))
    deployed = tmp_path / "deployed"
    started = time.monotonic()
    with Deployment(tmp_path, APP, nodes=2) as deployment:
        code = deployment.flwr_run(f"rounds={ROUNDS} out='{deployed}'", DEADLINE)
        left = DEADLINE - (time.monotonic() - started)
        assert deployment.wait_for(deployed / "model.npz", left), deployment.logs()
        assert code == 0, deployment.logs()
    for name in ("prototypes.npz", "model.npz"):
        here, there = np.load(tmp_path / "local" / name), np.load(deployed / name)
        assert sorted(here.files) == sorted(there.files)
        for key in here.files:
            np.testing.assert_allclose(there[key], here[key], rtol=1e-5, atol=1e-6, err_msg=key)
