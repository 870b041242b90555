"""Writes the report: one HTML page that needs nothing else, and its Markdown twin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from transfuse.atomic import write_text
from transfuse.errors import UserError
from transfuse.study.claims import OUTCOMES
from transfuse.study.evidence import Evidence
from transfuse.study.report import provenance, tables
from transfuse.study.report.curves import curves
from transfuse.study.report.figures import seed_list
from transfuse.study.report.forest import forest
from transfuse.study.report.heat_map import heat_maps
from transfuse.study.report.markdown import page_markdown
from transfuse.study.report.palette import SIGNS, looks, outcome_class
from transfuse.study.report.sections import Contents, Section, contents

_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class ReportFiles:
    """Where the two forms of a report were written."""

    html: Path
    markdown: Path


def write_report(evidence: Sequence[Evidence], out: Path, *, title: str = "transfuse report") -> ReportFiles:
    """Write ``index.html`` and ``report.md`` into the folder `out`.

    Args:
        evidence: what `gather` returns; the page keeps its order.
        out: a folder, made if need be; files of an earlier report are replaced as a whole.
        title: the heading.

    Raises:
        UserError: the folder cannot be written.
    """
    files = ReportFiles(out / "index.html", out / "report.md")
    made = contents(evidence, title)
    try:
        write_text(files.html, page_html(made))
        write_text(files.markdown, page_markdown(made))
    except OSError as error:
        raise UserError(f"cannot write the report into {str(out)!r}: {error.strerror}", "a writable folder") from None
    return files


def page_html(made: Contents) -> str:
    """The whole page as text."""
    return template("page.html.j2").render(
        title=made.title,
        outcomes=OUTCOMES,
        signs=SIGNS,
        sentence=tables.summary_sentence(made.evidence),
        summary=tables.summary_rows(made.evidence),
        scales=[(name, words) for name, words in tables.SCALES.items() if any(e.scale == name for e in made.evidence)],
        claims=made.rows(control=False),
        controls=made.rows(control=True),
        ledger=made.ledger,
        groups=[_group(section) for section in made.sections],
    )


def _group(section: Section) -> dict[str, Any]:
    """All that one section shows."""
    group, arranged, rows = section.group, section.arranged, section.rows
    return {
        "anchor": tables.anchor(group),
        "card": group.entry.card,
        "study": group.study,
        "scale": group.scale,
        "scale_words": tables.SCALES.get(group.scale, ""),
        "data": group.study.data.get(group.scale, ()),
        "label": tables.label(group),
        "looks": looks(group.study),
        "seeds": seed_list(group.seeds),
        "stale": seed_list(group.stale),
        "claims": [row for row in rows if not row.control],
        "controls": [row for row in rows if row.control],
        "forest": forest(group.verdicts, group.study),
        "curves": curves(group, arranged),
        "maps": heat_maps(group, arranged),
        "means": tables.means_tables(group, arranged),
        "costs": provenance.cost_rows(group),
        "environments": provenance.environments(group),
        "settings": provenance.changed_settings(group),
        "warnings": provenance.warnings(group),
        "undeclared": arranged.undeclared,
        "command": provenance.command(group),
    }


def template(name: str) -> jinja2.Template:
    return _templates().get_template(name)


@cache
def _templates() -> jinja2.Environment:
    loaded = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    for kind in ("css", "js"):  # our own files, the only markup that is not escaped besides the drawings
        loaded.globals[kind] = Markup((_TEMPLATES / f"report.{kind}").read_text(encoding="utf-8"))
    loaded.filters["outcome_class"] = outcome_class
    loaded.filters["counted"] = _counted
    return loaded


def _counted(rows: Sequence[Any], attribute: str, kinds: Sequence[str]) -> list[tuple[str, int]]:
    """How many rows are of each kind."""
    counts = Counter(getattr(row, attribute) for row in rows)
    return [(kind, counts[kind]) for kind in kinds]
