"""A PyKEEN negative sampler that draws from candidate pools: the user's own, or those that a method makes.

>>> import torch
>>> from transfuse.methods.negatives.pool_sampler import PoolNegativeSampler
>>> triples = torch.tensor([[0, 0, 1], [1, 0, 2], [3, 0, 2]])
>>> sampler = PoolNegativeSampler(mapped_triples=triples, pools={0: [3], 1: [2, 3], 2: [0, 1]}, mix=0.0)
>>> sampler.corrupt_batch(triples).shape
torch.Size([3, 1, 3])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from pykeen.sampling import NegativeSampler, negative_sampler_resolver
from pykeen.sampling.filtering import Filterer, filterer_resolver
from torch import Tensor

from transfuse.errors import UserError
from transfuse.methods.negatives.false_negative_audit import TripleIndex, find_codes, triple_codes
from transfuse.methods.negatives.negative_pool import RANDOM_BITS, NegativePool

HEAD, RELATION, TAIL = 0, 1, 2
Corruption = Literal["uniform", "bernoulli"]
Schedule = Literal["constant", "linear"]
PoolKey = Literal["entity", "relation", "side"]


def head_probability(triples: Tensor, num_relations: int, corruption: Corruption) -> Tensor:
    """Chance of replacing the head rather than the tail, a relation (Wang et al. 2014 for "bernoulli").

    Bernoulli: tph / (tph + hpt), with the mean number of tails a head and of heads a tail of the relation, so that
    the side with fewer alternatives true by accident is replaced more often. Relations without a triple get 1/2.

    Args:
        triples: shape (n, 3).

    Returns:
        Shape (num_relations,).
    """
    if corruption == "uniform":
        return torch.full((num_relations,), 0.5, dtype=torch.float64)
    relation = triples[:, RELATION]
    count = torch.bincount(relation, minlength=num_relations).double()
    pairs = [torch.unique(triples[:, [column, RELATION]], dim=0)[:, 1] for column in (HEAD, TAIL)]
    heads, tails = (torch.bincount(pair, minlength=num_relations).double() for pair in pairs)
    tph, hpt = count / heads.clamp(min=1), count / tails.clamp(min=1)
    return torch.where(count > 0, tph / (tph + hpt), 0.5)


def hard_share(mix: float, schedule: Schedule, epoch: float, ramp_epochs: float) -> float:
    """Share of negatives that come from the pools at a (fractional) epoch: 1 - mix, or a ramp up to it from 0."""
    return (1 - mix) * (min(1.0, epoch / ramp_epochs) if schedule == "linear" else 1.0)


class ExactFilterer(Filterer):
    """Masks known triples by binary search over sorted codes; `filterer="exact"` in PyKEEN.

    Exact, unlike PyKEEN's Bloom filter, and not slower; many times as fast as Python sets (bench/lemon.py).
    """

    codes: Tensor

    def __init__(self, mapped_triples: Tensor) -> None:
        super().__init__()
        self.num_entities = int(mapped_triples[:, [HEAD, TAIL]].max()) + 1
        self.num_relations = int(mapped_triples[:, RELATION].max()) + 1
        index = TripleIndex(mapped_triples, self.num_entities, self.num_relations)
        self.register_buffer("codes", index.codes)

    def contains(self, batch: Tensor) -> Tensor:
        """Which triples are known. Shape (..., 3) -> (...), bool."""
        found = find_codes(self.codes, triple_codes(batch, self.num_entities, self.num_relations))
        inside = (batch[..., HEAD] < self.num_entities) & (batch[..., TAIL] < self.num_entities)
        return found & inside & (batch[..., RELATION] < self.num_relations)  # ids above would share others' codes


class PoolNegativeSampler(NegativeSampler):
    """Replaces head or tail by an item of a pool, and by any entity in a share `mix` of the cases.

    The replaced entity itself is never drawn. All tables are CPU buffers, the object can be pickled into data
    loader workers, and randomness comes from torch's global generator, as in PyKEEN's own samplers.

    Args:
        mapped_triples: the training triples. Shape (n, 3).
        pools: candidates by key, as lists or as a `NegativePool` over the entities. Keys without candidates fall back
            to all entities.
        key: what a pool belongs to: "entity" (the replaced one), "relation", or "side", where key 2 r is for heads
            and 2 r + 1 for tails of relation r.
        pool_of: with key "entity", the pool that each entity uses, where several share one; a negative number stands
            for all entities. By default entity e has pool e. Shape (num_entities,).
        mix: share of uniform negatives, in [0, 1]; at 1 this is uniform sampling.
        schedule: "constant", or "linear": the share of pool negatives rises from 0 over `ramp_epochs` epochs.
        ramp_epochs: length of the ramp, in epochs of training triples seen.
        corruption: which side to replace: heads as often as tails, or "bernoulli".
        filtered: mask negatives that are training triples. True by default, unlike in PyKEEN, because pools of
            similar entities hold many true triples.

    Other arguments as in `pykeen.sampling.NegativeSampler`.

    Raises:
        UserError: a value out of range, or pools that do not fit the graph.
    """

    hpo_default: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "num_negs_per_pos": {"type": int, "low": 1, "high": 100, "log": True},
        "mix": {"type": float, "low": 0.0, "high": 1.0},
    }

    pool_of: Tensor
    reach: Tensor
    corrupt_head: Tensor
    seen: Tensor

    def __init__(
        self,
        *,
        mapped_triples: Tensor,
        pools: NegativePool | Sequence[Iterable[int]] | Mapping[int, Iterable[int]],
        key: PoolKey = "entity",
        pool_of: Tensor | Sequence[int] | None = None,
        mix: float = 0.5,
        schedule: Schedule = "constant",
        ramp_epochs: float = 10.0,
        corruption: Corruption = "uniform",
        num_entities: int | None = None,
        num_relations: int | None = None,
        num_negs_per_pos: int | None = None,
        filtered: bool = True,
        filterer: str | type[Filterer] | Filterer | None = None,
        filterer_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        _check_options(mix, schedule, ramp_epochs, corruption, key)
        super().__init__(
            mapped_triples=mapped_triples,
            num_entities=num_entities,
            num_relations=num_relations,
            num_negs_per_pos=num_negs_per_pos,
            filtered=filtered,
            filterer=ExactFilterer if filtered and filterer is None else filterer,
            filterer_kwargs=filterer_kwargs,
        )
        if self.num_entities < 2:
            raise UserError("a graph with one entity", "at least two, to have something to replace it by")
        self.mix, self.schedule, self.ramp_epochs = mix, schedule, ramp_epochs
        self.corruption, self.key = corruption, key
        self.num_triples = len(mapped_triples)
        pool_of = torch.arange(self.num_entities) if pool_of is None else torch.as_tensor(pool_of, dtype=torch.long)
        r = self.num_relations
        num_keys = {"entity": int(pool_of.max()) + 1, "relation": r, "side": 2 * r}
        self.pool = _as_pool(pools, num_keys[key], self.num_entities)
        if len(pool_of) != self.num_entities:
            raise UserError(f"pool_of has {len(pool_of)} entries", f"one for each of the {self.num_entities} entities")
        # each entity's reach within its pool, and within all entities, looked up once instead of in each batch
        entities = torch.arange(self.num_entities)
        nowhere = torch.full_like(entities, -1)
        both = [self.pool.reach(keys, entities) for keys in (pool_of if key == "entity" else nowhere, nowhere)]
        first, choices = (torch.cat(part) for part in zip(*both, strict=True))  # (2 N,)
        known = pool_of.clamp(min=0)
        self.in_own_pool = key != "entity" or bool((self.pool.position(known, entities) >= 0).any())
        probability = head_probability(mapped_triples, self.num_relations, corruption)
        self.register_buffer("corrupt_head", probability.float())
        self.register_buffer("seen", torch.zeros(1, dtype=torch.long).share_memory_())  # workers count together
        self.register_buffer("pool_of", pool_of)
        self.register_buffer("reach", first << RANDOM_BITS | choices)  # one look-up instead of two

    @property
    def epoch(self) -> float:
        """How often the training triples have been corrupted so far; the clock of the linear schedule."""
        return int(self.seen) / self.num_triples

    def corrupt_batch(self, positive_batch: Tensor) -> Tensor:
        """Negatives of a batch. Shape (*batch, 3) -> (*batch, num_negs_per_pos, 3)."""
        shape, k = positive_batch.shape[:-1], self.num_negs_per_pos
        positives = positive_batch.reshape(-1, 3)
        columns = positives.t().repeat_interleave(k, dim=1)  # (3, n), faster than to copy rows of three
        epoch = self.epoch if self.schedule == "linear" else 0.0  # reading the shared clock costs a little
        share = hard_share(self.mix, self.schedule, epoch, self.ramp_epochs)
        heads, tails = self._sides(columns[RELATION])
        replaced = torch.cat([columns[HEAD, heads], columns[TAIL, tails]])  # (n,), heads before tails
        keys = None if self.key == "entity" else self._keys(columns[RELATION], heads, tails)
        drawn = self._replacements(replaced, keys, share)
        count = len(drawn) - len(columns[TAIL, tails])
        columns[HEAD, heads], columns[TAIL, tails] = drawn[:count], drawn[count:]
        if self.schedule == "linear":
            self.seen += len(positives)
        return torch.stack(columns.unbind(), dim=1).reshape(*shape, k, 3)

    def _sides(self, relations: Tensor) -> tuple[Any, Any]:
        """Which negatives lose their head, and which their tail; slices where the two take turns."""
        if self.corruption == "uniform":  # even counts, starting with either: chance 1/2 each
            first = int(torch.randint(2, ()))
            return slice(first, None, 2), slice(1 - first, None, 2)
        heads = torch.rand(len(relations)) < self.corrupt_head[relations]
        return heads.nonzero().squeeze(1), (~heads).nonzero().squeeze(1)

    def _keys(self, relations: Tensor, heads: Any, tails: Any) -> Tensor:
        """The pool of each negative by its relation, or by its relation and side. Shape (n,)."""
        of_heads, of_tails = relations[heads], relations[tails]
        if self.key == "side":
            of_heads, of_tails = 2 * of_heads, 2 * of_tails + 1
        return torch.cat([of_heads, of_tails])

    def _replacements(self, replaced: Tensor, keys: Tensor | None, share: float) -> Tensor:
        """Draw for each replaced entity: from its pool in a share of the cases, else from all. Shape (n,)."""
        random = torch.empty(len(replaced), dtype=torch.long).random_()  # 63 bits: high ones choose pool or all,
        from_all = random >= min(int(share * 2.0**63), 2**63 - 1)
        bits = random.bitwise_and_(2**RANDOM_BITS - 1)  # low ones choose within
        if keys is None:
            row = torch.add(replaced, from_all, alpha=self.num_entities)
            choices = self.reach.index_select(0, row)
            first = choices >> RANDOM_BITS
            choices.bitwise_and_(2**RANDOM_BITS - 1)
        else:
            first, choices = self.pool.reach(torch.where(from_all, -1, keys), replaced)
        drawn = self.pool.draw(first, choices, bits)
        if self.pool.cumulative is not None:
            keys = self.pool_of[replaced] if keys is None else keys
            own = (first >= 2 * self.num_entities).nonzero().squeeze(1)  # the others draw from all entities
            left_out = replaced[own] if self.in_own_pool else None
            drawn[own] = self.pool.draw_weighted(keys[own], left_out, bits[own])
        return drawn


def _as_pool(pools: Any, keys: int, num_entities: int) -> NegativePool:
    if not isinstance(pools, NegativePool):
        pools = pools if isinstance(pools, Mapping) else dict(enumerate(pools))
        pools = NegativePool.from_lists(pools, num_items=num_entities, num_keys=keys)
    if pools.num_items != num_entities or pools.num_keys < keys:
        raise UserError(
            f"pools for {pools.num_keys} keys over {pools.num_items} entities",
            f"{keys} keys over {num_entities} entities",
        )
    return pools


def _check_options(mix: float, schedule: str, ramp_epochs: float, corruption: str, key: str) -> None:
    if not 0 <= mix <= 1:
        raise UserError(f"mix = {mix}", "a share from 0 (pool only) to 1 (uniform only)")
    if not ramp_epochs > 0:
        raise UserError(f"ramp_epochs = {ramp_epochs}", "a positive number of epochs")
    options = (("schedule", schedule, Schedule), ("corruption", corruption, Corruption), ("key", key, PoolKey))
    for name, value, allowed in options:
        if value not in get_args(allowed):
            raise UserError(f"{name} = {value!r}", " or ".join(map(repr, get_args(allowed))))


filterer_resolver.register(ExactFilterer, raise_on_conflict=False)
negative_sampler_resolver.register(PoolNegativeSampler, raise_on_conflict=False)
