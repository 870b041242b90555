"""What an audit returns: findings with intervals, thresholds and what to do about them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Result = Literal["ok", "finding", "info"]


@dataclass(frozen=True)
class Finding:
    """One answer of an audit.

    Attributes:
        name: what was looked at.
        value: what was found; a finite number.
        interval: 95 % interval of the value, where the data allow one.
        threshold: where "ok" ends, or None for a plain piece of information.
        verdict: "ok", "finding" (the user should act) or "info".
        meaning: the value in plain words.
        remedy: what to do about it; empty unless there is something to do.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    threshold: float | None
    verdict: Result
    meaning: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"finding {self.name!r}: the value {self.value} is not finite")
        if self.verdict not in get_args(Result):
            raise ValueError(f"finding {self.name!r}: verdict {self.verdict!r} is none of {get_args(Result)}")


@dataclass(frozen=True)
class AuditReport:
    """The findings about one subject.

    Attributes:
        subject: what was audited, as the user names it.
        method: the id of the auditing method.
        findings: in order of importance.
        false_alarm_rate: how often a clean subject would be flagged, as measured by the null calibration.
        calibration: how that rate was measured, in plain words.
        environment: versions, sizes and settings that a reader needs to repeat the audit.
    """

    subject: str
    method: str
    findings: tuple[Finding, ...]
    false_alarm_rate: float | None
    calibration: str
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 if nothing needs doing, 1 if there are findings."""
        return int(any(finding.verdict == "finding" for finding in self.findings))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "subject": self.subject,
            "method": self.method,
            "false_alarm_rate": self.false_alarm_rate,
            "calibration": self.calibration,
            "environment": dict(self.environment),
            "findings": [
                {
                    "name": finding.name,
                    "value": finding.value,
                    "interval": list(finding.interval) if finding.interval else None,
                    "threshold": finding.threshold,
                    "verdict": finding.verdict,
                    "meaning": finding.meaning,
                    "remedy": finding.remedy,
                }
                for finding in self.findings
            ],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        lines = [f"{self.method} audit of {self.subject}"]
        for finding in self.findings:
            interval = f" [{finding.interval[0]:.4g}, {finding.interval[1]:.4g}]" if finding.interval else ""
            limit = f" (threshold {finding.threshold:g})" if finding.threshold is not None else ""
            lines.append(f"  {finding.verdict:<8}{finding.name}: {finding.value:.4g}{interval}{limit}")
            lines.append(f"          {finding.meaning}")
            if finding.remedy:
                lines.append(f"          what to do: {finding.remedy}")
        rate = "not measured" if self.false_alarm_rate is None else f"{self.false_alarm_rate:.1%}"
        lines.append(f"  false-alarm rate: {rate} ({self.calibration})")
        return "\n".join(lines)
