"""Verdicts as a table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from transfuse.cli.tables import count, heading, table


def verdict_table(summary: Mapping[str, Any]) -> str:
    """A group's verdicts under a line that says which group it is."""
    seeds = count(len(summary["seeds"]), "seed")
    lines = [heading(f"{summary['study']}, scale {summary['scale']}, {seeds}")]
    if not summary["verdicts"]:
        return f"{lines[0]}\n  no claim is tested at this scale; the cells are stored"
    rows = [
        (v["outcome"], v["claim"] + (" (control)" if v["control"] else ""), effect_text(v), v["seeds"], *_p_values(v))
        for v in summary["verdicts"]
    ]
    lines.append(table(("VERDICT", "CLAIM", "EFFECT [95 % INTERVAL]", "SEEDS", "P (HOLM)", "SIGN FLIP"), rows, "  "))
    for v in summary["verdicts"]:
        if v["outcome"] == "inconclusive":
            note = f"; {v['needed']}" if v["needed"] else ""
            lines.append(f"  {v['claim']}: {v['meaning']}{note}")
        elif v["outcome"] == "contradicted":
            likely = f"; likely because {v['likely']}" if v["likely"] else ""
            lines.append(f"  {v['claim']}: {v['meaning']}{likely}")
    if summary["stale"]:
        stale = ", ".join(map(str, summary["stale"]))
        lines.append(f"  stale, made by other code than today's: seeds {stale}; type: transfuse run --stale")
    return "\n".join(lines)


def effect_text(verdict: Mapping[str, Any]) -> str:
    """``0.12 [0.1, 0.14]``, with an open interval where one seed gives none."""
    if verdict["effect"] is None:
        return "not measured"
    if verdict["low"] is None:
        return f"{verdict['effect']:.4g} [no interval]"
    return f"{verdict['effect']:.4g} [{verdict['low']:.4g}, {verdict['high']:.4g}]"


def outcome_counts(summary: Mapping[str, Any]) -> str:
    """``3 supported, 1 contradicted``."""
    counts = Counter(verdict["outcome"] for verdict in summary["verdicts"])
    return ", ".join(f"{number} {outcome}" for outcome, number in counts.most_common()) or "no claims"


def _p_values(verdict: Mapping[str, Any]) -> tuple[str, str]:
    if verdict["outcome"] == "too few seeds":
        return "", ""
    return f"{verdict['p_holm']:.2g}", f"{verdict['p_sign_flip']:.2g}"
