"""Text embeddings of a graph's entities as a stage: minutes of work on a large graph, the same for all seeds.

A module of its own, so that a change of the samplers does not make the embeddings stale.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from transfuse.data.graphs import TextGraph
from transfuse.hosts.sentence_encoder import encode_texts, packaged_encoder


def text_maker(graph: TextGraph, max_tokens: int) -> Callable[[], dict[str, np.ndarray]]:
    """Makes MiniLM embeddings of the entities' texts."""

    def make() -> dict[str, np.ndarray]:
        return {"embeddings": encode_texts(graph.texts, packaged_encoder(max_tokens))}

    return make
