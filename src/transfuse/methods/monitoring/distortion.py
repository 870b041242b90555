"""How far fine-tuning moved an encoder, and what it forgot.

>>> import numpy as np
>>> X = np.random.default_rng(0).normal(size=(50, 4))
>>> round(linear_cka(X, 3 * X @ np.eye(4)[::-1] + 1), 6)  # rotations, scales and offsets do not count
1.0
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def linear_cka(first: ArrayLike, second: ArrayLike) -> float:
    """Linear centred kernel alignment of two views (N, d1) and (N, d2) of the same texts, 0 .. 1; 1 = same geometry.

    Kornblith et al. 2019. Computed by d1 x d2 products, never N x N.
    """
    X, Y = (np.asarray(z, dtype=np.float64) for z in (first, second))
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    within = np.linalg.norm(X.T @ X) * np.linalg.norm(Y.T @ Y)
    return float(np.linalg.norm(X.T @ Y) ** 2 / within) if within > 0 else 0.0


def probe_hits(features: ArrayLike, labels: ArrayLike, folds: int = 3, seed: int = 0) -> np.ndarray:
    """Which texts a linear probe gets right when it has not seen them: (N,) of 0 and 1; its mean is the accuracy.

    Standardised features, L2-regularised logistic regression, stratified folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y = np.asarray(labels)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    predicted = cross_val_predict(probe, np.asarray(features, dtype=np.float64), y, cv=split)
    return (predicted == y).astype(np.float64)


def length_bins(lengths: ArrayLike, bins: int = 3) -> np.ndarray:
    """Class 0 .. bins - 1 of every text by its length, cut at quantiles: the probe that needs no labels."""
    x = np.asarray(lengths, dtype=np.float64)
    edges = np.quantile(x, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, x, side="right")
