"""FedKA's example app in a real deployment must give the arrays of the LocalGrid, after three rounds.

The nodes keep a domain classifier and Adam's moments from round to round, in fresh processes here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flower_deployment import ROOT, Deployment, app_config, importable

from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.group_effect_report import read_effects

APP = ROOT / "examples" / "federated" / "fedka_app"
ROUNDS = 3
DEADLINE = 300.0  # seconds for all of it; an idle machine needs about 60

pytestmark = pytest.mark.slow


@pytest.fixture
def app() -> Iterator[None]:
    """The example can be imported for the length of a test."""
    with importable(APP):
        yield


def local_run(settings: dict, nodes: int = 2, **arguments: object):
    from fedka_app.client import app as client_app
    from fedka_app.server import federate

    grid = LocalGrid(client_app, nodes, run_config=settings, on_error="raise", **arguments)
    with quiet_flower():
        return federate(grid, settings)


@pytest.mark.parametrize(
    "sharing", [{"share": "raw"}, {"share": "embeddings"}, {"share": "stats", "disentangle": False}]
)
def test_example_app_runs_on_a_local_grid(app: None, tmp_path: Path, sharing: dict) -> None:
    settings = app_config(APP, rounds=2, clients=3, out=str(tmp_path), **sharing)
    result = local_run(settings, nodes=3, roundtrip=True)
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    effects = read_effects(tmp_path / "effects.jsonl")
    assert [len(effect.without) for effect in effects] == [3, 3]


def test_example_app_learns_its_sources_without_alignment(app: None, tmp_path: Path) -> None:
    settings = app_config(APP, rounds=8, clients=3, out=str(tmp_path), disentangle=False, match=False, vote=False)
    local_run(settings, nodes=3)
    assert read_effects(tmp_path / "effects.jsonl")[-1].aggregate > 0.3  # on the unseen domain; one in ten by chance


def test_deployment_gives_the_arrays_of_the_local_grid(app: None, tmp_path: Path) -> None:
    settings = app_config(APP, rounds=ROUNDS, out=str(tmp_path / "local"))
    local_run(settings)
    deployed = tmp_path / "deployed"
    started = time.monotonic()
    with Deployment(tmp_path, APP, nodes=2) as deployment:
        code = deployment.flwr_run(f"rounds={ROUNDS} out='{deployed}'", DEADLINE - (time.monotonic() - started))
        assert deployment.wait_for(deployed / "model.npz", DEADLINE - (time.monotonic() - started)), deployment.logs()
        assert code == 0, deployment.logs()
    here, there = np.load(tmp_path / "local" / "model.npz"), np.load(deployed / "model.npz")
    assert sorted(here.files) == sorted(there.files)
    for key in here.files:
        np.testing.assert_allclose(there[key], here[key], rtol=1e-4, atol=1e-5, err_msg=key)
    ours, theirs = (read_effects(folder / "effects.jsonl") for folder in (tmp_path / "local", deployed))
    np.testing.assert_allclose([e.effect for e in theirs], [e.effect for e in ours], atol=1e-6)
