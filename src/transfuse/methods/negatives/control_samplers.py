"""What text neighbourhoods must be compared with: the same sizes without text, and structure instead of text."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from transfuse.methods.negatives.negative_pool import NegativePool
from transfuse.methods.negatives.text_neighbourhoods import Neighbourhoods


def permuted(neighbourhoods: Neighbourhoods, seed: int) -> Neighbourhoods:
    """The same pools with the entities exchanged at random: equal sizes, no meaning.

    Only entities that have a neighbourhood are exchanged, so that the others stay uniform.
    """
    pool, pool_of = neighbourhoods.pool, neighbourhoods.pool_of
    ids = (pool_of >= 0).nonzero().squeeze(1)
    shuffled = ids[torch.from_numpy(np.random.default_rng(seed).permutation(len(ids)))]
    new_name = torch.arange(len(pool_of))
    new_name[ids] = shuffled  # entity -> the entity that takes its place
    new_pool_of = torch.full_like(pool_of, -1)
    new_pool_of[shuffled] = pool_of[ids]
    weights = None
    if pool.cumulative is not None:
        keys = torch.repeat_interleave(torch.arange(pool.num_keys), pool.sizes())
        running = pool.cumulative - keys
        before = torch.cat([running.new_zeros(1), running[:-1]])
        before[pool.offsets[:-1][pool.sizes() > 0]] = 0.0
        weights = (running - before).clamp(min=1e-12)
    return Neighbourhoods(
        NegativePool(new_name[pool.members.long()], pool.offsets, num_items=pool.num_items, weights=weights),
        new_pool_of,
    )


def spectral_embeddings(triples: Tensor, num_entities: int, num_relations: int, dim: int = 32) -> np.ndarray:
    """Entities by what they are linked to: truncated SVD of the entity x (relation, side, entity) table.

    Needs no training, so that an audit can offer structural neighbours at once. Entities without a triple get NaN.

    Returns:
        Shape (num_entities, p), p <= dim.
    """
    from scipy.sparse import coo_matrix
    from sklearn.decomposition import TruncatedSVD

    h, r, t = triples.numpy().T
    rows = np.concatenate([h, t])
    columns = np.concatenate([r * num_entities + t, (num_relations + r) * num_entities + h])
    used, columns = np.unique(columns, return_inverse=True)
    table = coo_matrix((np.ones(len(rows), np.float32), (rows, columns)), (num_entities, len(used))).tocsr()
    size = max(1, min(dim, min(table.shape) - 1))
    z = TruncatedSVD(size, random_state=0).fit_transform(table).astype(np.float32)
    z[np.asarray(table.sum(1)).ravel() == 0] = np.nan
    return z


def transe_embeddings(
    triples: Tensor, num_entities: int, num_relations: int, *, dim: int = 32, epochs: int = 10, seed: int = 0
) -> np.ndarray:
    """Entity embeddings of a TransE that is trained briefly with uniform negatives. Shape (num_entities, dim)."""
    from pykeen.losses import MarginRankingLoss
    from pykeen.models import TransE
    from pykeen.training import SLCWATrainingLoop
    from pykeen.triples import CoreTriplesFactory

    factory = CoreTriplesFactory(triples, num_entities=num_entities, num_relations=num_relations)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TransE(triples_factory=factory, embedding_dim=dim, random_seed=seed, loss=MarginRankingLoss())
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        loop = SLCWATrainingLoop(model=model, triples_factory=factory, optimizer=optimizer)
        loop.train(factory, num_epochs=epochs, batch_size=512, use_tqdm=False, use_tqdm_batch=False)
    return model.entity_representations[0]().detach().numpy()
