"""The findings of an audit as a page of the same make as the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from transfuse.study.report.figures import number
from transfuse.study.report.page import template


class FindingLike(Protocol):
    """What is read of `transfuse.audit.Finding`; audits lie above studies, so it is not imported here."""

    @property
    def name(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def interval(self) -> tuple[float, float] | None: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def verdict(self) -> str: ...
    @property
    def meaning(self) -> str: ...
    @property
    def remedy(self) -> str: ...


class AuditLike(Protocol):
    """What is read of `transfuse.audit.AuditReport`."""

    @property
    def subject(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def findings(self) -> Sequence[FindingLike]: ...
    @property
    def false_alarm_rate(self) -> float | None: ...
    @property
    def calibration(self) -> str: ...
    @property
    def environment(self) -> Mapping[str, Any]: ...


_SIGNS = {"ok": "✓", "finding": "!", "info": "i"}


def render_audit(report: AuditLike) -> str:
    """An audit report as one HTML page that needs nothing else."""
    found = sum(finding.verdict == "finding" for finding in report.findings)
    sentence = "nothing that needs doing" if not found else "1 finding" if found == 1 else f"{found} findings"
    rate = report.false_alarm_rate
    return template("audit.html.j2").render(
        title=f"{report.method}: {report.subject}",
        report=report,
        sentence=sentence,
        rows=[(finding, _SIGNS[finding.verdict], _limits(finding)) for finding in report.findings],
        rate="not measured" if rate is None else f"{rate:.1%}",
        environment=[(key, _plain(value)) for key, value in report.environment.items()],
    )


def _limits(finding: FindingLike) -> dict[str, str]:
    interval, threshold = finding.interval, finding.threshold
    return {
        "value": number(finding.value),
        "interval": f"{number(interval[0])} to {number(interval[1])}" if interval else "",
        "threshold": number(threshold) if threshold is not None else "",
    }


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return number(value) if isinstance(value, float) else str(value)
