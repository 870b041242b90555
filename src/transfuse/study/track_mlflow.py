"""Cells as MLflow runs: settings as parameters, measurements as metrics, what identifies a cell as tags.

Where runs go is MLflow's own business (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME). Its client is used and not
its fluent functions, so that nothing global is left behind.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from transfuse.errors import MissingExtraError, UserError
from transfuse.study.design import Measurement
from transfuse.study.store import Cell

_REFUSED = re.compile(r"[^\w.\- /]", re.ASCII)  # in names; MLflow takes the rest everywhere
_AT_ONCE = 1000  # metrics of one request
_LONGEST = 6000  # characters of a parameter or tag


class MlflowTracker:
    """One MLflow run a cell, and one for the verdicts of a study."""

    def __init__(self) -> None:
        try:
            import mlflow
            from mlflow.entities import Metric, Param
        except ImportError:
            raise MissingExtraError("--track mlflow", "mlflow", "mlflow") from None
        self._metric, self._param = Metric, Param
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "transfuse")
        try:
            self._client = mlflow.MlflowClient()
            found = self._client.get_experiment_by_name(name)
            self._experiment = found.experiment_id if found else self._client.create_experiment(name)
        except Exception as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"MLflow does not take runs ({line})", fix="check MLFLOW_TRACKING_URI") from None

    def cell(self, cell: Cell) -> None:
        """Log one cell: final values under arm/metric/conditions, points of curves with their step."""
        spec = cell.spec
        tags = {"study": spec.study, "scale": spec.scale, "seed": spec.seed, "key": spec.key, "code": spec.code}
        names = [metric_name(m) for m in cell.measurements]
        fractions = {
            name for name, m in zip(names, cell.measurements, strict=True) if not float(m.step or 0).is_integer()
        }
        metrics = [
            (name, m.value, round((m.step or 0) * (1000 if name in fractions else 1)))  # MLflow's steps are whole
            for name, m in zip(names, cell.measurements, strict=True)
        ]
        metrics += [(f"cost/{name}", value, 0) for name, value in cell.cost.items()]
        self._log(f"{spec.study} {spec.scale} seed {spec.seed}", tags, dict(_flat(spec.settings)), metrics)

    def verdicts(self, summary: Mapping[str, Any]) -> None:
        """Log the verdicts of a study; claims are numbered as they are declared."""
        tags = {"study": summary["study"], "scale": summary["scale"], "seeds": len(summary["seeds"])}
        metrics: list[tuple[str, float, int]] = []
        for number, verdict in enumerate(summary["verdicts"], 1):
            tags |= {f"claim {number}": verdict["claim"], f"verdict {number}": verdict["outcome"]}
            known = [name for name in ("effect", "low", "high", "p_holm") if verdict[name] is not None]
            metrics += [(f"claim {number}/{name}", verdict[name], 0) for name in known]
        self._log(f"{summary['study']} {summary['scale']} verdicts", tags, {}, metrics)

    def _log(
        self, name: str, tags: Mapping[str, Any], params: Mapping[str, Any], metrics: list[tuple[str, float, int]]
    ) -> None:
        now = int(time.time() * 1000)
        own = {f"transfuse.{key}": str(value)[:_LONGEST] for key, value in tags.items()}
        run = self._client.create_run(self._experiment, tags=own, run_name=name)
        rows = [self._metric(key, float(value), now, step) for key, value, step in metrics]
        settings = [self._param(_REFUSED.sub("_", key), str(value)[:_LONGEST]) for key, value in params.items()]
        for start in range(0, len(settings), 100):
            self._client.log_batch(run.info.run_id, params=settings[start : start + 100])
        for start in range(0, len(rows), _AT_ONCE):
            self._client.log_batch(run.info.run_id, metrics=rows[start : start + _AT_ONCE])
        self._client.set_terminated(run.info.run_id, "FINISHED")


def metric_name(m: Measurement) -> str:
    """``gnome/auroc/shift background``; points of a curve have a name apart, since final values are not on it."""
    parts = [m.arm, m.metric, *(f"{key} {value}" for key, value in sorted(m.where.items()))]
    if m.step is not None:
        parts.append("by step")
    return _REFUSED.sub("_", "/".join(part.replace("/", "_") for part in parts))


def _flat(settings: Mapping[str, Any], lead: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{lead}{key}.")
        else:
            yield f"{lead}{key}", value
