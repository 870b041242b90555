"""The Flower glue: an in-process grid, flat records, paired samplers, partitions, batched local training."""

from __future__ import annotations

import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.errors import UserError
from transfuse.hosts.flower.client_sampling import (
    AdaFLSampler,
    MultinomialSampler,
    SampledStrategy,
    UniformSampler,
    answer_describe,
    nodes_by_partition,
)
from transfuse.hosts.flower.cohort import Cohort, LocalTraining, accuracy, init_mlp, train_together
from transfuse.hosts.flower.flat_records import FlatLayout, ShapeError, trainable_keys
from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.hosts.flower.partition import (
    by_domain_and_class,
    label_counts,
    largest_remainders,
    prior_dirichlet,
    total_variation,
)
from transfuse.hosts.flower.update_moments import UpdateMoments

QUIET = {"fraction_evaluate": 0.0}


def record(**arrays: object) -> ArrayRecord:
    return ArrayRecord({key: Array(np.asarray(value)) for key, value in arrays.items()})


def adding_app() -> ClientApp:
    """Adds partition id + 1 to every array and counts its rounds in the node's state."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"]) + 1
        rounds = context.state.setdefault("memory", MetricRecord({"rounds": 0}))
        rounds["rounds"] += 1
        arrays = {key: Array(array.numpy() + number) for key, array in message.content["arrays"].items()}
        metrics = MetricRecord({"num-examples": number, "rounds": rounds["rounds"]})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    return app


def start(strategy: FedAvg, grid: LocalGrid, rounds: int = 3, **arrays: object):
    with quiet_flower():
        return strategy.start(grid, record(**(arrays or {"w": np.zeros(2)})), num_rounds=rounds)


# ---------------------------------------------------------------- LocalGrid


@pytest.mark.parametrize("roundtrip", [False, True])
def test_grid_runs_flowers_own_strategy(roundtrip: bool) -> None:
    result = start(FedAvg(**QUIET), LocalGrid(adding_app(), 3, roundtrip=roundtrip))
    step = (1 * 1 + 2 * 2 + 3 * 3) / 6  # weights 1, 2, 3 and updates 1, 2, 3
    np.testing.assert_allclose(result.arrays["w"].numpy(), 3 * step)


def test_contexts_persist_between_rounds() -> None:
    grid = LocalGrid(adding_app(), 2)
    start(FedAvg(**QUIET), grid, rounds=4)
    assert [context.state["memory"]["rounds"] for context in grid.contexts.values()] == [4, 4]


def test_client_that_changes_what_it_received_changes_nothing_else() -> None:
    app = ClientApp()
    seen = []

    @app.train()
    def vandal(message: Message, context: Context) -> Message:
        seen.append(float(message.content["arrays"]["w"].numpy()[0]))
        message.content["arrays"]["w"] = Array(np.full(2, 99.0))
        message.content["arrays"]["extra"] = Array(np.ones(1))
        message.content["config"]["server-round"] = -1
        del message.content["config"]
        reply = RecordDict({"arrays": record(w=np.ones(2)), "metrics": MetricRecord({"num-examples": 1})})
        return Message(reply, reply_to=message)

    grid, arrays, config = LocalGrid(app, 3), record(w=np.zeros(2)), ConfigRecord()
    strategy = FedAvg(**QUIET)
    with quiet_flower():
        replies = list(grid.send_and_receive(strategy.configure_train(1, arrays, config, grid)))
    assert seen == [0.0, 0.0, 0.0]
    assert list(arrays) == ["w"]
    np.testing.assert_array_equal(arrays["w"].numpy(), np.zeros(2))
    assert config["server-round"] == 1
    assert all(not reply.has_error() for reply in replies)


def test_bytes_of_a_shared_array_object_are_protected_too() -> None:
    app = ClientApp()

    @app.train()
    def vandal(message: Message, context: Context) -> Message:
        message.content["arrays"]["w"].data = Array(np.full(2, 7.0)).data
        return Message(message.content, reply_to=message)

    grid, arrays = LocalGrid(app, 1), record(w=np.zeros(2))
    message = Message(RecordDict({"arrays": arrays}), message_type="train", dst_node_id=1)
    list(grid.send_and_receive([message]))
    np.testing.assert_array_equal(arrays["w"].numpy(), np.zeros(2))


def test_replies_come_in_the_order_of_messages_and_name_their_senders() -> None:
    grid = LocalGrid(adding_app(), 4)
    content = RecordDict({"arrays": record(w=np.zeros(1))})
    messages = [Message(content, message_type="train", dst_node_id=node) for node in (3, 1, 4)]
    replies = list(grid.send_and_receive(messages))
    assert [reply.metadata.src_node_id for reply in replies] == [3, 1, 4]
    assert [reply.metadata.reply_to_message_id for reply in replies] == ["local-1", "local-2", "local-3"]


def test_raising_client_becomes_an_error_reply_or_raises_as_asked() -> None:
    app = ClientApp()

    @app.train()
    def broken(message: Message, context: Context) -> Message:
        raise RuntimeError("no data on this node")

    message = Message(RecordDict(), message_type="train", dst_node_id=1)
    (reply,) = LocalGrid(app, 1).send_and_receive([message])
    assert reply.has_error()
    assert "no data on this node" in reply.error.reason
    with pytest.raises(RuntimeError, match="no data"):
        LocalGrid(app, 1, on_error="raise").send_and_receive([message])


def test_rates_of_failure_are_kept_and_repeatable() -> None:
    def fates(seed: int) -> tuple[int, int]:
        grid = LocalGrid(adding_app(), 1, error_rate=0.3, drop_rate=0.2, seed=seed)
        content = RecordDict({"arrays": record(w=np.zeros(1))})
        messages = [Message(content, message_type="train", dst_node_id=1) for _ in range(500)]
        replies = list(grid.send_and_receive(messages))
        return 500 - len(replies), sum(reply.has_error() for reply in replies)

    dropped, failed = fates(0)
    assert fates(0) == (dropped, failed) != fates(1)
    assert 70 < dropped < 130
    assert 110 < failed < 190


def test_rounds_survive_failures() -> None:
    grid = LocalGrid(adding_app(), 6, error_rate=0.3, drop_rate=0.2)
    result = start(FedAvg(**QUIET), grid, rounds=10)
    assert np.isfinite(result.arrays["w"].numpy()).all()


def test_failures_depend_on_round_and_node_only() -> None:
    """So two strategies meet the same failures, whatever they sent before."""

    def survivors(warm_up: int) -> list[list[int]]:
        grid = LocalGrid(adding_app(), 12, error_rate=0.2, drop_rate=0.2, seed=3)
        strategy = FedAvg(**QUIET)
        arrays, kept = record(w=np.zeros(2)), []
        for server_round in (*range(100, 100 + warm_up), 1, 2, 3):
            with quiet_flower():
                messages = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
            replies = grid.send_and_receive(messages)
            kept.append(sorted(reply.metadata.src_node_id for reply in replies if reply.has_content()))
        return kept[-3:]

    assert survivors(0) == survivors(2)
    assert len({tuple(nodes) for nodes in survivors(0)}) > 1


def test_slow_nodes_work_but_their_answers_are_lost() -> None:
    grid = LocalGrid(adding_app(), 3, delays={2: 60.0})
    with quiet_flower():
        result = FedAvg(**QUIET).start(grid, record(w=np.zeros(1)), num_rounds=2, timeout=30.0)
    assert [context.state["memory"]["rounds"] for context in grid.contexts.values()] == [2, 2, 2]
    np.testing.assert_allclose(result.arrays["w"].numpy(), 2 * (1 * 1 + 2 * 2) / 3)
    assert [*LocalGrid(adding_app(), 3, delays={2: 60.0}).get_node_ids()] == [1, 2, 3]


@pytest.mark.parametrize("arguments", [{"nodes": 0}, {"nodes": 2, "error_rate": 0.8, "drop_rate": 0.4}])
def test_bad_grids_are_refused(arguments: dict) -> None:
    with pytest.raises(UserError):
        LocalGrid(adding_app(), **arguments)


def test_message_to_unknown_node_is_refused() -> None:
    message = Message(RecordDict(), message_type="train", dst_node_id=9)
    with pytest.raises(UserError, match="node 9"):
        LocalGrid(adding_app(), 2).send_and_receive([message])


# ---------------------------------------------------------------- flat records


def test_flat_layout_reads_any_order_dtype_and_memory_layout() -> None:
    base = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(5.0, dtype=np.float16),
        "c": np.arange(4.0),
    }
    layout = FlatLayout(record(**base))
    flipped = record(c=base["c"] + 1, b=base["b"], a=np.asfortranarray(base["a"]))
    np.testing.assert_array_equal(layout.read(flipped, np.empty(layout.size)), [0, 1, 2, 3, 4, 5, 5, 1, 2, 3, 4])
    np.testing.assert_array_equal(layout.squared_norms(np.ones(layout.size)), [6, 1, 4])
    assert layout.unflatten(np.arange(11.0))["a"].shape == (2, 3)


def test_flat_layout_parses_what_it_cannot_view() -> None:
    layout = FlatLayout(record(a=np.zeros(3, dtype=np.float32)))
    np.testing.assert_array_equal(layout.read(record(a=np.array([1, 2, 3])), np.empty(3)), [1, 2, 3])


@pytest.mark.parametrize("wrong", [{"a": np.zeros(4)}, {"a": np.zeros((1, 3))}, {"b": np.zeros(3)}])
def test_flat_layout_refuses_other_shapes(wrong: dict) -> None:
    layout = FlatLayout(record(a=np.zeros(3)))
    with pytest.raises(ShapeError):
        layout.read(record(**wrong), np.empty(3))


def test_trainable_keys_leave_statistics_and_counters_out() -> None:
    arrays = record(
        **{
            "conv.weight": np.zeros(2),
            "scale": np.zeros(2),  # neither weight nor bias in its name, yet trained
            "bn.running_mean": np.zeros(2),
            "bn.running_var": np.zeros(2),
            "bn.num_batches_tracked": np.zeros((), dtype=np.int64),
            "ids": np.zeros(2, dtype=np.int64),
        }
    )
    assert trainable_keys(arrays) == ("conv.weight", "scale")


def test_update_moments_match_brute_force() -> None:
    rng = np.random.default_rng(0)
    sent = {"a": rng.normal(size=(3, 2)).astype(np.float32), "b": rng.normal(size=4).astype(np.float32)}
    weights = [3.0, 1.0, 5.0]
    replies = [{key: (v + rng.normal(size=v.shape)).astype(np.float32) for key, v in sent.items()} for _ in weights]
    moments = UpdateMoments(record(**sent), None)
    moments.reset(record(**sent))
    for reply, weight in zip(replies, weights, strict=True):
        assert moments.add(record(**reply), weight) == ""
    square, mean, p = moments.finish()
    np.testing.assert_allclose(p, np.array(weights) / 9)
    for index, key in enumerate(sent):
        updates = np.stack([reply[key].astype(np.float64) - sent[key] for reply in replies]).reshape(3, -1)
        np.testing.assert_allclose(square[index], p @ (updates**2).sum(axis=1), rtol=1e-12)
        np.testing.assert_allclose(mean[index], ((p @ updates) ** 2).sum(), rtol=1e-12)


# ---------------------------------------------------------------- sampling


class Paired(SampledStrategy, FedAvg):
    pass


def drawn(sampler: UniformSampler, rounds: int = 5, nodes: int = 20) -> list[tuple[int, ...]]:
    grid, draws = LocalGrid(adding_app(), nodes), []
    strategy = Paired(sampler=sampler, **QUIET)
    for server_round in range(1, rounds + 1):
        with quiet_flower():
            messages = strategy.configure_train(server_round, record(w=np.zeros(1)), ConfigRecord(), grid)
        draws.append(tuple(message.metadata.dst_node_id for message in messages))
    return draws


def test_uniform_draws_depend_on_seed_and_round_only() -> None:
    random.seed(1)
    first = drawn(UniformSampler(6, seed=3))
    random.seed(2)
    assert drawn(UniformSampler(6, seed=3)) == first
    assert drawn(UniformSampler(6, seed=4)) != first
    assert len(set(first)) == 5
    assert first[0] == tuple(random.Random("3-1").sample(range(1, 21), 6))


def test_draw_follows_partition_ids_not_node_ids() -> None:
    straight = LocalGrid(adding_app(), [{"partition-id": i} for i in range(8)])
    reverse = LocalGrid(adding_app(), [{"partition-id": 7 - i} for i in range(8)])
    chosen = []
    for grid in (straight, reverse):
        draw = UniformSampler(3, seed=0).draw(1, nodes_by_partition(grid))
        chosen.append([grid.partitions[node] for node in draw.nodes])
    assert chosen[0] == chosen[1]


def test_nodes_are_asked_for_their_partition_where_the_grid_does_not_know() -> None:
    class Remote(LocalGrid):  # a grid of another class is asked by messages
        pass

    grid = LocalGrid(answer_describe(adding_app()), [{"partition-id": 2 - i} for i in range(3)])

    class Wrapped:
        def get_node_ids(self) -> list[int]:
            return list(grid.get_node_ids())

        def send_and_receive(self, messages, *, timeout=None):
            return grid.send_and_receive(messages)

    with quiet_flower():
        assert nodes_by_partition(Wrapped()) == [3, 2, 1]


def test_multinomial_gives_weight_two_instead_of_two_messages() -> None:
    sampler = MultinomialSampler(8, seed=0)
    draw = sampler.draw(1, [1, 2, 3])
    assert sum(draw.weights.values()) == 8
    assert len(set(draw.nodes)) == len(draw.nodes) <= 3
    grid = LocalGrid(adding_app(), 3)
    result = start(Paired(sampler=sampler, **QUIET), grid, rounds=1)
    p = np.array([draw.weights[node] * node for node in draw.nodes])  # client i has i examples and adds i
    np.testing.assert_allclose(result.arrays["w"].numpy()[0], p @ draw.nodes / p.sum())
    assert grid.messages_sent == len(draw.nodes)


def test_multinomial_by_size_counts_draws_only() -> None:
    sampler = MultinomialSampler(8, seed=0, sizes=[1, 2, 3])
    draw = sampler.draw(1, [1, 2, 3])
    result = start(Paired(sampler=sampler, **QUIET), LocalGrid(adding_app(), 3), rounds=1)
    counts = np.array([draw.weights[node] for node in draw.nodes])
    np.testing.assert_allclose(result.arrays["w"].numpy()[0], counts @ draw.nodes / 8)
    with pytest.raises(UserError, match="sizes"):
        sampler.draw(1, [1, 2])


def test_adafl_moves_probability_mass_as_written() -> None:
    sampler = AdaFLSampler(2, seed=0)
    draw = sampler.draw(1, [1, 2, 3, 4])
    a, b = draw.nodes
    sampler.observe({a: 3.0, b: 1.0})
    assert sampler.probabilities[a] == pytest.approx(0.9 * 0.25 + 0.1 * 0.5 * 0.75)
    assert sampler.probabilities[b] == pytest.approx(0.9 * 0.25 + 0.1 * 0.5 * 0.25)
    assert sum(sampler.probabilities.values()) == pytest.approx(1.0)


def test_adafl_hears_distances_from_the_mean_update() -> None:
    sampler = AdaFLSampler(3, seed=0)
    start(Paired(sampler=sampler, **QUIET), LocalGrid(adding_app(), 3), rounds=1, w=np.zeros(4))
    mean = (1 + 4 + 9) / 6
    distances = np.array([2 * abs(i - mean) for i in (1, 2, 3)])  # norm of a constant vector of four
    expected = 0.9 / 3 + 0.1 * distances / distances.sum()
    np.testing.assert_allclose([sampler.probabilities[i] for i in (1, 2, 3)], expected)


# ---------------------------------------------------------------- partitions


@given(st.integers(2, 12), st.sampled_from([0.1, 1.0, 100.0]), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_partition_deals_every_example_once_in_equal_parts(clients: int, alpha: float, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 5, 103)
    parts = prior_dirichlet(labels, clients, alpha, np.random.default_rng(seed))
    assert sorted(np.concatenate(parts).tolist()) == list(range(103))
    assert {len(part) for part in parts[:-1]} <= {103 // clients}
    assert len(parts[-1]) == 103 - (clients - 1) * (103 // clients)


def test_alpha_multiplies_the_prior() -> None:
    labels = np.repeat(np.arange(10), 120)
    prior = np.full(10, 120.0)

    def skew(alpha: float) -> float:
        parts = prior_dirichlet(labels, 60, alpha, np.random.default_rng(0))
        return float(np.mean([total_variation(row, prior) for row in label_counts(parts, labels, 10)]))

    assert skew(0.1) > 0.8  # with Dirichlet parameters of 0.01 most clients hold one class: 0.9
    assert skew(0.1) > skew(1.0) > skew(100.0)
    assert skew(100.0) < 0.2


def test_partition_refuses_nonsense() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="alpha"):
        prior_dirichlet(np.zeros(4, dtype=int), 2, 0.0, rng)
    with pytest.raises(UserError, match="clients"):
        prior_dirichlet(np.zeros(4, dtype=int), 5, 1.0, rng)
    with pytest.raises(UserError, match="label counts"):
        total_variation(np.zeros(3), np.ones(3))


def test_domain_and_class_give_one_client_each() -> None:
    parts = by_domain_and_class(["a", "a", "b", "a"], np.array([0, 1, 0, 0]))
    assert [part.tolist() for part in parts] == [[0, 3], [1], [2]]


def test_largest_remainders_add_up() -> None:
    np.testing.assert_array_equal(largest_remainders(np.array([0.5, 0.26, 0.24]), 5), [3, 1, 1])


# ---------------------------------------------------------------- batched training


def test_batched_training_equals_torch_client_by_client() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start_params = init_mlp((6, 5, 3), rng)
    data = [(rng.normal(size=(n, 6)).astype(np.float32), rng.integers(0, 3, n)) for n in (7, 12, 5)]
    how = LocalTraining(epochs=2, batch=4, rate=0.3, momentum=0.9, clip=0.5)
    generators = [np.random.default_rng(c) for c in range(3)]
    ours = train_together(start_params, data, how, generators, proximal=0.1)
    for c, (x, y) in enumerate(data):
        net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
        names = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
        anchors = [torch.tensor(start_params[name]) for name in names]
        with torch.no_grad():
            for parameter, value in zip(net.parameters(), anchors, strict=True):
                parameter.copy_(value)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
        orders = np.random.default_rng(c).permuted(np.tile(np.arange(len(y)), (2, 1)), axis=1)
        for order in orders:
            for batch in (order[i : i + 4] for i in range(0, len(y), 4)):
                loss = torch.nn.functional.cross_entropy(net(torch.tensor(x[batch])), torch.tensor(y[batch]))
                pairs = zip(net.parameters(), anchors, strict=True)
                loss = loss + 0.05 * sum(((parameter - anchor) ** 2).sum() for parameter, anchor in pairs)
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
                optimiser.step()
        for name, parameter in zip(names, net.parameters(), strict=True):
            np.testing.assert_allclose(ours[name][c], parameter.detach().numpy(), atol=2e-6)


def test_a_client_trains_alike_whoever_else_takes_part() -> None:
    rng = np.random.default_rng(1)
    data = [(rng.normal(size=(9, 4)).astype(np.float32), rng.integers(0, 2, 9)) for _ in range(4)]
    cohort, params = Cohort(data, LocalTraining(), seed=5), init_mlp((4, 3, 2), rng)
    alone = cohort.train(params, [2], server_round=7)
    among = cohort.train(params, [0, 2, 3], server_round=7)
    for key in params:
        np.testing.assert_allclose(alone[key][0], among[key][1], atol=1e-7)


def test_cohort_learns_through_the_grid() -> None:
    from transfuse.data.images import digits

    data = digits()
    parts = prior_dirichlet(data.labels, 10, 10.0, np.random.default_rng(0))
    cohort = Cohort([(data.features[p], data.labels[p]) for p in parts], LocalTraining(epochs=1), seed=0)
    grid = LocalGrid(cohort.app, 10, before_round=cohort.prepare, on_error="raise")
    params = init_mlp((64, 32, 10), np.random.default_rng(0))
    result = start(Paired(sampler=UniformSampler(5), **QUIET), grid, rounds=8, **params)
    trained = {key: array.numpy() for key, array in result.arrays.items()}
    assert accuracy(trained, data.features, data.labels) > 0.7 > accuracy(params, data.features, data.labels)
