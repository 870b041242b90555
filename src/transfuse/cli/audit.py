"""`transfuse audit`: questions that users ask of models, indexes, federations or data of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import typer

from transfuse.atomic import write_text
from transfuse.cli.app import example_text
from transfuse.cli.method_group import MethodGroup
from transfuse.cli.tables import facts, heading, paragraph, table

if TYPE_CHECKING:
    from transfuse.audit import AuditReport, Finding


def _finish(method_id: str, report: AuditReport, options: dict[str, Any]) -> None:
    """Print the report, or write it, and exit as the report says."""
    page: Path | None = options.get("out")
    if page is not None:
        from transfuse.study.report import render_audit

        write_text(page, render_audit(report))
    if options.get("json"):
        typer.echo(report.to_json())
    elif page is not None:
        typer.echo(f"written: {page}")
    else:
        typer.echo(report_text(report))
    raise typer.Exit(report.exit_code)


def report_text(report: AuditReport) -> str:
    """An audit report for people: what was found, what it means, what to do."""
    rows = [(f.verdict, f.name, _value(f), "" if f.threshold is None else f"{f.threshold:g}") for f in report.findings]
    lines = [heading(f"{report.method}: {report.subject}")]
    lines.append(table(("VERDICT", "WHAT", "VALUE [95 % INTERVAL]", "THRESHOLD"), rows, "  "))
    for finding in report.findings:
        lines.append(paragraph(f"{finding.name}: {finding.meaning}", "  ", "    "))
        if finding.remedy:
            lines.append(paragraph(f"what to do: {finding.remedy}", "    ", "      "))
    rate = "not measured" if report.false_alarm_rate is None else f"{report.false_alarm_rate:.1%}"
    lines.append(facts({"  false-alarm rate": f"{rate} ({report.calibration})"}))
    return "\n".join(lines)


def _value(finding: Finding) -> str:
    if finding.interval is None:
        return f"{finding.value:.4g}"
    return f"{finding.value:.4g} [{finding.interval[0]:.4g}, {finding.interval[1]:.4g}]"


COMMAND = MethodGroup(
    "audit",
    [
        click.Option(["--json"], is_flag=True, help="Print JSON for programs."),
        click.Option(
            ["--out"], type=click.Path(path_type=Path), metavar="FILE.html", help="Write the report as a page."
        ),
    ],
    _finish,
    help="Audit something of your own: a model, an index, a federation, data.\n\n"
    "Exit status 0 if there is nothing to do, 1 if there are findings, 2 for wrong input. "
    "Without a method: list those that have an audit.",
    epilog=example_text(
        ["transfuse audit", "transfuse audit lemon --help", "transfuse audit fedglad --history rounds.json --json"]
    ),
)
