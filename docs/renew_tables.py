"""Renews the generated tables of README.md and of a guide from what is stored in results: ``make docs``.

Each table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. A test compares them with what this
script would write, so that no figure in the README can drift from the results.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from transfuse.atomic import write_text
from transfuse.registry import load_registry
from transfuse.study.evidence import Evidence, gather
from transfuse.study.report.markdown import method_table_markdown, verdict_table_markdown
from transfuse.study.store import Store

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"(<!-- table: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _verdicts(scale: str) -> Callable[[list[Evidence]], str]:
    return lambda evidence: verdict_table_markdown([e for e in evidence if e.scale == scale])


def _calibration(_: list[Evidence]) -> str:
    """What bench/calibration.py found."""
    rows = json.loads((ROOT / "results" / "calibration.json").read_text(encoding="utf-8"))
    head = ["Claim", "Noise of the seeds", "Seeds", "Nominal", "Supported", "Contradicted", "± error"]
    lines = [head, ["---"] * len(head), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES: dict[str, Callable[[list[Evidence]], str]] = {
    "methods": lambda evidence: method_table_markdown(load_registry(), evidence),
    "verdicts small": _verdicts("small"),
    "verdicts public": _verdicts("public"),
    "calibration": _calibration,
}
PAGES = (ROOT / "README.md", ROOT / "docs" / "verdicts.md")


def renewed(text: str) -> str:
    """The page with every table made anew."""
    evidence = gather(Store(ROOT / "results"), load_registry())
    return _BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]](evidence).strip()}\n{match[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = renewed(old)
        if new != old:
            write_text(page, new)
        sys.stdout.write(f"{page.name} {'renewed' if new != old else 'is up to date'}\n")
