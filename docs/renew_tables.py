"""Renews the generated tables of README.md from the stored cells: ``make docs``.

Each table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. A test compares them with what this
script would write, so that no figure in the README can drift from the results.
"""

from __future__ import annotations

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


TABLES: dict[str, Callable[[list[Evidence]], str]] = {
    "methods": lambda evidence: method_table_markdown(load_registry(), evidence),
    "verdicts small": _verdicts("small"),
    "verdicts public": _verdicts("public"),
}


def renewed(text: str) -> str:
    """The page with every table made anew."""
    evidence = gather(Store(ROOT / "results"), load_registry())
    return _BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]](evidence).strip()}\n{match[3]}", text)


if __name__ == "__main__":
    page = ROOT / "README.md"
    old = page.read_text(encoding="utf-8")
    new = renewed(old)
    if new != old:
        write_text(page, new)
    sys.stdout.write(f"README.md {'renewed' if new != old else 'is up to date'}\n")
