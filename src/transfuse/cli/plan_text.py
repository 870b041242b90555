"""The plan of a run, for people and for programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfuse.cli.tables import count, duration, heading, table

if TYPE_CHECKING:
    from transfuse.study.claims import Claim
    from transfuse.study.design import Study
    from transfuse.study.plan import Plan, StudyPlan

EFFECTS = (0.5, 1.0, 2.0)  # standard deviations of the paired differences


def plan_text(plan: Plan, jobs: int, folder: Path) -> str:
    """The cells of every study, what is still to be run, and how long that takes."""
    rows = [
        (p.study.id, p.scale, len(p.cells), len(p.pending), duration(p.seconds_per_cell), duration(p.seconds))
        for p in plan.studies
    ]
    cells, time = count(len(plan.cells), "cell"), duration(plan.seconds(jobs))
    total = f"{len(plan.pending)} of {cells} to run, about {time} with {count(jobs, 'job')}; results in {str(folder)!r}"
    return table(("STUDY", "SCALE", "CELLS", "TO RUN", "A CELL", "WORK"), rows) + "\n" + total


def plan_values(plan: Plan, jobs: int, folder: Path) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "results": str(folder),
        "jobs": jobs,
        "seconds": plan.seconds(jobs),
        "studies": [
            {
                "study": p.study.id,
                "scale": p.scale,
                "seeds": [cell.seed for cell in p.cells],
                "pending": [cell.seed for cell in p.pending],
                "seconds_per_cell": p.seconds_per_cell,
                "settings": p.cells[0].settings,
            }
            for p in plan.studies
        ],
    }


def power_text(plan: StudyPlan) -> str:
    """How many seeds each claim would need to be decided, by the size of its effect."""
    claims = _tested(plan.study, plan.scale)
    if not claims:
        return f"{heading(plan.study.id)}: no claim is tested at scale {plan.scale}"
    rows = [(claim.text(), *seeds_needed(claim, len(claims)), len(plan.cells)) for claim in claims]
    headings = ("CLAIM", *(f"{effect:g} SD" for effect in EFFECTS), "PLANNED")
    return f"{heading(f'{plan.study.id}: seeds needed, by the size of the effect')}\n{table(headings, rows, '  ')}"


def power_values(plan: StudyPlan) -> list[dict[str, Any]]:
    """The same as JSON values."""
    claims = _tested(plan.study, plan.scale)
    return [
        {
            "claim": claim.text(),
            "seeds_needed": dict(zip(map(str, EFFECTS), seeds_needed(claim, len(claims)), strict=True)),
        }
        for claim in claims
    ]


def seeds_needed(claim: Claim, claims: int) -> list[int]:
    """Seeds for 80 % power, by the distance of the effect from the claim's margin in sd of the paired differences.

    The level is that of Holm's first step, the strictest of the study. An equivalence claim must pass two
    one-sided tests, so that each is given half of the 20 % that may be missed.
    """
    from transfuse.statistics import ALPHA, pairs_needed
    from transfuse.study.claims import Within

    power = 0.9 if isinstance(claim, Within) else 0.8
    return [pairs_needed(effect, power=power, alpha=ALPHA / claims) for effect in EFFECTS]


def _tested(study: Study, scale: str) -> list[Claim]:
    return [claim for claim in study.claims if scale in claim.scales]
