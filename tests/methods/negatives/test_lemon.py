"""LEMON and the modules it shares with its family: pools, sampler, neighbourhoods, false-negative audit."""

from __future__ import annotations

import itertools
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pykeen.sampling import BasicNegativeSampler, BernoulliNegativeSampler, negative_sampler_resolver
from pykeen.sampling.filtering import PythonSetFilterer
from pykeen.triples import CoreTriplesFactory, TriplesFactory
from pykeen.triples.instances import BatchedSLCWAInstances
from scipy import stats
from torch.utils.data import DataLoader

from transfuse.errors import UserError
from transfuse.hosts.sentence_encoder import encode_texts, tfidf_encoder
from transfuse.methods.negatives.control_samplers import permuted, spectral_embeddings
from transfuse.methods.negatives.false_negative_audit import TripleIndex, coverage, profile_all, profile_negatives
from transfuse.methods.negatives.lemon import Config, LemonNegativeSampler, apply, audit, lemon_kwargs, neighbourhoods
from transfuse.methods.negatives.negative_pool import NegativePool
from transfuse.methods.negatives.pool_sampler import ExactFilterer, PoolNegativeSampler, hard_share, head_probability
from transfuse.methods.negatives.text_neighbourhoods import (
    cluster_pools,
    cluster_texts,
    default_clusters,
    nearest_neighbours,
    neighbour_pools,
    softmax_weights,
)

N, R, GROUPS = 24, 3, 4


def grouped_embeddings(n: int = N, groups: int = GROUPS, seed: int = 0) -> np.ndarray:
    """Unit rows around `groups` far-apart directions; entity e belongs to group e % groups."""
    rng = np.random.default_rng(seed)
    z = np.eye(groups, 8)[np.arange(n) % groups] + 0.05 * rng.normal(size=(n, 8))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def random_triples(count: int = 200, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(size, (count,), generator=generator) for size in (N, R, N)]
    return torch.unique(torch.stack(columns, 1), dim=0)


def lemon(triples: torch.Tensor | None = None, **options) -> LemonNegativeSampler:
    given = {"embeddings": grouped_embeddings(), "num_clusters": GROUPS, "num_entities": N, "num_relations": R}
    return LemonNegativeSampler(mapped_triples=random_triples() if triples is None else triples, **{**given, **options})


def replacements(sampler, triple: tuple[int, int, int], draws: int, seed: int = 0) -> torch.Tensor:
    """Negatives of one triple, drawn many times. Shape (draws, 3)."""
    torch.manual_seed(seed)
    return sampler.corrupt_batch(torch.tensor([triple]).repeat(draws // sampler.num_negs_per_pos, 1)).reshape(-1, 3)


def uniform_p(values: torch.Tensor, support: list[int]) -> float:
    """p value of "all of the support is drawn equally often, and nothing else is"."""
    counts = torch.bincount(values, minlength=max(support) + 1)
    assert set(values.tolist()) <= set(support)
    return float(stats.chisquare(counts[support].numpy()).pvalue)


# --- pools ------------------------------------------------------------------------------------------------------


def test_pool_draws_each_candidate_but_the_excluded_one_equally_often():
    pool = NegativePool.from_lists([[7, 1, 4, 9], [3], [0, 2, 5, 6, 8]], num_items=10)
    for key, row in enumerate([[1, 4, 7, 9], [3], [0, 2, 5, 6, 8]]):
        for left_out in [*row, 10 - 1 if 9 not in row else 0]:
            rest = [item for item in row if item != left_out] or [item for item in range(10) if item != left_out]
            keys = torch.full((8000,), key)
            drawn = pool.sample(keys, torch.full_like(keys, left_out), torch.Generator().manual_seed(left_out))
            assert left_out not in drawn
            assert uniform_p(drawn, rest) > 1e-4 if len(rest) > 1 else set(drawn.tolist()) == set(rest)


def test_pool_ring_matches_the_formula_position_plus_one_plus_u_modulo_size():
    members, size = [5, 2, 8, 11], 4
    pool = NegativePool(np.array(members), np.array([0, size]), num_items=12)
    for position, u in itertools.product(range(size), range(size - 1)):
        first, choices = pool.reach(torch.tensor([0]), torch.tensor([members[position]]))
        assert int(choices) == size - 1
        bits = torch.tensor([math.ceil(u * 2**31 / (size - 1))])
        assert int(pool.draw(first, choices, bits)) == members[(position + 1 + u) % size]
    top = pool.draw(first, choices, torch.tensor([2**31 - 1]))
    assert int(top) in members  # the greatest random number stays inside


def test_weighted_pool_draws_by_weight_with_and_without_exclusion():
    weights = np.array([1.0, 2.0, 3.0, 4.0, 1.0, 1.0])
    pool = NegativePool(np.array([0, 1, 2, 3, 4, 5]), np.array([0, 4, 6]), num_items=7, weights=weights)
    keys = torch.zeros(40_000, dtype=torch.long)
    free = torch.bincount(pool.sample(keys, generator=torch.Generator().manual_seed(0)), minlength=4)
    assert stats.chisquare(free, weights[:4] / 10 * len(keys)).pvalue > 1e-4
    for left_out in range(4):
        drawn = pool.sample(keys, torch.full_like(keys, left_out), torch.Generator().manual_seed(left_out))
        rest = [item for item in range(4) if item != left_out]
        counts = torch.bincount(drawn, minlength=4)
        assert counts[left_out] == 0
        assert counts[rest].sum() == len(keys)
        assert stats.chisquare(counts[rest], weights[rest] / weights[rest].sum() * len(keys)).pvalue > 1e-4


def test_pool_shape_generator_and_pickle():
    pool = NegativePool.from_lists({2: [0, 1]}, num_items=4, num_keys=3)
    keys = torch.tensor([[2, -1], [0, 2]])
    draw = [pool.sample(keys, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert draw[0].shape == keys.shape
    assert torch.equal(*draw)
    again = pickle.loads(pickle.dumps(pool))
    assert torch.equal(again.sample(keys, generator=torch.Generator().manual_seed(3)), draw[0])
    assert pool.candidates(2).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("members", "offsets", "options", "message"),
    [
        ([0, 9], [0, 2], {}, "ids from 0 to 3"),
        ([0, 1], [0, 1], {}, "do not fit"),
        ([1, 1], [0, 2], {}, "twice"),
        ([0, 1], [0, 2], {"weights": [1.0, 0.0]}, "weights"),
        ([0, 1], [0, 2], {"weights": [1.0]}, "weights"),
    ],
)
def test_pool_refuses_tables_that_do_not_fit(members, offsets, options, message):
    with pytest.raises(UserError, match=message):
        NegativePool(np.array(members), np.array(offsets), num_items=4, **options)


# --- neighbourhoods ---------------------------------------------------------------------------------------------


def test_clusters_follow_the_text():
    z = grouped_embeddings()
    labels, centres = cluster_texts(z, GROUPS)
    assert len(centres) == GROUPS
    for e, other in itertools.combinations(range(N), 2):
        assert (labels[e] == labels[other]) == (e % GROUPS == other % GROUPS)


def test_small_clusters_are_topped_up_from_the_nearest():
    labels, ids = np.array([0, 1, 1, 2, 2]), np.arange(5)
    centres = np.array([[0.0], [5.0], [1.0]])
    made = cluster_pools(labels, centres, ids, n=6, min_size=2)
    assert sorted(made.pool.candidates(0).tolist()) == [0, 3, 4]  # cluster 2 is nearer than cluster 1
    assert made.pool.candidates(1).tolist() == [1, 2]
    assert made.pool_of.tolist() == [0, 1, 1, 2, 2, -1]
    wide = cluster_pools(labels, centres, ids, n=6, min_size=4)
    assert sorted(wide.pool.candidates(0).tolist()) == [0, 1, 2, 3, 4]


def test_nearest_neighbours_against_brute_force():
    z = grouped_embeddings(seed=3)
    near, similarity = nearest_neighbours(z, 5)
    full = z.astype(np.float64) @ z.T.astype(np.float64)
    np.fill_diagonal(full, -np.inf)
    np.testing.assert_array_equal(np.sort(near, 1), np.sort(np.argsort(-full, axis=1)[:, :5], 1))
    np.testing.assert_allclose(similarity, np.sort(full, axis=1)[:, ::-1][:, :5], atol=1e-5)


def test_duplicated_descriptions_count_once():
    z = grouped_embeddings(8, 4, seed=1)
    copies = np.concatenate([z, z[:1], z[:1], z[:1]])  # entities 8, 9 and 10 say what entity 0 says
    near, _ = nearest_neighbours(copies, 7)
    same = {0, 8, 9, 10}
    for row in range(11):
        taken = [e for e in near[row] if e in same]
        assert len(taken) == (0 if row in same else 1)
    assert len({e for row in range(1, 8) for e in near[row] if e in same}) > 1  # in rotation
    labels, _ = cluster_texts(copies, 4)
    assert len({labels[e] for e in same}) == 1
    np.testing.assert_array_equal(cluster_texts(z, 4)[0][1:] == labels[1], labels[1:8] == labels[1])


def test_softmax_weights_in_closed_form():
    weights = softmax_weights(np.array([[0.9, 0.5]]), 0.1)
    assert weights[0, 0] / weights[0, 1] == pytest.approx(math.exp(4.0))
    assert weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "expected"), [(2, 1), (7, 1), (9, 2), (135, 3), (1000, 20), (40943, 819)])
def test_default_number_of_clusters(n, expected):
    assert default_clusters(n) == expected


# --- the sampler ------------------------------------------------------------------------------------------------


def test_pure_negatives_come_from_the_cluster_of_the_replaced_entity_and_never_are_that_entity():
    sampler = lemon(mix=0.0, num_negs_per_pos=4)
    head, relation, tail = 5, 1, 10
    negatives = replacements(sampler, (head, relation, tail), 16_000)
    assert (negatives[:, 1] == relation).all()
    heads = negatives[negatives[:, 2] == tail]
    tails = negatives[negatives[:, 0] == head]
    assert len(heads) + len(tails) == len(negatives) and len(heads) == len(tails)
    for column, entity, part in ((0, head, heads), (2, tail, tails)):
        cluster = [e for e in range(N) if e % GROUPS == entity % GROUPS and e != entity]
        assert uniform_p(part[:, column], cluster) > 1e-4


def test_mix_is_the_share_of_uniform_negatives():
    sampler = lemon(mix=0.3, num_negs_per_pos=2)
    tails = replacements(sampler, (5, 1, 10), 40_000)
    tails = tails[tails[:, 0] == 5][:, 2]
    inside = [e for e in range(N) if e % GROUPS == 2 and e != 10]
    expected = np.full(N, 0.3 / (N - 1))
    expected[10] = 0
    expected[inside] += 0.7 / len(inside)
    counts = torch.bincount(tails, minlength=N).numpy()
    kept = expected > 0
    assert counts[10] == 0
    assert stats.chisquare(counts[kept], expected[kept] * len(tails)).pvalue > 1e-4


@pytest.mark.parametrize("options", [{"mix": 1.0}, {"mix": 0.0, "num_clusters": 1}])
def test_degenerate_setting_equals_baseline(options):
    negatives = replacements(lemon(num_negs_per_pos=2, **options), (5, 1, 10), 40_000)
    others = [e for e in range(N) if e != 5]
    assert uniform_p(negatives[negatives[:, 2] == 10][:, 0], others) > 1e-4
    basic = BasicNegativeSampler(mapped_triples=random_triples(), num_entities=N, num_relations=R, num_negs_per_pos=2)
    expected = replacements(basic, (5, 1, 10), 40_000, seed=1)
    table = [
        torch.bincount(part[part[:, 2] == 10][:, 0], minlength=N)[others].numpy() for part in (negatives, expected)
    ]
    assert stats.chi2_contingency(np.stack(table)).pvalue > 1e-4


def test_knn_mode_draws_neighbours_by_similarity():
    z = grouped_embeddings()
    sampler = lemon(mode="knn", neighbours=5, temperature=0.02, mix=0.0)
    near, similarity = nearest_neighbours(z, 5)
    negatives = replacements(sampler, (5, 1, 10), 40_000)
    tails = negatives[negatives[:, 0] == 5][:, 2]
    counts = torch.bincount(tails, minlength=N)[torch.from_numpy(near[10])]
    assert counts.sum() == len(tails)
    assert stats.chisquare(counts, softmax_weights(similarity, 0.02)[10] * len(tails)).pvalue > 1e-4


def test_entities_without_text_get_uniform_negatives_and_are_in_no_neighbourhood():
    z = grouped_embeddings()
    z[[3, 10]] = np.nan
    for options in ({"num_clusters": GROUPS}, {"mode": "knn", "neighbours": 4}):
        sampler = lemon(embeddings=z, mix=0.0, **options)
        negatives = replacements(sampler, (5, 1, 10), 20_000)
        assert uniform_p(negatives[negatives[:, 0] == 5][:, 2], [e for e in range(N) if e != 10]) > 1e-4
        assert not {3, 10} & set(negatives[negatives[:, 2] == 10][:, 0].tolist())


def test_bernoulli_sides_agree_with_the_definition_and_with_pykeen():
    triples = torch.tensor([[0, 0, 1], [0, 0, 2], [0, 0, 3], [4, 0, 3], [1, 1, 2]])
    ours = head_probability(triples, 3, "bernoulli")
    tph, hpt = 4 / 2, 4 / 3
    assert ours.tolist() == pytest.approx([tph / (tph + hpt), 0.5, 0.5])
    theirs = BernoulliNegativeSampler(mapped_triples=triples, num_entities=N, num_relations=2).corrupt_head_probability
    np.testing.assert_allclose(ours[:2], theirs, rtol=1e-6)
    negatives = replacements(lemon(triples, corruption="bernoulli"), (0, 0, 1), 20_000)
    assert float((negatives[:, 0] != 0).double().mean()) == pytest.approx(tph / (tph + hpt), abs=0.02)


def test_linear_schedule_goes_from_uniform_to_hard():
    assert [hard_share(0.25, "linear", epoch, 4.0) for epoch in (0, 2, 4, 9)] == [0, 0.375, 0.75, 0.75]
    assert hard_share(0.25, "constant", 0, 4.0) == 0.75
    triples = random_triples()
    sampler = lemon(triples, mix=0.0, schedule="linear", ramp_epochs=2.0, num_negs_per_pos=8)
    inside = []
    for _ in range(3):
        torch.manual_seed(0)
        negatives = torch.cat([sampler.corrupt_batch(batch) for batch in triples.split(10)])
        changed = torch.where(negatives[..., 0] != triples[:, None, 0], 0, 2)
        new, old = (
            negatives.gather(2, changed[..., None]),
            triples[:, None].expand_as(negatives).gather(2, changed[..., None]),
        )
        inside.append(float((new % GROUPS == old % GROUPS).double().mean()))
    assert inside[0] < inside[1] < inside[2] == 1.0
    assert sampler.epoch == pytest.approx(3.0)


def test_filter_is_on_by_default_and_masks_exactly_the_training_triples():
    triples = random_triples(600)
    sampler = lemon(triples, num_negs_per_pos=16)
    negatives, mask = sampler.sample(triples)
    theirs = PythonSetFilterer(triples)(negatives)
    assert torch.equal(mask, theirs)
    beyond = torch.tensor([[0, 0, N], [N, 0, 0], [0, R, 0]])  # ids that training never had
    assert not ExactFilterer(triples).contains(beyond).any()
    known = {tuple(row) for row in triples.tolist()}
    expected = [[tuple(triple) not in known for triple in row] for row in negatives.tolist()]
    assert mask.tolist() == expected
    assert not all(itertools.chain.from_iterable(expected))
    assert lemon(triples).sample(triples)[1] is not None
    assert lemon(triples, filtered=False).sample(triples)[1] is None


def test_same_seed_same_negatives_and_the_object_survives_pickling():
    triples = random_triples()
    sampler = lemon(triples, num_negs_per_pos=3, mode="knn", neighbours=4)
    copy = pickle.loads(pickle.dumps(sampler))
    drawn = []
    for each in (sampler, sampler, copy):
        torch.manual_seed(7)
        drawn.append(each.corrupt_batch(triples))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    assert drawn[0].is_contiguous()
    assert all(tensor.device.type == "cpu" for tensor in sampler.state_dict().values())


def test_device_and_dtype_follow_inputs():
    sampler, pool = lemon(num_negs_per_pos=2), NegativePool.from_lists([[0, 1], [2]], num_items=3)
    triples = random_triples()
    negatives, mask = sampler.sample(triples)
    assert (negatives.dtype, negatives.device) == (triples.dtype, triples.device)
    assert mask.dtype == torch.bool
    keys = torch.tensor([0, 1], device="meta")
    assert pool.to("meta").sample(keys).device.type == "meta"
    assert all(tensor.device.type == "cpu" for tensor in sampler.buffers())  # samplers run in data loaders


@pytest.mark.parametrize("shape", [(7,), (2, 5), ()])
def test_batch_dimensions_are_kept(shape):
    triples = random_triples()[: math.prod(shape)].reshape(*shape, 3)
    before = triples.clone()
    for k in (1, 4):
        assert lemon(num_negs_per_pos=k).corrupt_batch(triples).shape == (*shape, k, 3)
    assert torch.equal(triples, before)


def test_data_loader_workers_draw_reproducibly():
    triples = random_triples()
    factory = CoreTriplesFactory(triples, num_entities=N, num_relations=R)
    options = {"embeddings": grouped_embeddings(), "num_clusters": GROUPS, "num_negs_per_pos": 2}
    data = BatchedSLCWAInstances.from_triples_factory(
        factory, batch_size=32, negative_sampler="lemon", negative_sampler_kwargs=options
    )

    def epoch() -> list[torch.Tensor]:
        torch.manual_seed(0)
        return [batch["negatives"] for batch in DataLoader(data, batch_size=None, num_workers=2)]

    first, second = epoch(), epoch()
    assert len(first) == len(data)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_pools_by_relation_and_by_side():
    triples = random_triples()
    by_relation = PoolNegativeSampler(
        mapped_triples=triples, pools={1: [2, 3, 5]}, key="relation", mix=0.0, num_entities=N, num_relations=R
    )
    negatives = replacements(by_relation, (5, 1, 10), 9000)
    assert uniform_p(negatives[negatives[:, 2] == 10][:, 0], [2, 3]) > 1e-4  # 5 is replaced, hence left out
    assert uniform_p(negatives[negatives[:, 0] == 5][:, 2], [2, 3, 5]) > 1e-4
    by_side = PoolNegativeSampler(
        mapped_triples=triples, pools={2: [1, 2], 3: [7, 8]}, key="side", mix=0.0, num_entities=N, num_relations=R
    )
    negatives = replacements(by_side, (5, 1, 10), 9000)
    assert set(negatives[negatives[:, 2] == 10][:, 0].tolist()) == {1, 2}
    assert set(negatives[negatives[:, 0] == 5][:, 2].tolist()) == {7, 8}
    elsewhere = replacements(by_side, (5, 0, 10), 9000)  # relation 0 has no pool
    assert len(set(elsewhere[elsewhere[:, 0] == 5][:, 2].tolist())) == N - 1


def test_tunable_and_known_by_name():
    for name in ("lemon", "LemonNegativeSampler", "Lemon"):
        assert negative_sampler_resolver.lookup(name) is LemonNegativeSampler
    assert negative_sampler_resolver.lookup("pool") is PoolNegativeSampler
    import inspect

    assert set(LemonNegativeSampler.hpo_default) <= set(inspect.signature(LemonNegativeSampler).parameters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": 1.5}, "mix"),
        ({"mode": "clusters"}, "mode"),
        ({"schedule": "cosine"}, "schedule"),
        ({"corruption": "both"}, "corruption"),
        ({"temperature": 0.0, "mode": "knn"}, "temperature"),
        ({"num_clusters": N + 1}, "clusters"),
        ({"embeddings": np.zeros((3, 2))}, "embeddings of shape"),
        ({"embeddings": np.full((N, 2), np.nan)}, "with text"),
        ({"pca": 100}, "pca"),
        ({"min_cluster_size": 1}, "min_cluster_size"),
        ({"ramp_epochs": 0.0}, "ramp_epochs"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        lemon(**options)
    assert "\n" not in str(error.value)


# --- audit ------------------------------------------------------------------------------------------------------


def test_triple_index_against_python_sets():
    triples = random_triples(300)
    index = TripleIndex(triples, N, R)
    asked = torch.cat([random_triples(400, seed=1), triples[:20]])
    known = {tuple(row) for row in triples.tolist()}
    assert index.contains(asked).tolist() == [tuple(row) in known for row in asked.tolist()]
    assert {tuple(row) for row in index.triples().tolist()} == known
    assert not TripleIndex(torch.empty(0, 3, dtype=torch.long), N, R).contains(asked).any()


def test_false_negative_rates_against_brute_force():
    train, held = random_triples(400), random_triples(300, seed=2)
    sampler = lemon(train, num_negs_per_pos=6, mix=0.2)
    torch.manual_seed(5)
    profile = profile_negatives(sampler.corrupt_batch, train, TripleIndex(train, N, R), TripleIndex(held, N, R))
    torch.manual_seed(5)
    negatives = [tuple(row) for row in sampler.corrupt_batch(train).reshape(-1, 3).tolist()]
    for part, value in ((train, profile.fnr_train), (held, profile.fnr_held)):
        known = {tuple(row) for row in part.tolist()}
        assert value == pytest.approx(np.mean([triple in known for triple in negatives]))
    low, high = profile.interval("fnr_train")
    assert low < profile.fnr_train < high
    positives = train.repeat_interleave(6, dim=0).tolist()
    new = [n[0] if n[0] != p[0] else n[2] for n, p in zip(negatives, positives, strict=True)]
    share = np.bincount(new, minlength=N) / len(new)
    assert profile.coverage == pytest.approx(-sum(s * math.log(s) for s in share if s) / math.log(N))


def test_hardness_and_gradient_share_by_hand():
    train = torch.tensor([[0, 0, 1], [2, 0, 3]])
    fixed = torch.tensor([[[5, 0, 1], [0, 0, 7]], [[2, 0, 9], [4, 0, 3]]])
    profile = profile_negatives(
        lambda batch: fixed,
        train,
        TripleIndex(train, N, R),
        TripleIndex(train[:0], N, R),
        score=lambda triples: -triples.sum(-1).double(),
        margin=4.0,
    )
    gaps = [-5, -6, -6, -2]  # score of the negative minus that of its positive
    assert profile.hardness == pytest.approx(np.mean(gaps))
    assert profile.gradient_share == pytest.approx(np.mean([gap + 4 > 0 for gap in gaps]))
    assert profile.typed == pytest.approx(0.0)


def test_coverage_runs_from_one_entity_to_all():
    assert coverage(torch.arange(10), 10) == pytest.approx(1.0)
    assert coverage(torch.zeros(10, dtype=torch.long), 10) == pytest.approx(0.0)


def test_permuted_control_keeps_sizes_and_excludes_the_entity():
    made = neighbourhoods(grouped_embeddings(), N, Config(num_clusters=GROUPS))
    control = permuted(made, seed=1)
    assert torch.equal(control.pool.sizes(), made.pool.sizes())
    assert not torch.equal(control.pool_of, made.pool_of)
    for e in range(N):
        assert e in control.pool.candidates(int(control.pool_of[e]))  # an entity is in its own cluster, as before
    weighted = neighbour_pools(grouped_embeddings(), np.arange(N), N, 5, 0.1)
    shuffled = permuted(weighted, seed=1)
    assert all(e not in shuffled.pool.candidates(int(shuffled.pool_of[e])) for e in range(N))
    np.testing.assert_allclose(shuffled.pool.cumulative, weighted.pool.cumulative, atol=1e-9)


def test_text_that_predicts_links_is_seen_by_the_audit_and_shuffled_text_is_not():
    heads, tails = torch.arange(N), torch.arange(N)
    pairs = torch.cartesian_prod(heads, tails)
    linked = pairs[(pairs[:, 0] + pairs[:, 1]) % GROUPS == 0]
    train = torch.stack([linked[:, 0], torch.zeros(len(linked), dtype=torch.long), linked[:, 1]], 1)
    made = neighbourhoods(grouped_embeddings(), N, Config(num_clusters=GROUPS))
    draws = {
        name: PoolNegativeSampler(
            mapped_triples=train, pools=n.pool, pool_of=n.pool_of, mix=0.0, num_entities=N, num_relations=R
        ).corrupt_batch
        for name, n in (("text", made), ("shuffled", permuted(made, 3)))
    }
    profiles = profile_all(draws, train, train[:0], N, R)
    assert profiles["text"].fnr_train == 1.0
    assert profiles["shuffled"].fnr_train < 0.5


def test_spectral_embeddings_bring_entities_with_the_same_links_together():
    triples = torch.tensor([[0, 0, 4], [1, 0, 4], [0, 1, 5], [1, 1, 5], [2, 0, 6], [3, 0, 6], [2, 1, 7]])
    z = spectral_embeddings(triples, 9, 2, dim=4)
    assert np.linalg.norm(z[0] - z[1]) < 1e-5 < np.linalg.norm(z[0] - z[2])
    assert np.isnan(z[8]).all()


# --- text and files ---------------------------------------------------------------------------------------------


def own_graph(folder: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    animals, places = [f"animal {i}" for i in range(12)], [f"place {i}" for i in range(12)]
    lines = sorted({f"{rng.choice(animals)}\tlives in\t{rng.choice(places)}" for _ in range(80)})
    files = {name: folder / f"{name}.tsv" for name in ("train", "valid", "text")}
    files["train"].write_text("\n".join(lines[:50]) + "\n")
    files["valid"].write_text("\n".join(lines[50:]) + "\n")
    described = [f"{a}\ta furry mammal, number {i}" for i, a in enumerate(animals)]
    described += [f"{p}\ta region of the world, number {i}" for i, p in enumerate(places)]
    files["text"].write_text("\n".join(described) + "\n")
    return files


def test_texts_are_encoded_once_and_cached_by_content(tmp_path):
    calls = []

    def encoder(texts):
        calls.append(list(texts))
        return np.array([[len(text), 1.0] for text in texts])

    encoder.identity = "length"
    z = encode_texts(["aa", None, " aa ", "bbb", ""], encoder, tmp_path)
    assert calls == [["aa", "bbb"]]
    np.testing.assert_array_equal(np.isnan(z[:, 0]), [False, True, False, False, True])
    np.testing.assert_array_equal(z[0], z[2])
    encode_texts(["bbb", "aa"], encoder, tmp_path)
    assert len(calls) == 1
    next(tmp_path.rglob("*.npy")).write_bytes(b"damaged")
    encode_texts(["bbb", "aa"], encoder, tmp_path)
    assert len(calls) == 2
    with pytest.raises(UserError, match="no entity has text"):
        encode_texts([None, " "], encoder)
    with pytest.raises(UserError, match="returned shape"):
        encode_texts(["a"], lambda texts: np.full((1, 2), np.nan))


def test_works_in_host(tmp_path):
    from pykeen.pipeline import pipeline

    files = own_graph(tmp_path)
    factory = TriplesFactory.from_path(files["train"])
    texts = dict(line.split("\t") for line in files["text"].read_text().splitlines())
    options = lemon_kwargs(factory, texts, tfidf_encoder(8), num_negs_per_pos=4, num_clusters=2)
    result = pipeline(
        training=factory, testing=factory, model="TransE", training_loop="sLCWA", negative_sampler="lemon",
        negative_sampler_kwargs=options, training_kwargs={"num_epochs": 2, "use_tqdm": False}, random_seed=0,
        evaluation_kwargs={"use_tqdm": False},
    )  # fmt: skip
    assert all(math.isfinite(loss) for loss in result.losses)
    assert 0 < result.get_metric("mrr") <= 1


def test_lemon_kwargs_names_texts_that_do_not_fit():
    factory = TriplesFactory.from_labeled_triples(np.array([["a", "r", "b"], ["b", "r", "c"]]))
    with pytest.raises(UserError, match="no entity has text"):
        lemon_kwargs(factory, {"A": "text"}, tfidf_encoder())
    with pytest.raises(UserError, match="2 texts for 3 entities"):
        lemon_kwargs(factory, ["x", "y"], tfidf_encoder())


def test_audit_of_files(tmp_path):
    files = own_graph(tmp_path)
    report = audit(files["train"], files["text"], valid=files["valid"], encoder="tfidf", num_clusters=2, permutations=5)
    found = {finding.name: finding for finding in report.findings}
    assert {"lemon fnr_train", "lemon fnr_held", "uniform fnr_held", "structure_knn typed"} <= set(found)
    assert found["lemon fnr_train"].verdict == "finding"  # animals live in places: text neighbours are true
    assert "filtered" in found["lemon fnr_train"].remedy
    assert found["lemon fnr_train"].value > found["uniform fnr_train"].value
    assert 0 <= report.false_alarm_rate <= 1
    again = audit(files["train"], files["text"], valid=files["valid"], encoder="tfidf", num_clusters=2, permutations=5)
    assert again.to_dict() == report.to_dict()


def test_apply_writes_negatives_that_are_not_training_triples(tmp_path):
    files = own_graph(tmp_path)
    out = apply(files["train"], files["text"], tmp_path / "hard.tsv", negatives=3, encoder="tfidf", num_clusters=2)
    known = files["train"].read_text().splitlines()
    rows = [line.split("\t") for line in out.read_text().splitlines()]
    assert rows
    for line, *triple in rows:
        assert "\t".join(triple) not in known
        positive = known[int(line) - 1].split("\t")
        assert sum(a != b for a, b in zip(triple, positive, strict=True)) == 1


def test_audit_refuses_text_of_other_entities(tmp_path):
    files = own_graph(tmp_path)
    files["text"].write_text("someone else\ttext\n")
    with pytest.raises(UserError, match="has text for 0 of"):
        audit(files["train"], files["text"], encoder="tfidf")
