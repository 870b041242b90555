"""The report: stored cells as one static page for people, with the same in Markdown.

Nothing here decides anything: verdicts come from `transfuse.study.claims`, numbers from the cells. The same
cells give the same bytes.
"""

from transfuse.study.report.audit_page import render_audit
from transfuse.study.report.compare_page import render_comparison
from transfuse.study.report.markdown import method_table_markdown, model_card_markdown, verdict_table_markdown
from transfuse.study.report.page import ReportFiles, write_report

__all__ = [
    "ReportFiles",
    "method_table_markdown",
    "model_card_markdown",
    "render_audit",
    "render_comparison",
    "verdict_table_markdown",
    "write_report",
]
