"""The translation app in a real deployment, three SuperNodes and three rounds: the same clusters, the same arrays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flower_deployment import ROOT, Deployment, app_config, importable

from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.update_conflict import read_history

APP = ROOT / "examples" / "federated" / "fed_mnmt_app"
NODES, ROUNDS = 3, 3
DEADLINE = 420.0  # seconds; every message starts a process that loads torch and transformers

pytestmark = pytest.mark.slow


@pytest.fixture
def app() -> Iterator[None]:
    """The example can be imported for the length of a test."""
    with importable(APP):
        yield


def local_run(out: Path, **changes: object) -> None:
    from fed_mnmt_app.client import app as client_app
    from fed_mnmt_app.server import federate

    settings = app_config(APP, rounds=ROUNDS, out=str(out), **changes)
    with quiet_flower():
        federate(LocalGrid(client_app, NODES, run_config=settings, on_error="raise"), settings)


def models(folder: Path) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(folder / f"model-{partition}.npz")) for partition in range(NODES)]


@pytest.mark.parametrize("clusters", ["family", "gradient"])
def test_every_node_ends_with_its_own_combination(app: None, tmp_path: Path, clusters: str) -> None:
    local_run(tmp_path, clusters=clusters)
    spanish, italian, portuguese = models(tmp_path)
    key = "model.{}.layers.0.self_attn_adapter.up.weight"
    if clusters == "family":  # es-pt, it-de, pt-es: one family of sources, two of targets
        np.testing.assert_array_equal(spanish[key.format("encoder")], italian[key.format("encoder")])
        np.testing.assert_array_equal(spanish[key.format("decoder")], portuguese[key.format("decoder")])
        assert not np.array_equal(spanish[key.format("decoder")], italian[key.format("decoder")])
    assert [item.round for item in read_history(tmp_path / "history.jsonl")] == [1, 2, 3]


def test_deployment_gives_the_arrays_of_the_local_grid(app: None, tmp_path: Path) -> None:
    local_run(tmp_path / "local")
    deployed = tmp_path / "deployed"
    started = time.monotonic()
    with Deployment(tmp_path, APP, nodes=NODES) as deployment:
        code = deployment.flwr_run(f"rounds={ROUNDS} out='{deployed}'", DEADLINE)
        assert deployment.wait_for(deployed / "done", DEADLINE - (time.monotonic() - started)), deployment.logs()
        assert code == 0, deployment.logs()
    for here, there in zip(models(tmp_path / "local"), models(deployed), strict=True):
        assert sorted(here) == sorted(there)
        for key, values in here.items():
            np.testing.assert_allclose(there[key], values, rtol=1e-5, atol=1e-6, err_msg=key)
    ours, theirs = (read_history(folder / "history.jsonl") for folder in (tmp_path / "local", deployed))
    for one, other in zip(ours, theirs, strict=True):
        assert one.clients == other.clients == (0, 1, 2)
        for part, group in one.groups.items():
            np.testing.assert_allclose(other.groups[part].cosines, group.cosines, atol=1e-4)
            assert other.groups[part].clusters == group.clusters
