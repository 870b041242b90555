"""How well a score separates in-distribution texts from foreign ones. All take scores with larger = more ID.

>>> auroc([2.0, 3.0], [1.0, 2.0])  # a tie counts one half
0.875
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm, rankdata

from transfuse.errors import UserError


def auroc(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Share of (ID, foreign) pairs in the right order, ties half: area under the ROC curve by midranks."""
    inside, outside = _checked(id_scores), _checked(ood_scores)
    ranks = rankdata(np.concatenate((inside, outside)))
    n, m = len(inside), len(outside)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def auroc_interval(id_scores: ArrayLike, ood_scores: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Interval of the AUROC by DeLong's variance on the logit scale, which keeps it inside 0 .. 1."""
    inside, outside = _checked(id_scores), _checked(ood_scores)
    n, m = len(inside), len(outside)
    area = auroc(inside, outside)
    if n < 2 or m < 2:
        return 0.0, 1.0
    joint = rankdata(np.concatenate((inside, outside)))
    above = (joint[:n] - rankdata(inside)) / m  # (n,) share of foreign texts below each ID text
    below = 1 - (joint[n:] - rankdata(outside)) / n  # (m,) share of ID texts above each foreign text
    error = math.sqrt(above.var(ddof=1) / n + below.var(ddof=1) / m)
    z = float(norm.ppf(0.5 + level / 2))
    if not 0.0 < area < 1.0 or error == 0.0:  # full separation: the rule of three, for the smaller side
        slack = 3.0 / min(n, m)
        return max(0.0, area - slack), min(1.0, area + slack)
    centre, half = math.log(area / (1 - area)), z * error / (area * (1 - area))
    return _logistic(centre - half), _logistic(centre + half)


def fpr_at_recall(id_scores: ArrayLike, ood_scores: ArrayLike, recall: float = 0.95) -> float:
    """Share of foreign texts let in at the threshold that `recall` of the ID texts pass; lower is better."""
    inside, outside = _checked(id_scores), _checked(ood_scores)
    rank = max(0, math.floor((1 - recall) * len(inside) + 1e-9))
    threshold = np.sort(inside)[min(rank, len(inside) - 1)]
    return float(np.mean(outside >= threshold))


def aupr_out(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Average precision with the foreign texts as the positive class; chance is their share."""
    inside, outside = _checked(id_scores), _checked(ood_scores)
    scores = np.concatenate((-inside, -outside))
    positive = np.concatenate((np.zeros(len(inside)), np.ones(len(outside))))
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], positive[order]
    last = np.append(np.nonzero(np.diff(scores))[0], len(scores) - 1)  # last row of every run of ties
    hits = np.cumsum(positive)[last]
    precision = hits / (last + 1)
    return float(np.sum(np.diff(hits, prepend=0.0) * precision) / len(outside))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _checked(scores: ArrayLike) -> np.ndarray:
    x = np.asarray(scores, dtype=np.float64).ravel()
    if x.size == 0 or not np.isfinite(x).all():
        raise UserError(f"{x.size} scores, of which {int((~np.isfinite(x)).sum())} are not finite", "finite scores")
    return x
