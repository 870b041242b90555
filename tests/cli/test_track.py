"""`transfuse run --track mlflow` against a stand-in that is as strict about names and sizes as MLflow."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from transfuse.study.design import Measurement
from transfuse.study.store import Cell, CellSpec, Store
from transfuse.study.track_mlflow import MlflowTracker, metric_name

NAME = re.compile(r"[\w.\- /]+", re.ASCII)  # what every version of MLflow takes


@dataclass
class Client:
    """The part of mlflow.MlflowClient that is used, with its limits."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: dict[str, str] = field(default_factory=dict)
    breaks_after: int = 1000

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def create_run(self, experiment_id: str, tags: dict[str, str], run_name: str) -> Any:
        if len(self.runs) >= self.breaks_after:
            raise ConnectionError("the server\nis gone")
        assert all(NAME.fullmatch(key) and isinstance(value, str) for key, value in tags.items())
        run_id = f"run-{len(self.runs)}"
        self.runs[run_id] = {"name": run_name, "tags": tags, "metrics": [], "params": {}, "status": "RUNNING"}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        assert len(metrics) <= 1000 and len(params) <= 100
        assert all(NAME.fullmatch(metric.key) and isinstance(metric.step, int) for metric in metrics)
        assert all(NAME.fullmatch(param.key) and isinstance(param.value, str) for param in params)
        self.runs[run_id]["metrics"] += [(m.key, m.value, m.step) for m in metrics]
        self.runs[run_id]["params"] |= {param.key: param.value for param in params}

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"] = status


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """The stand-in, as `import mlflow` finds it."""
    client = Client()
    mlflow, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    mlflow.MlflowClient = lambda: client  # type: ignore[attr-defined]
    for name, keys in (("Metric", ("key", "value", "timestamp", "step")), ("Param", ("key", "value"))):
        make = lambda *values, keys=keys: SimpleNamespace(**dict(zip(keys, values, strict=True)))  # noqa: E731
        setattr(entities, name, make)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "toys")
    return client


def test_each_cell_and_the_verdicts_become_runs(client: Client, transfuse: Callable) -> None:
    done = transfuse("run", "mean_shift", "--seeds", "2", "--jobs", "1", "--track", "mlflow")
    assert done.status == 0, done.err
    assert list(client.experiments) == ["toys"]
    first, second, verdicts = client.runs.values()
    assert [run["status"] for run in client.runs.values()] == ["FINISHED"] * 3
    assert (first["name"], second["name"]) == ("mean_shift small seed 0", "mean_shift small seed 1")
    (cell, _) = Store(Path("results")).cells()
    assert first["tags"]["transfuse.code"] == cell.spec.code and first["tags"]["transfuse.seed"] == "0"
    assert first["params"] == {"samples": "40", "spread": "1.0"}
    values = {m.arm: m.value for m in cell.measurements if m.step is None}
    assert {("centred/gap", values["centred"], 0), ("raw/gap/by step", 3.0, 1)} <= set(first["metrics"])
    assert ("cost/wall_s", cell.cost["wall_s"], 0) in first["metrics"]
    assert verdicts["tags"]["transfuse.verdict 1"] == "too few seeds"
    assert verdicts["tags"]["transfuse.claim 1"] == "centred beats raw by more than 0.1 on gap"


def test_long_curves_and_fractions_of_steps_fit(client: Client) -> None:
    """More points than one request takes; a curve over fractions keeps the distances between its points."""
    points = [Measurement("a", "loss", 1.0, step=float(step)) for step in range(1500)]
    points += [Measurement("b", "loss", 1.0, step=step) for step in (0.0, 0.5, 2.0)]
    settings = {f"s{i}": {"deep": i} for i in range(150)}
    MlflowTracker().cell(Cell(CellSpec("s", "small", 0, settings, {}, "code"), tuple(points), {}, {}))
    (run,) = client.runs.values()
    steps = {
        name: [step for key, _, step in run["metrics"] if key == name] for name in ("a/loss/by step", "b/loss/by step")
    }
    assert steps == {"a/loss/by step": list(range(1500)), "b/loss/by step": [0, 500, 2000]}
    assert len(run["params"]) == 150 and run["params"]["s7.deep"] == "7"


def test_a_server_that_goes_away_costs_a_warning_and_no_cell(client: Client, transfuse: Callable) -> None:
    client.breaks_after = 1
    done = transfuse("run", "mean_shift", "--seeds", "3", "--jobs", "1", "--track", "mlflow")
    assert done.status == 0 and "3 cells run" in done.out
    assert done.err == "warning: tracking ended (ConnectionError: the server is gone); cells are kept\n"


def test_a_server_that_is_not_there_is_one_line_before_any_work(
    client: Client, transfuse: Callable, monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    def refuse(name: str) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(client, "get_experiment_by_name", refuse)
    done = transfuse("run", "mean_shift", "--track", "mlflow")
    assert done.status == 2
    assert done.err == "error: MLflow does not take runs (refused); check MLFLOW_TRACKING_URI\n"
    assert list(workplace.iterdir()) == []


def test_missing_package_is_one_line(transfuse: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    done = transfuse("run", "mean_shift", "--track", "mlflow")
    assert done.status == 2 and "type: pip install 'transfuse[mlflow]'" in done.err


def test_names_hold_the_conditions_and_nothing_that_mlflow_refuses() -> None:
    m = Measurement("a/b", "auroc", 0.5, {"shift": "back=ground", "k": 3})
    assert metric_name(m) == "a_b/auroc/k 3/shift back_ground"
    assert metric_name(Measurement("a", "loss", 0.5, step=0.5)) == "a/loss/by step"
