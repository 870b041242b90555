"""How similar negatives, known positives and random candidates are to the queries they stand beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from transfuse.hosts.sentence_encoder import Encoder, encode_texts
from transfuse.methods.negatives.false_negative_bound import Bound, false_negative_bound
from transfuse.methods.negatives.mined_pairs import MinedNegative, plain

_RANDOM = 1000  # candidates that stand for the corpus


@dataclass(frozen=True)
class Similarities:
    """Cosine similarities to the query of each negative, known positive and random candidate.

    Attributes:
        negative, negative_query: shape (n,), with the index of the query.
        positive, positive_query: shape (m,), likewise.
        random: every query against the same candidates, NaN where one is a known positive. Shape (queries, c).
        other: each negative against another query, shape (n,).
    """

    negative: np.ndarray
    negative_query: np.ndarray
    positive: np.ndarray
    positive_query: np.ndarray
    random: np.ndarray
    other: np.ndarray

    def bound(self, rows: np.ndarray, draws: int, seed: int) -> Bound:
        """Of a part of the negatives; rows are a mask or indices."""
        return self.bound_of(self.negative[rows], self.negative_query[rows], draws, seed)

    def bound_of(self, negative: np.ndarray, query: np.ndarray, draws: int, seed: int) -> Bound:
        """Of other documents in their place."""
        return false_negative_bound(negative, query, self.positive, self.positive_query, draws=draws, seed=seed)

    def draw_random(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """As many random candidates for each query as it has negatives: similarity and query."""
        drawn = self.random[self.negative_query, rng.integers(0, self.random.shape[1], len(self.negative))]
        kept = ~np.isnan(drawn)
        return drawn[kept], self.negative_query[kept]

    @cached_property
    def above_positives(self) -> np.ndarray:
        """Which negatives are more similar to their query than all its known positives. Shape (n,), bool."""
        best = np.full(len(self.random), -np.inf)
        np.maximum.at(best, self.positive_query, self.positive)
        return self.negative > best[self.negative_query]

    @cached_property
    def auroc(self) -> float:
        """How often a known positive is more similar to its query than a negative to its own; ties count half."""
        ordered = np.sort(self.negative)
        below = np.searchsorted(ordered, self.positive, side="left")
        return float((below + np.searchsorted(ordered, self.positive, side="right")).mean() / (2 * len(ordered)))


def similarities(
    mined: Sequence[MinedNegative],
    positives: Mapping[str, Sequence[str]],
    candidates: Sequence[str],
    encoder: Encoder,
    *,
    seed: int = 0,
    cache: Path | None = None,
) -> Similarities:
    """Encode queries, negatives, their known positives and a sample of candidates, and compare."""
    rng = np.random.default_rng(seed)
    names = list(dict.fromkeys(plain(one.query) for one in mined))
    place = {name: index for index, name in enumerate(names)}
    pairs = [(place[name], text) for name in names for text in dict.fromkeys(positives[name])]
    chosen = rng.choice(len(candidates), min(_RANDOM, len(candidates)), replace=False)
    corpus = [plain(candidates[i]) for i in chosen]
    texts = [*names, *(plain(one.text) for one in mined), *(text for _, text in pairs), *corpus]
    vectors = encode_texts(texts, encoder, cache)
    ends = np.cumsum([len(names), len(mined), len(pairs)])
    q, n, p, c = np.split(vectors, ends)
    at_n, at_p = np.array([place[plain(one.query)] for one in mined]), np.array([index for index, _ in pairs])
    against_corpus = q @ c.T
    column = {text: index for index, text in enumerate(corpus)}
    for index, text in pairs:
        if text in column:
            against_corpus[index, column[text]] = np.nan
    shifted = (at_n + rng.integers(1, len(names), len(at_n))) % len(names)
    return Similarities(
        negative=(q[at_n] * n).sum(1),
        negative_query=at_n,
        positive=(q[at_p] * p).sum(1),
        positive_query=at_p,
        random=against_corpus,
        other=(q[shifted] * n).sum(1),
    )
