"""RedGrape's example app as real processes: the arrays and prototypes of a LocalGrid, through the same strategy.

Unlike FedGLAD's, its messages carry records of their own in both directions, each node another one.
"""

from __future__ import annotations

import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower

sys.path.insert(0, str(Path(__file__).parent))
import test_flower_deployment as deployment_of

APP = deployment_of.ROOT / "examples" / "federated" / "redgrape_app"
ROUNDS = 3
DEADLINE = 180.0  # seconds for all of it; an idle machine needs about 50

pytestmark = pytest.mark.slow


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the example importable, and the one that is deployed, for the length of a test."""
    monkeypatch.syspath_prepend(str(APP))
    monkeypatch.setattr(deployment_of, "APP", APP)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "redgrape_app"]:
        del sys.modules[name]


def config(**changes: object) -> dict:
    """The app's own defaults, so that a renamed key is noticed."""
    defaults = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert not set(changes) - set(defaults)
    return {**defaults, **changes}


def local_run(settings: dict, nodes: int = 2, **arguments: object):
    from redgrape_app.client import app as client_app
    from redgrape_app.server import federate

    grid = LocalGrid(client_app, nodes, run_config=settings, on_error="raise", **arguments)
    with quiet_flower():
        return federate(grid, settings)


def test_example_app_learns_on_a_local_grid(app: None, tmp_path: Path) -> None:
    settings = config(rounds=10, out=str(tmp_path))
    result = local_run(settings, roundtrip=True)
    assert result.evaluate_metrics_serverapp[10]["accuracy"] > 0.6 > result.evaluate_metrics_serverapp[0]["accuracy"]
    assert len(np.load(tmp_path / "prototypes.npz")["classes"]) == 10


def test_deployment_gives_the_arrays_of_the_local_grid(app: None, tmp_path: Path) -> None:
    local_run(config(rounds=ROUNDS, out=str(tmp_path / "local")))
    deployed = tmp_path / "deployed"
    started = time.monotonic()
    with deployment_of.Deployment(tmp_path, nodes=2) as deployment:
        code = deployment.flwr_run(f"rounds={ROUNDS} out='{deployed}'", DEADLINE)
        left = DEADLINE - (time.monotonic() - started)
        assert deployment.wait_for(deployed / "model.npz", left), deployment.logs()
        assert code == 0, deployment.logs()
    for name in ("prototypes.npz", "model.npz"):
        here, there = np.load(tmp_path / "local" / name), np.load(deployed / name)
        assert sorted(here.files) == sorted(there.files)
        for key in here.files:
            np.testing.assert_allclose(there[key], here[key], rtol=1e-5, atol=1e-6, err_msg=key)
