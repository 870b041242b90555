"""What unlearning costs the neighbours of what was forgotten: retained facts by closeness, and the drop at each.

>>> france = QARow("What is the currency of France?", "euro", "France", "currency")
>>> spain = QARow("What is the currency of Spain?", "euro", "Spain", "currency")
>>> japan = QARow("What is the currency of Japan?", "yen", "Japan", "currency")
>>> closeness([france], [spain, japan]).tolist()
[1, 0]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transfuse.methods.unlearning.qa_file import QARow

BINS = 4


@dataclass(frozen=True)
class SideEffects:
    """The drop on retained facts by closeness.

    Attributes:
        bins: closeness, far to near, of those bins that hold facts.
        counts: facts in each.
        drops: accuracy before minus after in each.
        cost: mean of the drops over bins, the neighbour cost.
        selectivity: forget drop over the sum of it and the drop of the nearest bin; 1 is perfect, 0.5 as much harm as
            good; None where nothing dropped.
    """

    bins: tuple[int, ...]
    counts: tuple[int, ...]
    drops: tuple[float, ...]
    cost: float
    selectivity: float | None


def closeness(forget: Sequence[QARow], retain: Sequence[QARow], bins: int = BINS) -> np.ndarray:
    """How near each retained row is to what is forgotten, 0 (far) to bins - 1 (near), (retain,).

    With subjects: the most answers of the same relation that its subject shares with one forgotten subject, cut at
    bins - 1. Without: quarters of the largest share of words that its question has in common with a forgotten one.
    """
    if any(row.subject for row in forget) and all(row.subject for row in retain):
        profile = _profiles([*forget, *retain])
        gone = {row.subject for row in forget if row.subject}
        shared = {
            subject: max((len(profile[subject] & profile[other]) for other in gone if other != subject), default=0)
            for subject in {row.subject for row in retain}
        }
        return np.minimum([bins - 1 if row.subject in gone else shared[row.subject] for row in retain], bins - 1)
    words = [set(row.prompt.lower().split()) for row in forget]
    common = [max(_jaccard(set(row.prompt.lower().split()), other) for other in words) for row in retain]
    cuts = np.quantile(common, [i / bins for i in range(1, bins)])
    return np.searchsorted(cuts, common, side="left")


def _profiles(rows: Sequence[QARow]) -> dict[str, set[tuple[str, str]]]:
    found: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        found.setdefault(row.subject, set()).add((row.relation, row.answer))
    return found


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def side_effects(before: np.ndarray, after: np.ndarray, near: np.ndarray, forget_drop: float) -> SideEffects:
    """Drops by closeness.

    Args:
        before: the original on retained facts, (retain,).
        after: the unlearned model on them, (retain,).
        near: their closeness, (retain,).
        forget_drop: accuracy on the forgotten facts before minus after.
    """
    bins = np.unique(near)
    drops = [float(np.mean(before[near == b]) - np.mean(after[near == b])) for b in bins]
    total = max(forget_drop, 0.0) + max(drops[-1], 0.0)
    return SideEffects(
        tuple(int(b) for b in bins),
        tuple(int((near == b).sum()) for b in bins),
        tuple(drops),
        float(np.mean(drops)),
        max(forget_drop, 0.0) / total if total > 0 else None,
    )


def membership_auc(members: np.ndarray, others: np.ndarray) -> float:
    """Probability that a member's score is above another's, ties half: 0.5 says nothing, far below it tells as well."""
    order = np.sort(np.asarray(others, dtype=np.float64))
    below = np.searchsorted(order, members, "left") + np.searchsorted(order, members, "right")
    return float(np.mean(below) / (2 * len(order)))
