"""Neighbourhoods of entities in a space of text embeddings: clusters, or nearest neighbours with weights.

All of it runs once, before training. Rows of an embedding matrix that are not finite (NaN) stand for entities
without text; they belong to no neighbourhood.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from transfuse.errors import UserError
from transfuse.methods.negatives.negative_pool import NegativePool

_EXACT_KMEANS = 5000  # up to this many distinct texts full k-means is a matter of seconds
_BLOCK = 2048  # rows of a similarity block: 2048 x 41k float32 take 0.3 GB


@dataclass(frozen=True)
class Neighbourhoods:
    """Which pool each entity draws from (-1: none, all entities), and the pools."""

    pool: NegativePool
    pool_of: torch.Tensor  # (N,)


def checked_embeddings(embeddings: np.ndarray, num_entities: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows of the entities that have text, and their ids.

    Returns:
        Embeddings (T, d) float32 with Euclidean norm 1, ids (T,).

    Raises:
        UserError: the wrong number of rows, or no row that can be used.
    """
    z = np.asarray(embeddings, dtype=np.float32)
    if z.ndim != 2 or len(z) != num_entities:
        raise UserError(f"embeddings of shape {z.shape}", f"({num_entities}, d): one row an entity, NaN without text")
    norm = np.linalg.norm(z, axis=1)
    ids = np.flatnonzero(np.isfinite(norm) & (norm > 0))
    if len(ids) < 2:
        raise UserError(f"{len(ids)} entities with text", "at least two")
    return z[ids] / norm[ids, None], ids


def reduce_dimension(z: np.ndarray, components: int | None, seed: int = 0) -> np.ndarray:
    """Principal components of the embeddings, or the embeddings as they are. (T, d) -> (T, p)."""
    if components is None:
        return z
    from sklearn.decomposition import PCA

    limit = min(z.shape)
    if not 1 <= components <= limit:
        raise UserError(f"pca = {components}", f"1 to {limit} components for {len(z)} texts of dimension {z.shape[1]}")
    return PCA(components, random_state=seed).fit_transform(z).astype(np.float32)


def default_clusters(num_texts: int) -> int:
    """About 50 entities a cluster, at least 2 clusters, at least 4 entities a cluster on average."""
    return int(max(1, min(max(2, round(num_texts / 50)), num_texts // 4)))


def cluster_texts(z: np.ndarray, clusters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """k-means++ clusters by Euclidean distance, fitted on distinct rows so that a repeated text counts once.

    Returns:
        Label of each row (T,), centres (K, p). Labels run from 0 and all occur.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    distinct, inverse = np.unique(z, axis=0, return_inverse=True)
    if not 1 <= clusters <= len(distinct):
        raise UserError(f"{clusters} clusters", f"1 to {len(distinct)}, the number of different texts")
    if len(distinct) <= _EXACT_KMEANS:
        model = KMeans(clusters, init="k-means++", n_init=4, random_state=seed)
    else:
        model = MiniBatchKMeans(clusters, init="k-means++", n_init="auto", batch_size=4096, random_state=seed)
    labels = model.fit_predict(distinct)[inverse.ravel()]
    used, labels = np.unique(labels, return_inverse=True)  # mini batches may leave a centre without members
    return labels.ravel().astype(np.int64), model.cluster_centers_[used]


def cluster_pools(
    labels: np.ndarray, centres: np.ndarray, ids: np.ndarray, n: int, min_size: int = 2
) -> Neighbourhoods:
    """One pool a cluster; a cluster smaller than `min_size` also draws from the clusters nearest to it.

    Args:
        labels: cluster of each entity with text. Shape (T,).
        centres: shape (K, p).
        ids: entity of each row. Shape (T,).
        n: number of entities.
        min_size: least number of candidates in a pool, the entity itself counted.
    """
    members = [ids[labels == cluster] for cluster in range(len(centres))]
    pools = list(members)
    for cluster in np.flatnonzero([len(m) < min_size for m in members]):
        for near in np.argsort(np.linalg.norm(centres - centres[cluster], axis=1), kind="stable"):
            if len(pools[cluster]) >= min_size:
                break
            if near != cluster:
                pools[cluster] = np.concatenate([pools[cluster], members[near]])
    pool_of = np.full(n, -1, dtype=np.int64)
    pool_of[ids] = labels
    offsets = np.cumsum([0, *map(len, pools)])
    return Neighbourhoods(NegativePool(np.concatenate(pools), offsets, num_items=n), torch.from_numpy(pool_of))


def nearest_neighbours(z: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """The m nearest other rows by cosine similarity, nearest first; of rows with the same text one counts.

    Duplicated descriptions would otherwise fill the list with copies of one meaning: a text equal to the row's own
    is left out, and of a repeated text one representative is taken, in rotation over the rows that ask.

    Returns:
        Row numbers (T, m), similarities (T, m). m is lowered to the number of other texts.
    """
    distinct, inverse = np.unique(z, axis=0, return_inverse=True)
    inverse = inverse.ravel()
    m = min(m, len(distinct) - 1)
    if m < 1:
        raise UserError("all texts are the same", "at least two different texts")
    near, similarity = _nearest_distinct(distinct, m)
    order = np.argsort(inverse, kind="stable")  # rows grouped by text
    start = np.searchsorted(inverse[order], np.arange(len(distinct)))
    count = np.bincount(inverse, minlength=len(distinct))
    texts = near[inverse]  # (T, m)
    rotation = np.arange(len(z))[:, None] % count[texts]
    return order[start[texts] + rotation], similarity[inverse]


def _nearest_distinct(z: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    rows = torch.from_numpy(np.ascontiguousarray(z))
    index, value = [], []
    for first in range(0, len(rows), _BLOCK):
        block = rows[first : first + _BLOCK] @ rows.T  # (block, T)
        own = torch.arange(len(block))
        block[own, first + own] = -torch.inf
        top = block.topk(m, dim=1)
        index.append(top.indices)
        value.append(top.values)
    return torch.cat(index).numpy(), torch.cat(value).numpy()


def softmax_weights(similarity: np.ndarray, temperature: float) -> np.ndarray:
    """exp(similarity / temperature), normalised a row. (T, m) -> (T, m)."""
    scaled = similarity.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.maximum(weights / weights.sum(axis=1, keepdims=True), 1e-12)  # a pool's weights are positive


def neighbour_pools(z: np.ndarray, ids: np.ndarray, n: int, m: int, temperature: float | None = None) -> Neighbourhoods:
    """One pool an entity: its m nearest neighbours, equally likely or weighted by exp(similarity / temperature)."""
    near, similarity = nearest_neighbours(z, m)
    weights = None if temperature is None else softmax_weights(similarity, temperature).ravel()
    offsets = np.arange(len(ids) + 1) * near.shape[1]
    pool_of = np.full(n, -1, dtype=np.int64)
    pool_of[ids] = np.arange(len(ids))
    pool = NegativePool(ids[near].ravel(), offsets, num_items=n, weights=weights)
    return Neighbourhoods(pool, torch.from_numpy(pool_of))
