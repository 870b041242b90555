"""Which clients belong together, and what they share: the equations of clustered federated averaging.

They know nothing of Flower: arrays in, arrays or labels out.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from transfuse.errors import UserError
from transfuse.methods.federated.language_families import family_of


def cluster_means(
    values: np.ndarray, labels: Sequence[Hashable], weights: Sequence[float] | np.ndarray | None = None
) -> np.ndarray:
    """X <- A X: every client gets the mean over the clients of its cluster, (clients, size).

    Args:
        values: parameters of one part, (clients, size).
        labels: the cluster of each client, (clients,).
        weights: of the clients; None means equal, as in the paper.
    """
    x = np.asarray(values)
    if x.ndim != 2 or len(x) != len(labels):
        raise UserError(f"values of shape {x.shape} and {len(labels)} labels", "(clients, size) and a label a client")
    same = np.array([[a == b for b in labels] for a in labels], dtype=np.float64)  # (clients, clients)
    a = same * (np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64))
    return (a / a.sum(axis=1, keepdims=True)) @ x


def family_labels(languages: Sequence[str], families: Mapping[str, str] | None = None) -> list[str]:
    """The family of each client's language."""
    return [family_of(language, families) for language in languages]


def random_labels(labels: Sequence[Hashable], rng: np.random.Generator) -> list[Hashable]:
    """The same labels dealt at random: clusters of the same number and sizes. The placebo of any clustering."""
    return [labels[i] for i in rng.permutation(len(labels))]


def gradient_labels(sketches: np.ndarray, count: int) -> list[int]:
    """Clusters of clients with alike gradients: average linkage on cosine distance, cut into `count` clusters.

    Args:
        sketches: gradients or sketches of them, (clients, size); their lengths do not matter.
        count: how many clusters; fewer where clients coincide.
    """
    x = np.asarray(sketches, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all() or not (np.linalg.norm(x, axis=1) > 0).all():
        raise UserError(f"sketches of shape {x.shape}", "(clients, size), finite and not zero")
    if len(x) <= count:
        return list(range(len(x)))
    from scipy.cluster.hierarchy import fcluster, linkage

    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = np.maximum(1.0 - unit @ unit.T, 0.0)[np.triu_indices(len(x), 1)]
    return [int(label) - 1 for label in fcluster(linkage(distance, "average"), count, "maxclust")]


def sketch(gradient: Mapping[str, np.ndarray], size: int, seed: int = 0) -> np.ndarray:
    """A random projection of a gradient whose inner products are those of the gradients in expectation, (size,).

    Each coordinate is added to one of `size` sums with a random sign, so the projection needs no matrix. Names and the
    seed alone decide where it goes, so the sketches of all clients can be compared.
    """
    result = np.zeros(size)
    for key, values in gradient.items():
        rng = np.random.default_rng((seed, zlib.crc32(key.encode())))
        flat = np.asarray(values, dtype=np.float64).reshape(-1)
        signs = rng.integers(0, 2, flat.size) * 2 - 1
        result += np.bincount(rng.integers(0, size, flat.size), weights=signs * flat, minlength=size)
    return result


def mean_of(vectors: Sequence[np.ndarray], weights: Sequence[float] | None = None, dtype: Any = None) -> np.ndarray:
    """Mean of equally long vectors, in the dtype of the first unless told; whole numbers are rounded."""
    target = np.dtype(dtype or vectors[0].dtype)
    wide = np.result_type(target, np.float32) if target.kind == "f" else np.dtype(np.float64)
    share = np.full(len(vectors), 1 / len(vectors)) if weights is None else np.asarray(weights) / np.sum(weights)
    total = np.zeros(vectors[0].shape, wide)
    for vector, factor in zip(vectors, share, strict=True):
        total += vector if weights is None else vector * wide.type(factor)
    if weights is None:
        total *= wide.type(share[0])
    return np.asarray(total if target.kind == "f" else np.rint(total)).astype(target, copy=False)
