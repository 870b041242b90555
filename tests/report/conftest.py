"""Cells made by hand, with every kind of claim, conditions, curves and costs: what the report must show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import make_dataclass
from pathlib import Path

import numpy as np
import pytest

from transfuse.card import Card
from transfuse.registry import Entry
from transfuse.study import AtLeast, Beats, Measurement, Metric, Study, Trend, Within
from transfuse.study.evidence import Evidence
from transfuse.study.store import Cell, CellSpec

ARMS = ("no_transfer", "placebo", "teacher_copy", "method")
ENVIRONMENT = {
    "python": "3.11.7",
    "machine": "Linux x86_64",
    "cores": 2,
    "threads": 1,
    "device": "cpu",
    "versions": {"transfuse": "0.1.0", "numpy": "2.4.6", "torch": "2.13.0"},
}


def _card(method: str) -> Card:
    return Card(
        id=method,
        title="Learning <from> a Teacher & a Half",
        summary="Distils one and a half teachers into a student.",
        authors="A. Author, B. Author",
        year=2024,
        venue="Example Conference",
        url="https://example.org/paper",
        family="distillation",
        host="torch: nn.Module",
        entry="example.Method",
        needs=("a teacher",),
        data="images",
        problems=("my student is weak",),
        extra="text",
        requires=(),
        differs=(),
    )


def _study(method: str) -> Study:
    return Study(
        id=method,
        question="Does a teacher and a half help, and whom does it hurt?",
        arms=ARMS,
        controls=("no_transfer", "placebo"),
        metrics={
            "accuracy": Metric("higher", "1", "share of correct answers"),
            "error": Metric("lower", "1"),
            "loss": Metric("lower", "nats"),
            "time": Metric("lower", "s", "wall time of training"),
            "ratio": Metric("neither"),
        },
        conditions={"shift": ("background", "semantic"), "noise": (0.0, 0.5, 1.0)},
        claims=(
            Beats("method", "no_transfer", on="accuracy", by=0.01, paper="Table 2", published="0.93 against 0.90"),
            Beats("method", "teacher_copy", on="error", where={"shift": "semantic"}, likely="the teacher is small"),
            Trend("method", "noise", "falls", on="accuracy", paper="Figure 3: accuracy falls with noise"),
            AtLeast("method", 0.5, on="accuracy"),
            Within("placebo", "no_transfer", on="accuracy", width=0.05, control=True),
        ),
        settings=make_dataclass("Settings", []),
        scales={"quick": {}, "public": {}},
        notes=("The encoder is small.",),
    )


def _measurements(seed: int, rng: np.random.Generator) -> Iterator[Measurement]:
    gains = {"no_transfer": 0.0, "placebo": 0.002, "teacher_copy": 0.03, "method": 0.05}
    base = rng.normal(0.8, 0.02)
    for arm, gain in gains.items():
        for shift, shift_effect in (("background", 0.0), ("semantic", -0.12 if arm == "method" else -0.05)):
            for noise in (0.0, 0.5, 1.0):
                where = {"shift": shift, "noise": noise}
                accuracy = base + gain + shift_effect - 0.1 * noise + rng.normal(0, 0.006)
                yield Measurement(arm, "accuracy", accuracy, where)
                yield Measurement(arm, "error", 1 - accuracy, where)
        yield Measurement(arm, "time", 3.0 + 10 * gain + rng.normal(0, 0.05))
        yield Measurement(arm, "ratio", rng.normal(1, 0.1))
        for step in range(1, 13):
            yield Measurement(arm, "loss", 2.2 / step ** (0.4 + 2 * gain) + rng.normal(0, 0.03), step=step)


@pytest.fixture
def make_evidence() -> Callable[..., Evidence]:
    """``make_evidence("toy", scale="small", seeds=5)``: a group of cells without files."""

    def make(method: str = "toy", *, scale: str = "small", seeds: int = 5, code: str = "c" * 16) -> Evidence:
        entry = Entry(_card(method), f"example.{method}", Path("example.py"), f"example_studies.{method}")
        cells = []
        for seed in range(seeds):
            spec = CellSpec(method, scale, seed, {"epochs": 3}, {}, "c" * 16)
            rng = np.random.default_rng([seed, len(method)])
            cost = {"wall_s": 12.5 + seed, "cpu_s": 12.0, "peak_mb": 410.0}
            warnings = ("UserWarning: odd | pipe",) if seed == 1 else ()
            cells.append(Cell(spec, tuple(_measurements(seed, rng)), cost, ENVIRONMENT, warnings))
        return Evidence(entry, _study(method), scale, tuple(cells), code)

    return make
