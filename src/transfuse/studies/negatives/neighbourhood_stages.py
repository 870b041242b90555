"""Neighbourhoods of a graph, by text and by links, as a stage: they are made once and shared by all seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from transfuse.data.graphs import TextGraph
from transfuse.methods.negatives.control_samplers import transe_embeddings
from transfuse.methods.negatives.negative_pool import NegativePool
from transfuse.methods.negatives.text_neighbourhoods import (
    Neighbourhoods,
    checked_embeddings,
    cluster_pools,
    cluster_texts,
    default_clusters,
    neighbour_pools,
)

Arrays = dict[str, np.ndarray]


def neighbourhood_maker(graph: TextGraph, embeddings: np.ndarray, neighbours: int, epochs: int) -> Callable[[], Arrays]:
    """Makes text clusters, text neighbours and structural neighbours (of a TransE trained for some epochs)."""

    def make() -> Arrays:
        n = len(graph.entities)
        z, ids = checked_embeddings(embeddings, n)
        links = transe_embeddings(torch.from_numpy(graph.train), n, len(graph.relations), epochs=epochs)
        structure, linked = checked_embeddings(links, n)
        made = {
            "text_clusters": cluster_pools(*cluster_texts(z, default_clusters(len(ids))), ids, n),
            "text_knn": neighbour_pools(z, ids, n, neighbours),
            "structure_knn": neighbour_pools(structure, linked, n, neighbours),
        }
        return {f"{name}.{key}": value for name, part in made.items() for key, value in _arrays(part).items()}

    return make


def _arrays(part: Neighbourhoods) -> Arrays:
    pool = part.pool
    return {"members": pool.members.numpy(), "offsets": pool.offsets.numpy(), "pool_of": part.pool_of.numpy()}


def from_arrays(arrays: Arrays, name: str, num_entities: int) -> Neighbourhoods:
    """What `neighbourhood_maker` stored under a name."""
    pool = NegativePool(arrays[f"{name}.members"], arrays[f"{name}.offsets"], num_items=num_entities)
    return Neighbourhoods(pool, torch.from_numpy(np.array(arrays[f"{name}.pool_of"])))
