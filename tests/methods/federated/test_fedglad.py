"""FedGLAD: indicator, baseline and bound against brute force; the strategy in Flower; the audit and its alarms."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedProx, FedYogi
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from transfuse.errors import UserError
from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.fedglad import (
    Config,
    FedGLAD,
    GLADMixin,
    ServerStepAdapter,
    audit,
    gsi,
    indicator,
    negative_sampling_report,
)
from transfuse.methods.federated.round_history import ratios, report, write_history

OFF = {"fraction_evaluate": 0.0}
UPDATES = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.just(5)), elements=st.floats(-10, 10))


def record(**arrays: object) -> ArrayRecord:
    return ArrayRecord({key: Array(np.asarray(value)) for key, value in arrays.items()})


def noisy_app(scale: float = 1.0, bad: dict[int, str] | None = None) -> ClientApp:
    """Adds noise that depends on partition and round to floats, and one to counters; `bad` partitions misbehave."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        rng = np.random.default_rng((client, int(message.content["config"]["server-round"])))
        arrays = {}
        for key in sorted(message.content["arrays"]):
            value = message.content["arrays"][key].numpy()
            change = rng.normal(size=value.shape) * scale + 0.3
            arrays[key] = value + (1 if key.endswith("tracked") else change)
            arrays[key] = arrays[key].astype(value.dtype)
            if key == "frozen":
                arrays[key] = value
        kind = (bad or {}).get(client, "")
        if kind == "nan":
            arrays["a"] = np.full_like(arrays["a"], np.nan)
        elif kind == "nan_statistic":
            arrays["bn.running_var"] = np.full_like(arrays["bn.running_var"], np.inf)
        elif kind == "shape":
            arrays["a"] = arrays["a"][:1]
        elif kind == "keys":
            del arrays["a"]
        elif kind == "long":
            arrays["a"] = arrays["a"] + 100.0
        examples = 0 if kind == "empty" else client + 1
        records = {"arrays": record(**arrays), "metrics": MetricRecord({"num-examples": examples, "loss": 1.0})}
        return Message(RecordDict(records), reply_to=message)

    return app


def weights(dtype: type = np.float32) -> ArrayRecord:
    rng = np.random.default_rng(0)
    return record(
        **{
            "a": rng.normal(size=(3, 4)).astype(dtype),
            "b": rng.normal(size=5).astype(dtype),
            "frozen": np.ones(2, dtype),
            "bn.running_var": np.ones(3, dtype),
            "bn.num_batches_tracked": np.array(0),
        }
    )


def run(strategy: FedAvg, rounds: int = 5, nodes: int = 4, dtype: type = np.float32, **app: object):
    random.seed(0)  # Flower draws the order of clients from the global generator, and sums follow that order
    with quiet_flower(level=60):
        return strategy.start(LocalGrid(noisy_app(**app), nodes), weights(dtype), num_rounds=rounds)


def arrays_of(result) -> dict[str, np.ndarray]:
    return {key: array.numpy() for key, array in result.arrays.items()}


# ---------------------------------------------------------------- the indicator


@given(UPDATES)
@settings(max_examples=100, deadline=None)
def test_indicator_equals_the_subtraction_form_for_equal_weights(g: np.ndarray) -> None:
    mean = g.mean(axis=0)
    within = 1 - ((g - mean) ** 2).sum() / max((g**2).sum(), 1e-300)
    if within < 1e-3 or (g**2).sum() < 1e-6:
        return  # where that form breaks down
    assert gsi(g)[0] == pytest.approx(within**-0.5, rel=1e-6)


@given(UPDATES, st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_indicator_is_at_least_one_finite_and_needs_no_scale(g: np.ndarray, seed: int) -> None:
    p = np.random.default_rng(seed).uniform(0.1, 5, len(g))
    whole, parts = gsi(g, p, [2, 3])
    assert 1.0 <= whole < math.inf
    assert (parts >= 1.0).all() and np.isfinite(parts).all()
    assert gsi(3 * g, 7 * p)[0] == pytest.approx(whole, rel=1e-9) or np.abs(g).max() < 1e-100


def test_indicator_closed_forms() -> None:
    assert gsi(np.tile([1.0, 2.0], (5, 1)))[0] == pytest.approx(1.0)  # all alike
    assert gsi(np.eye(7))[0] == pytest.approx(math.sqrt(7))  # orthogonal, equally long
    p = np.array([1.0, 3.0])
    expected = math.sqrt((0.25 * 1 + 0.75 * 4) / (0.25**2 * 1 + 0.75**2 * 4))
    assert gsi(np.array([[1.0, 0.0], [0.0, 2.0]]), p)[0] == pytest.approx(expected)


def test_weights_stand_in_numerator_and_denominator() -> None:
    g = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    twice = gsi(g)[0]  # the same client as two messages
    assert gsi(g[:2], [1.0, 2.0])[0] == pytest.approx(twice)  # or as one of weight two


def test_cancelling_and_frozen_updates_give_finite_values() -> None:
    whole, parts = gsi(np.array([[1.0, 0.0], [-1.0, 0.0]]), segments=[1, 1])
    assert np.isfinite(whole)
    assert parts[0] == pytest.approx(10 * math.sqrt(2))  # the cap: ten times orthogonal
    assert parts[1] == 1.0  # never moved
    assert gsi(np.zeros((3, 2)))[0] == 1.0


def test_segments_are_judged_apart() -> None:
    g = np.random.default_rng(0).normal(size=(4, 9))
    whole, parts = gsi(g, segments=[2, 0, 7])
    assert parts[0] == pytest.approx(gsi(g[:, :2])[0])
    assert parts[1] == 1.0  # an empty tensor
    assert parts[2] == pytest.approx(gsi(g[:, 2:])[0])
    assert whole == pytest.approx(gsi(g)[0])


def test_noise_correction_undoes_privacy_noise() -> None:
    rng = np.random.default_rng(0)
    clean = rng.normal(size=20_000) + 0.3 * rng.normal(size=(5, 20_000))
    noisy = clean + 2.0 * rng.normal(size=clean.shape)
    assert gsi(noisy)[0] > 1.3 * gsi(clean)[0]
    assert gsi(noisy, noise_std=2.0)[0] == pytest.approx(gsi(clean)[0], rel=0.05)
    assert gsi(noisy, noise_std=50.0)[0] >= 1.0  # over-corrected, still a number


def test_small_updates_of_large_weights_keep_their_digits() -> None:
    """The difference is formed before it is averaged; averaging float32 weights first would lose it."""
    rng = np.random.default_rng(0)
    g = 1e-3 * rng.normal(size=(4, 50)).astype(np.float32)
    base = np.full(50, 100.0)
    strategy = FedGLAD(gamma=0.0, **OFF)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        value = message.content["arrays"]["w"].numpy() + g[int(context.node_config["partition-id"])]
        records = {"arrays": record(w=value), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(records), reply_to=message)

    with quiet_flower():
        strategy.start(LocalGrid(app, 4), record(w=base), num_rounds=1)
    assert strategy.history[0].gsi == pytest.approx(gsi(g)[0], rel=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        (np.zeros(3),),
        (np.zeros((0, 3)),),
        (np.ones((2, 3)), [1.0]),
        (np.ones((2, 3)), [0.0, 0.0]),
        (np.ones((2, 3)), None, [1, 1]),
    ],
)
def test_bad_arrays_are_refused(arguments: tuple) -> None:
    with pytest.raises(UserError):
        gsi(*arguments)


# ---------------------------------------------------------------- baseline and bound


def test_adapter_follows_the_recurrence() -> None:
    rng = np.random.default_rng(0)
    values = 1 + rng.uniform(size=(80, 3))
    adapter, baseline = ServerStepAdapter(beta=0.9, gamma=0.02, groups=3), None
    for t, value in enumerate(values):
        ratio = np.ones(3) if baseline is None else value / baseline  # against the baseline BEFORE this round
        baseline = value if baseline is None else 0.9 * baseline + 0.1 * value  # of the indicator, unclipped
        expected = np.minimum(np.maximum(ratio, 1 - 0.02 * t), 1 + 0.02 * t)
        np.testing.assert_allclose(adapter.update(value), expected, rtol=1e-12)
        np.testing.assert_allclose(adapter.ratio, ratio, rtol=1e-12)


def test_bound_starts_closed_and_opens_linearly() -> None:
    adapter = ServerStepAdapter(gamma=0.02)
    factors = [float(adapter.update(1.0 if t % 2 else 9.0)[0]) for t in range(60)]
    assert factors[0] == 1.0
    assert factors[1] == pytest.approx(0.98)
    assert factors[2] == pytest.approx(1.04)
    assert 0 < factors[59] < 0.25  # wide open after 1/gamma rounds, yet positive
    capped = ServerStepAdapter(gamma=0.02, gamma_max=0.3)
    assert min(float(capped.update(1.0 if t % 2 else 9.0)[0]) for t in range(60)) == pytest.approx(0.7)


def test_infinite_gamma_means_no_bound() -> None:
    adapter = ServerStepAdapter(gamma=math.inf)
    assert adapter.update(2.0)[0] == 1.0
    assert adapter.update(6.0)[0] == pytest.approx(3.0)


def test_adapter_survives_a_checkpoint() -> None:
    values = 1 + np.random.default_rng(1).uniform(size=(20, 2))
    whole, first, second = (ServerStepAdapter(groups=2) for _ in range(3))
    expected = [whole.update(value) for value in values]
    for value in values[:10]:
        first.update(value)
    second.restore(first.state())
    np.testing.assert_array_equal([second.update(value) for value in values[10:]], expected[10:])
    with pytest.raises(UserError):
        ServerStepAdapter(groups=3).restore(first.state())
    with pytest.raises(UserError):
        first.update(np.array([1.0, np.nan]))


# ---------------------------------------------------------------- in Flower


class GLADAdam(GLADMixin, FedAdam):
    pass


class GLADYogi(GLADMixin, FedYogi):
    pass


class GLADProx(GLADMixin, FedProx):
    pass


class GLADAvgM(GLADMixin, FedAvgM):
    pass


PARENTS = [
    (FedGLAD, FedAvg, {}),
    (GLADProx, FedProx, {"proximal_mu": 0.1}),
    (GLADAvgM, FedAvgM, {"server_learning_rate": 0.7, "server_momentum": 0.8}),
    (GLADAdam, FedAdam, {"eta": 0.05}),
    (GLADYogi, FedYogi, {"eta": 0.05}),
]


@pytest.mark.parametrize(("ours", "parent", "arguments"), PARENTS)
def test_degenerate_setting_equals_baseline(ours: type, parent: type, arguments: dict) -> None:
    glad = {"gamma": 0.0} if ours is FedGLAD else {"glad": Config(gamma=0.0)}
    expected = arrays_of(run(parent(**arguments, **OFF)))
    for key, value in arrays_of(run(ours(**glad, **arguments, **OFF))).items():
        np.testing.assert_array_equal(value, expected[key])  # bit for bit


def test_constant_server_rate_equals_flowers() -> None:
    ours = arrays_of(run(FedGLAD(gamma=0.0, server_learning_rate=0.5, **OFF)))
    theirs = arrays_of(run(FedAvgM(server_learning_rate=0.5, **OFF)))
    for key in ("a", "b"):
        np.testing.assert_allclose(ours[key], theirs[key], rtol=2e-6)


@pytest.mark.parametrize("groups", ["tensor", "model", {"a": "x", "b": "y", "frozen": "x"}])
def test_works_in_host(groups: object) -> None:
    """Three rounds against the method written out by hand from the clients' raw replies."""
    strategy = FedGLAD(server_learning_rate=0.5, gamma=0.1, groups=groups, **OFF)
    result = run(strategy, rounds=4, dtype=np.float64)
    state = {key: array.numpy() for key, array in weights(np.float64).items()}
    names = ["a", "b", "frozen"]
    members = {"tensor": [["a"], ["b"], ["frozen"]], "model": [names]}.get(str(groups), [["a", "frozen"], ["b"]])
    adapter = ServerStepAdapter(gamma=0.1, groups=len(members))
    p = np.arange(1.0, 5.0) / 10
    for server_round in range(1, 5):
        replies = []
        for client in range(4):
            rng = np.random.default_rng((client, server_round))
            changes = {key: rng.normal(size=state[key].shape) + 0.3 for key in sorted(state)}
            changes["frozen"] = np.zeros(2)
            changes["bn.num_batches_tracked"] = np.array(1.0)
            replies.append(changes)
        values = []
        for group in members:
            g = np.stack([np.concatenate([reply[key].ravel() for key in group]) for reply in replies])
            values.append(gsi(g, p)[0])
        factors = adapter.update(np.array(values))
        for key in state:
            mean = sum(weight * reply[key] for weight, reply in zip(p, replies, strict=True))
            factor = next((0.5 * f for f, group in zip(factors, members, strict=True) if key in group), 1.0)
            state[key] = state[key] + factor * mean
    for key, value in arrays_of(result).items():
        np.testing.assert_allclose(value, state[key], rtol=1e-10, err_msg=key)


def test_adams_final_step_is_scaled_not_its_pseudo_gradient() -> None:
    """With moments of Adam unscaled, the scaled arm's moments equal the plain arm's in the first two rounds."""

    class Half:
        def update(self, indicators: np.ndarray, round_index: int) -> np.ndarray:
            return np.full(len(indicators), 0.5)

    plain, scaled = FedAdam(eta=0.05, **OFF), GLADAdam(eta=0.05, **OFF)
    scaled.adapter = Half()
    before = weights()["a"].numpy()
    full = arrays_of(run(plain, rounds=1))["a"] - before
    half = arrays_of(run(scaled, rounds=1))["a"] - before
    np.testing.assert_allclose(half, 0.5 * full, rtol=1e-4)
    np.testing.assert_array_equal(plain.m_t["a"], scaled.m_t["a"])
    np.testing.assert_array_equal(plain.v_t["a"], scaled.v_t["a"])


def test_momentum_strategy_continues_from_the_rescaled_arrays() -> None:
    strategy = GLADAvgM(server_learning_rate=0.7, server_momentum=0.8, glad=Config(gamma=0.5), **OFF)
    result = run(strategy, rounds=6)
    for key, value in arrays_of(result).items():
        np.testing.assert_array_equal(strategy.current_arrays[key].numpy(), value)


def test_statistics_and_counters_are_never_rescaled() -> None:
    plain = arrays_of(run(FedAvg(**OFF), rounds=1))
    ours = arrays_of(run(FedGLAD(server_learning_rate=0.5, **OFF), rounds=1))
    for key in ("bn.running_var", "bn.num_batches_tracked", "frozen"):
        np.testing.assert_array_equal(ours[key], plain[key])
    assert not np.allclose(ours["a"], plain["a"])


def test_explicit_list_decides_what_is_adapted() -> None:
    plain = arrays_of(run(FedAvg(**OFF), rounds=1))
    ours = arrays_of(run(FedGLAD(server_learning_rate=0.5, trainable=["b"], **OFF), rounds=1))
    np.testing.assert_array_equal(ours["a"], plain["a"])
    assert not np.allclose(ours["b"], plain["b"])
    with pytest.raises(UserError, match="nonsense"):
        run(FedGLAD(trainable=["nonsense"], **OFF))
    with pytest.raises(UserError, match="group"):
        run(FedGLAD(groups={"a": "x"}, **OFF))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_device_and_dtype_follow_inputs(dtype: type) -> None:
    result = arrays_of(run(FedGLAD(server_learning_rate=0.5, **OFF), dtype=dtype))
    assert result["a"].dtype == result["b"].dtype == dtype
    assert np.isfinite(result["a"]).all()


def test_metrics_reach_the_result() -> None:
    result = run(FedGLAD(server_learning_rate=0.5, **OFF), rounds=3)
    first, last = (result.train_metrics_clientapp[r] for r in (1, 3))
    assert first["loss"] == pytest.approx(1.0)  # the clients' own metrics are still there
    assert first["gsi"] > 1
    assert first["gsi_ratio"] == 1.0
    assert first["server_lr"] == pytest.approx(0.5)
    assert len(last["gsi_by_group"]) == len(last["server_lr_by_group"]) == 3
    assert last["gsi_by_group"][2] == 1.0  # the frozen tensor
    steps = np.array(last["server_lr_by_group"][:2])
    assert steps.min() <= last["server_lr"] <= steps.max()


@pytest.mark.parametrize("kind", ["nan", "nan_statistic", "shape", "keys", "empty"])
def test_round_completes_without_a_broken_client(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    broken = run(FedGLAD(**OFF), rounds=2, nodes=4, bad={3: kind})
    without = run(FedGLAD(**OFF), rounds=2, nodes=3)
    for key, value in arrays_of(broken).items():
        np.testing.assert_allclose(value, arrays_of(without)[key], rtol=1e-5, atol=1e-6)
    assert broken.train_metrics_clientapp[1]["gsi_refused"] == 1


def test_a_refusal_is_said(caplog: pytest.LogCaptureFixture) -> None:
    import logging

    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    try:
        grid = LocalGrid(noisy_app(bad={1: "nan"}), 3)
        FedGLAD(**OFF).start(grid, weights(), num_rounds=1)
    finally:
        logger.removeHandler(caplog.handler)
    assert "reply of node 2 was left out: it holds values that are not finite" in caplog.text


def test_rounds_without_any_reply_change_nothing() -> None:
    with quiet_flower(level=60):
        grid = LocalGrid(noisy_app(), 3, error_rate=1.0)
        result = FedGLAD(**OFF).start(grid, weights(), num_rounds=2)
    assert not result.arrays
    rounds = run(FedGLAD(**OFF), rounds=2, nodes=2, bad={0: "nan", 1: "shape"})
    assert not rounds.arrays


def test_one_long_orthogonal_update_enlarges_everyones_step() -> None:
    """The weakness that the docstring warns of; the audit names the client."""
    fair, unfair = FedGLAD(groups="model", **OFF), FedGLAD(groups="model", **OFF)
    run(fair, rounds=30, nodes=6)
    run(unfair, rounds=30, nodes=6, bad={0: "long"})
    assert np.mean([r.gsi for r in unfair.history]) > np.mean([r.gsi for r in fair.history])
    finding = next(f for f in report(unfair.history).findings if f.name == "longest update")
    assert finding.verdict == "finding"
    assert "client 1" in finding.meaning


def test_order_of_replies_and_keys_does_not_matter() -> None:
    strategies = [FedGLAD(gamma=0.3, server_learning_rate=0.5, **OFF) for _ in range(2)]
    results = []
    for strategy, flip in zip(strategies, (False, True), strict=True):
        grid = LocalGrid(noisy_app(), 4)
        arrays = weights(np.float64)
        for server_round in (1, 2, 3):
            with quiet_flower():
                messages = sorted(
                    strategy.configure_train(server_round, arrays, ConfigRecord(), grid),
                    key=lambda message: message.metadata.dst_node_id,
                )
                replies = list(grid.send_and_receive(messages))
                if flip:
                    replies = replies[::-1]
                    for reply in replies:
                        record_ = reply.content["arrays"]
                        reply.content["arrays"] = ArrayRecord({key: record_[key] for key in reversed(list(record_))})
                arrays, _ = strategy.aggregate_train(server_round, replies)
        results.append({key: array.numpy() for key, array in arrays.items()})
    for key, value in results[0].items():
        np.testing.assert_allclose(value, results[1][key], rtol=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [{"beta": 1.0}, {"gamma": -1.0}, {"gamma_max": -0.1}, {"server_learning_rate": 0.0}, {"dp_noise_std": -1.0}],
)
def test_bad_settings_are_refused(arguments: dict) -> None:
    with pytest.raises(UserError):
        Config(**arguments)
    with pytest.raises(UserError, match="groups"):
        Config(groups="layer")
    with pytest.raises(UserError, match="configure_train"):
        FedGLAD(**OFF).aggregate_train(1, [])


def test_noise_setting_reaches_the_indicator() -> None:
    plain, corrected = FedGLAD(**OFF), FedGLAD(dp_noise_std=0.9, **OFF)
    run(plain, rounds=1)
    run(corrected, rounds=1)
    assert corrected.history[0].gsi < plain.history[0].gsi


def test_indicator_of_moments_is_that_of_the_updates() -> None:
    g, p = np.random.default_rng(0).normal(size=(3, 8)), np.array([0.2, 0.3, 0.5])
    moments = p @ (g**2).sum(axis=1), ((p @ g) ** 2).sum()
    assert float(indicator(*moments, p)) == pytest.approx(gsi(g, p)[0])


def test_study_judges_draws_as_the_definitions_say() -> None:
    from transfuse.studies.federated.fedglad_worlds import judge_draws

    rng = np.random.default_rng(0)
    g, sizes, counts = rng.normal(size=(7, 20)) + 0.5, rng.integers(1, 9, 7).astype(float), rng.integers(0, 5, (7, 3))
    draws = np.array([[1, 0, 1, 0, 0, 2, 0], [0, 1, 0, 0, 1, 0, 1]], dtype=float)  # a client twice in the first
    values, best, distances = judge_draws(g @ g.T, draws, sizes, counts)
    overall = sizes @ g / sizes.sum()
    for row, draw in enumerate(draws):
        p = draw * sizes / (draw * sizes).sum()
        mean = p @ g
        assert values[row] == pytest.approx(gsi(g, p)[0])
        assert best[row] == pytest.approx(mean @ overall / (mean @ mean))
        steps = np.linspace(best[row] - 0.1, best[row] + 0.1, 21)  # the step that comes nearest to everyone's update
        assert np.linalg.norm(steps[:, None] * mean - overall, axis=1).argmin() == 10
        pool, everyone = draw @ counts, counts.sum(axis=0)
        assert distances[row] == pytest.approx(0.5 * np.abs(pool / pool.sum() - everyone / everyone.sum()).sum())


# ---------------------------------------------------------------- history and audit


def rounds_of(rng: np.random.Generator, effect: float = 0.0, rounds: int = 80) -> list[dict]:
    """Random draws of 5 from 30 clients; with an effect, rounds with client 7 have a lower indicator."""
    result = []
    for number in range(1, rounds + 1):
        clients = [int(c) for c in rng.choice(30, 5, replace=False)]
        value = 1.8 + 0.1 * rng.normal() - effect * (7 in clients)
        result.append({"round": number, "gsi": float(max(value, 1.0)), "clients": clients})
    return result


def test_report_lists_the_lowest_ratios_with_clients_and_distance() -> None:
    history = rounds_of(np.random.default_rng(0), effect=0.5)
    counts = {client: [10, 0] if client == 7 else [5, 5] for client in range(30)}
    rows = negative_sampling_report(history, counts)
    assert len(rows) == 8
    assert [row.ratio for row in rows] == sorted(row.ratio for row in rows)
    assert sum(7 in row.clients for row in rows) >= 6
    assert all(row.distance > 0.05 for row in rows if 7 in row.clients)
    assert negative_sampling_report(history)[0].distance is None


def test_audit_finds_the_client_and_stays_silent_without_an_effect() -> None:
    found = report(rounds_of(np.random.default_rng(1), effect=0.5), draws=400)
    effect = next(f for f in found.findings if f.name == "client effect")
    assert (effect.verdict, found.exit_code) == ("finding", 1)
    assert "client 7" in effect.meaning
    flags = [report(rounds_of(np.random.default_rng(100 + s)), draws=200).exit_code for s in range(60)]
    assert sum(flags) <= 8  # 5 % of 60 is 3; more than 8 has probability below 1 %


def test_audit_sees_one_sided_pools() -> None:
    rng = np.random.default_rng(0)
    counts = {str(client): np.eye(5)[client % 5] * 10 for client in range(30)}
    history = rounds_of(rng)
    for item in history:
        classes = len({client % 5 for client in item["clients"]})
        item["gsi"] = 1.2 + 0.1 * classes + 0.03 * abs(rng.normal())
    result = report(history, counts, draws=400)
    pools = next(f for f in result.findings if f.name == "one-sided pools")
    assert pools.verdict == "finding"
    assert pools.value < -0.5
    assert result.false_alarm_rate == pytest.approx(0.05, abs=0.03)


def test_audit_reads_all_three_forms(tmp_path: Path) -> None:
    strategy = FedGLAD(groups="model", **OFF)
    run(strategy, rounds=25)
    lines, table, whole = (tmp_path / f"rounds.{suffix}" for suffix in ("jsonl", "csv", "json"))
    write_history(strategy.history, lines)
    items = [json.loads(line) for line in lines.read_text().splitlines()]
    rows = [f"{item['round']},{item['gsi']},{';'.join(map(str, item['clients']))}" for item in items]
    table.write_text("\n".join(["round,gsi,clients", *rows]))
    bare = [{**{key: item[key] for key in ("update_norms", "weights")}, "mean_update_norm": 1.0} for item in items]
    whole.write_text(json.dumps({"rounds": bare}))
    values = [audit(path, draws=200) for path in (lines, table)]
    assert values[0].findings[0].value == pytest.approx(values[1].findings[0].value)
    assert audit(whole, draws=200).false_alarm_rate is None  # no clients, nothing to test
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({str(node): [node, 1] for node in range(1, 5)}))
    assert audit(lines, labels=labels, draws=200).environment["rounds"] == 25


def test_indicator_is_computed_from_norms_where_it_is_not_given() -> None:
    g, p = np.random.default_rng(0).normal(size=(4, 6)), np.array([1.0, 2.0, 3.0, 4.0])
    item = {
        "update_norms": np.linalg.norm(g, axis=1).tolist(),
        "weights": p.tolist(),
        "mean_update_norm": float(np.linalg.norm(p @ g / p.sum())),
    }
    assert negative_sampling_report([item])[0].gsi == pytest.approx(gsi(g, p)[0])


def test_ratios_of_a_history_are_those_of_the_adapter() -> None:
    strategy = FedGLAD(groups="model", **OFF)
    result = run(strategy, rounds=12)
    logged = [result.train_metrics_clientapp[r]["gsi_ratio"] for r in range(1, 13)]
    np.testing.assert_allclose(ratios(strategy.history), logged, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", "{", "cannot be read as a history"),
        ("a.json", "[]", "no list of rounds"),
        ("a.json", '[{"loss": 1}]', "gsi, or update_norms"),
        ("a.json", '[{"gsi": "high"}]', "numbers"),
        ("a.json", '[{"gsi": 0.2}]', "at least 1"),
        ("a.jsonl", '{"gsi": 1.5}', "at least 20"),
        ("a.csv", "round,gsi\n1,nan\n", "at least 1"),
    ],
)
def test_malformed_histories_give_one_clear_line(tmp_path: Path, name: str, text: str, expected: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
        audit(path)


def test_missing_history_gives_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        audit(tmp_path / "nothing.json")
