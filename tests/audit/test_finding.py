"""Findings: finite values, three verdicts, an exit status."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from transfuse.audit import AuditReport, Finding


def finding(**changes: Any) -> Finding:
    values = {"name": "leak", "value": 0.1, "interval": (0.0, 0.2), "threshold": 0.05, "verdict": "ok", "meaning": "m"}
    return Finding(**{**values, **changes})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_are_finite(value: float) -> None:
    with pytest.raises(ValueError, match=r"'leak'.*not finite"):
        finding(value=value)


def test_verdicts_are_three() -> None:
    with pytest.raises(ValueError, match="'bad' is none of"):
        finding(verdict="bad")


@pytest.mark.parametrize(("verdicts", "status"), [((), 0), (("ok", "info"), 0), (("ok", "finding"), 1)])
def test_the_exit_status_tells_whether_there_is_something_to_do(verdicts: tuple[str, ...], status: int) -> None:
    report = AuditReport("s", "m", tuple(finding(verdict=v) for v in verdicts), None, "by hand")
    assert report.exit_code == status


def test_a_report_prints_and_is_json() -> None:
    report = AuditReport("s", "m", (finding(remedy="mend it"), finding(interval=None, threshold=None)), 0.031, "c")
    assert json.loads(report.to_json())["findings"][1]["interval"] is None
    text = str(report)
    assert "what to do: mend it" in text and "3.1%" in text
    assert "not measured" in str(AuditReport("s", "m", (), None, "c"))
