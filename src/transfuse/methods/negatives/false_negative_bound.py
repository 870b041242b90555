"""How many negatives can be positives at most, from similarities alone.

If positives that nobody labelled are at least as similar to their queries as the labelled ones, the share pi of them
among the negatives cannot exceed P(negative >= t) / P(positive >= t) at any threshold t. The least of these ratios is
an upper bound of pi, as for any mixture with one known part (Blanchard, Lee and Scott, Semi-Supervised Novelty
Detection, JMLR 11, 2010, section 3). It is reached only if some range of similarity is free of true negatives; how
many of the hard ones are false, labels alone can tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from transfuse.errors import UserError

LEVELS = np.linspace(1.0, 0.25, 31)  # shares of positives at or above a threshold: a smaller one is too noisy
_CHUNK = 64  # bootstrap draws at a time, for memory


@dataclass(frozen=True)
class Bound:
    """The bound with its 95 % bootstrap interval over queries; shares of the negatives."""

    value: float
    low: float
    high: float


def survival_counts(similarity: np.ndarray, query: np.ndarray, thresholds: np.ndarray, queries: int) -> np.ndarray:
    """How many documents of each query reach each threshold. Shape (queries, thresholds).

    Args:
        similarity: of documents to their queries, shape (n,).
        query: index of each document's query, shape (n,).
        thresholds: ascending, shape (t,).
        queries: how many queries there are.
    """
    reached = np.searchsorted(thresholds, similarity, side="right")  # thresholds at or below the similarity
    counts = np.zeros((queries, len(thresholds) + 1))
    np.add.at(counts, (query, reached), 1.0)
    return counts[:, ::-1].cumsum(1)[:, ::-1][:, 1:]


def thresholds_of(positives: np.ndarray) -> np.ndarray:
    """The similarities that given shares of the positives reach; ascending."""
    return np.quantile(positives, 1 - LEVELS, method="lower")


def ratios(negatives: np.ndarray, positives: np.ndarray, n: np.ndarray, m: np.ndarray) -> np.ndarray:
    """P(negative >= t) / P(positive >= t), at most 1, from counts.

    Args:
        negatives, positives: how many reach each threshold, shape (..., t).
        n, m: how many there are, shape (...).
    """
    share_n = negatives / np.maximum(n, 1)[..., None]
    share_p = positives / np.maximum(m, 1)[..., None]
    return np.where(share_p > 0, np.minimum(share_n / np.maximum(share_p, 1e-12), 1.0), 1.0)


def false_negative_bound(
    negatives: np.ndarray,
    negative_query: np.ndarray,
    positives: np.ndarray,
    positive_query: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Bound:
    """Upper bound of the share of negatives that are unlabelled positives; lower is better.

    The threshold is chosen on one half of the queries and the ratio taken on the other, both ways, and averaged.

    Args:
        negatives: similarity of negatives to their queries, shape (n,).
        negative_query: index of their queries, shape (n,).
        positives: similarity of known positives, shape (m,).
        positive_query: index of their queries, shape (m,).
        draws: of the bootstrap over queries; 1 or more.
        seed: of the halves and the bootstrap.

    Raises:
        UserError: fewer than two queries.
    """
    queries = 1 + int(max(negative_query.max(), positive_query.max()))
    if queries < 2:
        raise UserError("negatives of a single query", "at least 2 queries, for an interval")
    at = thresholds_of(positives)
    neg = survival_counts(negatives, negative_query, at, queries)
    pos = survival_counts(positives, positive_query, at, queries)
    n, m = np.bincount(negative_query, minlength=queries), np.bincount(positive_query, minlength=queries)
    order = np.random.default_rng(seed).permutation(queries)
    halves = [
        _resampled(neg[half], pos[half], n[half], m[half], draws, seed + i) for i, half in enumerate(_halves(order))
    ]
    chosen = [int(np.quantile(drawn, 0.975, axis=0).argmin()) for _, drawn in halves]
    # the least ratio of a half is its luckiest one; the other half, which did not choose the threshold, is not biased
    value = np.mean([halves[i][0][chosen[1 - i]] for i in (0, 1)])
    spread = np.mean([halves[i][1][:, chosen[1 - i]] for i in (0, 1)], axis=0)
    low, high = np.quantile(spread, (0.025, 0.975))
    return Bound(float(value), float(min(low, value)), float(max(high, value)))


def _halves(order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return order[: len(order) // 2], order[len(order) // 2 :]


def _resampled(
    neg: np.ndarray, pos: np.ndarray, n: np.ndarray, m: np.ndarray, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ratios at each threshold, shape (t,), and in each bootstrap sample of the queries, shape (draws, t)."""
    drawn = [ratios(w @ neg, w @ pos, w @ n, w @ m) for w in _weights(len(n), draws, seed)]
    return ratios(neg.sum(0), pos.sum(0), n.sum(), m.sum()), np.concatenate(drawn)


def _weights(queries: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each query is drawn in each bootstrap sample. Shapes (<= chunk, queries)."""
    rng = np.random.default_rng(seed)
    for start in range(0, draws, _CHUNK):
        yield rng.multinomial(queries, np.full(queries, 1 / queries), size=min(_CHUNK, draws - start)).astype(float)


def exceedance(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Share of the reference at or below each value: 1 for a value above all of them. Shape (n,) -> (n,)."""
    return np.searchsorted(np.sort(reference), values, side="right") / max(1, len(reference))
