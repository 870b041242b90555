"""The look of an arm: a colour that colour-blind readers can tell apart, and dashes for controls."""

from __future__ import annotations

from dataclasses import dataclass

from transfuse.study.claims import Outcome
from transfuse.study.design import Study

COLOURS = 8  # as many as report.css defines, after Okabe and Ito

# A sign beside the word, so that no verdict is told by colour alone.
SIGNS: dict[Outcome, str] = {"supported": "✓", "contradicted": "✗", "inconclusive": "?", "too few seeds": "…"}


@dataclass(frozen=True)
class Look:
    """CSS class of an arm's colour, dash pattern of its line, and whether it is a control."""

    colour: str
    dash: str
    control: bool


def looks(study: Study) -> dict[str, Look]:
    """One look an arm, the same everywhere on the page."""
    found = {}
    for index, arm in enumerate(study.arms):
        control = arm in study.controls
        round_ = index // COLOURS  # beyond eight arms colours come again with other dashes
        dash = ("5 3", "1 3", "7 2 1 2")[round_ % 3] if control else ("", "9 2", "3 1")[round_ % 3]
        found[arm] = Look(f"c{index % COLOURS}", dash, control)
    return found


def outcome_class(outcome: Outcome) -> str:
    return outcome.replace(" ", "-")
