"""Fed-MNMT: clusters and means against brute force, adapters in real models, the strategy in Flower, broken clients."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from transfuse.errors import UserError
from transfuse.hosts.flower.checkpoint import Checkpointed
from transfuse.hosts.flower.client_sampling import SampledStrategy, UniformSampler
from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.fed_mnmt import (
    ClusteredFedAvg,
    Config,
    by_stack,
    cluster_means,
    family_labels,
    gradient_labels,
    mean_of,
    random_labels,
    sketch,
)
from transfuse.methods.federated.language_families import LANGUAGE_FAMILIES, TED2020_FAMILIES, family_of
from transfuse.methods.federated.node_queries import answer_describe, answer_gradient

OFF = {"fraction_evaluate": 0.0}
LANGUAGES = [("de", "fr"), ("nl", "es"), ("es", "de"), ("pt", "sk"), ("pl", "nl"), ("cs", "it")]  # two a family


def record(**arrays: Any) -> ArrayRecord:
    return ArrayRecord({key.replace("__", "."): Array(np.asarray(value)) for key, value in arrays.items()})


def weights(dtype: type = np.float32) -> ArrayRecord:
    rng = np.random.default_rng(0)
    return record(
        m__encoder__w=rng.normal(size=(3, 4)).astype(dtype),
        m__decoder__w=rng.normal(size=(2, 2)).astype(dtype),
        m__decoder__encoder_attn=rng.normal(size=5).astype(dtype),
        m__shared=rng.normal(size=2).astype(dtype),
        m__encoder__steps=np.array(7),
    )


def change(client: int, server_round: int, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """What a client adds to an array in a round."""
    seed = [client, server_round, *key.encode()]
    return np.random.default_rng(seed).normal(size=shape)


def app_of(bad: dict[int, str] | None = None, told: Any = LANGUAGES) -> ClientApp:
    """Clients that add their `change` to floats and one to counters; `bad` partitions misbehave."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        server_round = int(message.content["config"]["server-round"])
        kind = (bad or {}).get(client, "")
        if kind == "raise":
            raise RuntimeError("out of memory")
        arrays = {}
        for key, array in message.content["arrays"].items():
            value = array.numpy()
            step = 1 if value.dtype.kind == "i" else change(client, server_round, key, value.shape)
            arrays[key] = (value + step).astype(value.dtype)
        if kind == "nan":
            arrays["m.encoder.w"] = np.full_like(arrays["m.encoder.w"], np.nan)
        elif kind == "shape":
            arrays["m.encoder.w"] = arrays["m.encoder.w"][:1]
        elif kind == "keys":
            del arrays["m.shared"]
        examples = 0 if kind == "empty" else client + 1
        metrics = {"num-examples": examples, "loss": float("nan") if kind == "nan_loss" else float(client)}
        if kind == "metrics":
            metrics["extra"] = 1.0
        content = {"arrays": ArrayRecord({k: Array(np.asarray(v)) for k, v in arrays.items()}),
                   "metrics": MetricRecord(metrics)}  # fmt: skip
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        mean = float(message.content["arrays"]["m.encoder.w"].numpy().mean())
        metrics = MetricRecord({"num-examples": 1, "loss": abs(mean)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    def facts(context: Context) -> dict[str, str]:
        client = int(context.node_config["partition-id"])
        return dict(zip(("source", "target"), told[client], strict=True)) if told[client] else {}

    def gradient(message: Message, context: Context) -> dict[str, np.ndarray]:
        client = int(context.node_config["partition-id"])
        source, target = LANGUAGES[client]
        found = {}
        for key, array in message.content["arrays"].items():
            language = source if by_stack(key) == "encoder" else target
            side = sorted(set(LANGUAGE_FAMILIES.values())).index(family_of(language))
            noise = np.random.default_rng(client).normal(size=array.shape)
            found[key] = change(side, 99, key, array.shape) + 0.1 * noise
        return found

    return answer_gradient(answer_describe(app, facts), gradient, sketch)


def run(strategy: FedAvg, rounds: int = 3, nodes: int = 6, dtype: type = np.float32, app: Any = None, **grid: Any):
    random.seed(0)  # Flower draws the order of clients from the global generator, and sums follow that order
    with quiet_flower(level=60):
        return strategy.start(LocalGrid(app or app_of(), nodes, **grid), weights(dtype), num_rounds=rounds)


def by_hand(labels: dict[str, list[Any]], rounds: int = 3, clients: int = 6) -> list[dict[str, np.ndarray]]:
    """The models of all clients after some rounds, written out in float64."""
    models = [{key: array.numpy().astype(np.float64) for key, array in weights().items()} for _ in range(clients)]
    for server_round in range(1, rounds + 1):
        for client, model in enumerate(models):
            for key, value in model.items():
                step = 1.0 if key.endswith("steps") else change(client, server_round, key, value.shape)
                model[key] = value + step
        for key in models[0]:
            stacked = np.stack([model[key].reshape(-1) for model in models])
            for model, row in zip(models, cluster_means(stacked, labels[by_stack(key)]), strict=True):
                model[key] = row.reshape(model[key].shape)
    return models


# ---------------------------------------------------------------- equations


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_cluster_means_equal_brute_force(labels: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, p = rng.normal(size=(len(labels), 3)), rng.uniform(0.1, 3, len(labels))
    for weight in (np.ones(len(labels)), p):
        means = cluster_means(x, labels, weight)
        for i, label in enumerate(labels):
            members = [j for j, other in enumerate(labels) if other == label]
            expected = sum(weight[j] * x[j] for j in members) / sum(weight[j] for j in members)
            np.testing.assert_allclose(means[i], expected)
            vectors = [x[j] for j in members]
            np.testing.assert_allclose(mean_of(vectors, [weight[j] for j in members]), expected)
    np.testing.assert_allclose(cluster_means(means, labels, p), means)  # a mean of means changes nothing


def test_weights_do_not_matter_among_equal_sizes() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3))
    np.testing.assert_allclose(cluster_means(x, "aabb", [7] * 4), cluster_means(x, "aabb"))


def test_counters_are_rounded_and_small_floats_keep_their_dtype() -> None:
    assert mean_of([np.array([1]), np.array([2]), np.array([2])]).tolist() == [2]
    half = mean_of([np.array([1.0], np.float16), np.array([2.0], np.float16)])
    assert half.dtype == np.float16 and half.tolist() == [1.5]


def test_parts_split_the_stacks_and_cross_attention_is_the_decoders() -> None:
    assert by_stack("model.encoder.layers.0.self_attn_adapter.down.weight") == "encoder"
    assert by_stack("model.decoder.layers.0.encoder_attn_layer_norm.weight") == "decoder"
    assert by_stack("base_model.model.model.decoder.layers.0.encoder_attn.q_proj.lora_A.default.weight") == "decoder"
    assert by_stack("model.shared.weight") == "shared"


def test_families() -> None:
    assert family_labels(["de", "nl_XX", "pt-br", "xx"]) == ["germanic", "germanic", "romance", "xx"]
    assert family_labels(["zh", "th"], TED2020_FAMILIES) == ["zh-en-th"] * 2
    assert len(LANGUAGE_FAMILIES) == len(set(LANGUAGE_FAMILIES))


def test_random_clusters_have_the_sizes_of_the_families() -> None:
    labels = list("aaabbc")
    dealt = random_labels(labels, np.random.default_rng(0))
    assert sorted(dealt) == labels and dealt != labels


def test_gradient_clusters_find_directions_whatever_the_lengths() -> None:
    rng = np.random.default_rng(0)
    centres, truth = rng.normal(size=(3, 50)), [0, 0, 0, 1, 1, 2, 2, 2]
    x = np.stack([centres[t] + 0.3 * rng.normal(size=50) for t in truth]) * rng.uniform(0.1, 9, (8, 1))
    assert adjusted_rand_score(truth, gradient_labels(x, 3)) == 1.0
    assert gradient_labels(x[:2], 3) == [0, 1]
    with pytest.raises(UserError):
        gradient_labels(np.zeros((3, 2)), 2)


def test_sketches_keep_cosines_and_do_not_depend_on_order() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=4000)
    a, b = (
        {"x": (shared + rng.normal(size=4000))[:1000].reshape(10, 100), "y": shared[1000:] + rng.normal(size=3000)}
        for _ in range(2)
    )
    flat = [np.concatenate([g["x"].ravel(), g["y"]]) for g in (a, b)]
    exact = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    s, t = sketch(a, 256), sketch(b, 256)
    assert s @ t / np.linalg.norm(s) / np.linalg.norm(t) == pytest.approx(exact, abs=0.15)
    np.testing.assert_allclose(sketch({"y": a["y"], "x": a["x"]}, 256), s)
    np.testing.assert_allclose(sketch({k: 2 * v for k, v in a.items()}, 256), 2 * s)


# ---------------------------------------------------------------- the strategy in Flower


def test_degenerate_setting_equals_baseline() -> None:
    """One weighted cluster is FedAvg."""
    plain = run(FedAvg(**OFF)).arrays
    ours = run(ClusteredFedAvg(clusters="all", weighted=True, **OFF)).arrays
    for key in plain:
        if not key.endswith("steps"):
            np.testing.assert_allclose(ours[key].numpy(), plain[key].numpy(), rtol=2e-6, atol=1e-6)


FAMILIES = {"encoder": list("ggrrss"), "decoder": list("rrgsgr"), "shared": ["all"] * 6}


@pytest.mark.parametrize("roundtrip", [False, True])
def test_works_in_host(roundtrip: bool) -> None:
    """Three rounds against the method written out: each client ends with its own combination of two clusters."""
    strategy = ClusteredFedAvg(**OFF)
    result = run(strategy, roundtrip=roundtrip)
    models = by_hand(FAMILIES)
    for client, model in enumerate(models):
        own = strategy.node_arrays(client + 1)
        assert list(own) == list(weights())
        for key, value in model.items():
            np.testing.assert_allclose(own[key].numpy(), value, rtol=1e-5, atol=1e-6, err_msg=f"{client} {key}")
    for key in models[0]:
        mean = np.mean([model[key] for model in models], axis=0)
        np.testing.assert_allclose(result.arrays[key].numpy(), mean, rtol=1e-5, atol=1e-6)
    assert strategy.labels["encoder"][1] == strategy.labels["encoder"][2] == "germanic"
    assert strategy.labels["decoder"][1] == strategy.labels["decoder"][2] == strategy.labels["decoder"][6] == "romance"


@pytest.mark.parametrize("kind", ["gradient", "lists", "none", "all"])
def test_every_clustering_against_the_method_written_out(kind: str) -> None:
    lists = {"encoder": [[0, 1], [2, 3], [4, 5]], "decoder": [[0, 1, 5], [2, 4], [3]]}
    labels = {"gradient": FAMILIES, "lists": FAMILIES, "all": {p: ["all"] * 6 for p in FAMILIES}}.get(
        kind, {p: list(range(6)) for p in FAMILIES}
    )
    strategy = ClusteredFedAvg(clusters=lists if kind == "lists" else kind, **OFF)  # type: ignore[arg-type]
    run(strategy)
    for client, model in enumerate(by_hand(labels)):
        for key, value in model.items():
            own = strategy.node_arrays(client + 1)[key].numpy()
            np.testing.assert_allclose(own, value, rtol=1e-5, atol=1e-6, err_msg=f"{client} {key}")


def test_random_clusters_are_seeded_and_as_large_as_families() -> None:
    first, again, other = (ClusteredFedAvg(clusters="random", seed=seed, **OFF) for seed in (3, 3, 4))
    for strategy in (first, again, other):
        run(strategy, rounds=1)
    assert first.labels == again.labels != other.labels
    assert sorted(first.labels["encoder"].values()) == sorted(family_labels([s for s, _ in LANGUAGES]))
    counted = ClusteredFedAvg(clusters="random", count=2, **OFF)
    run(counted, rounds=1)
    assert sorted(counted.labels["encoder"].values()) == [0, 0, 0, 1, 1, 1]


def test_any_parts_and_labels() -> None:
    """A personalised head by clinic, and the rest shared by all."""
    told = [("x", "y")] * 3 + [("z", "y")] * 3
    strategy = ClusteredFedAvg(
        part_of=lambda key: "head" if key == "m.decoder.w" else "body", attributes={"head": "source"}, **OFF
    )
    run(strategy, app=app_of(told=told))
    assert len(set(strategy.labels["body"].values())) == 1
    assert [strategy.labels["head"][n] for n in range(1, 7)] == list("xxxzzz")


def test_bytes_on_the_wire_are_those_of_the_arrays() -> None:
    strategy = ClusteredFedAvg(**OFF)
    result = run(strategy, rounds=2)
    one = weights().count_bytes()
    assert [(b.down, b.up) for b in strategy.bytes] == [(6 * one, 6 * one)] * 2
    assert result.train_metrics_clientapp[2]["bytes-up"] == 6 * one


@pytest.mark.parametrize("kind", ["nan", "shape", "keys", "empty", "nan_loss", "metrics", "raise"])
def test_a_broken_client_is_left_out_by_name(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """The round completes, the log names the node, the others' means are theirs alone."""
    strategy = ClusteredFedAvg(**OFF)
    with caplog.at_level("INFO", logger="flwr"):
        import logging

        logging.getLogger("flwr").addHandler(caplog.handler)
        random.seed(0)
        result = strategy.start(LocalGrid(app_of({0: kind}), 6), weights(), num_rounds=1)
        logging.getLogger("flwr").removeHandler(caplog.handler)
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    assert result.train_metrics_clientapp[1]["replies-left-out"] == 1
    assert any("node 1" in entry.getMessage() for entry in caplog.records)
    expected = weights()["m.encoder.w"].numpy() + change(1, 1, "m.encoder.w", (3, 4))  # the other Germanic client
    for node in (1, 2):
        np.testing.assert_allclose(strategy.node_arrays(node)["m.encoder.w"].numpy(), expected, rtol=1e-5)


def test_a_round_without_any_usable_reply_changes_nothing() -> None:
    strategy = ClusteredFedAvg(**OFF)
    result = run(strategy, app=app_of(dict.fromkeys(range(6), "nan")))
    for key, array in weights().items():
        np.testing.assert_array_equal(result.arrays[key].numpy(), array.numpy())


def test_dropped_clients_are_survived() -> None:
    strategy = ClusteredFedAvg(**OFF)
    result = run(strategy, rounds=6, drop_rate=0.3, error_rate=0.2)
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    left_out = sum(int(m["replies-left-out"]) for m in result.train_metrics_clientapp.values())
    assert 6 <= left_out <= 30


def test_nodes_that_do_not_describe_themselves_are_averaged_alone() -> None:
    strategy = ClusteredFedAvg(**OFF)
    run(strategy, app=app_of(told=[*LANGUAGES[:5], None]))
    alone = by_hand({"encoder": list(range(6)), "decoder": list(range(6)), "shared": ["all"] * 6})[5]
    np.testing.assert_allclose(strategy.node_arrays(6)["m.encoder.w"].numpy(), alone["m.encoder.w"], rtol=1e-5)


def test_a_late_node_joins_its_family_and_starts_from_its_parameters() -> None:
    grid, strategy = LocalGrid(app_of(), 6), ClusteredFedAvg(**OFF)
    late = grid.contexts.pop(2)
    with quiet_flower(60):
        arrays = strategy.start(grid, weights(), num_rounds=1).arrays
        grid.contexts[2] = late
        messages = {m.metadata.dst_node_id: m for m in strategy.configure_train(2, arrays, ConfigRecord(), grid)}
    first, second = (messages[n].content["arrays"]["m.encoder.w"].numpy() for n in (1, 2))
    np.testing.assert_array_equal(first, second)
    assert strategy.labels["encoder"][2] == "germanic"


def test_the_best_round_is_kept() -> None:
    strategy = ClusteredFedAvg()
    result = run(strategy, rounds=5)
    losses = {r: float(m["loss"]) for r, m in result.evaluate_metrics_clientapp.items()}
    assert strategy.best_round == min(losses, key=losses.__getitem__)
    again = ClusteredFedAvg(**OFF)
    run(again, rounds=strategy.best_round)
    best, expected = strategy.node_arrays(3, best=True), again.node_arrays(3)
    for key in best:
        np.testing.assert_array_equal(best[key].numpy(), expected[key].numpy())


def test_partial_participation_and_a_paired_sampler() -> None:
    class Sampled(SampledStrategy, ClusteredFedAvg):
        """The same clients in every arm."""

    strategy = Sampled(sampler=UniformSampler(3, seed=1), **OFF)
    run(strategy, rounds=4)
    assert all(np.isfinite(a.numpy()).all() for n in range(1, 7) for a in strategy.node_arrays(n).values())
    assert [len(item.clients) for item in strategy.conflicts] == [3] * 4


@pytest.mark.parametrize("kind", ["family", "gradient", "random", "none"])
def test_resumed_federation_has_the_arrays_of_an_undisturbed_one(kind: str, tmp_path: Path) -> None:
    """The clusters' own parameters are part of the checkpoint; the mean over all would lose them."""
    whole = ClusteredFedAvg(clusters=kind, **OFF)
    run(Checkpointed(whole, tmp_path / "whole"), rounds=5)
    for rounds in (2, 4, 5):
        strategy = ClusteredFedAvg(clusters=kind, **OFF)
        result = run(Checkpointed(strategy, tmp_path / "parts"), rounds=rounds)
    assert strategy.labels == whole.labels
    for node in range(1, 7):
        ours, theirs = strategy.node_arrays(node), whole.node_arrays(node)
        for key in theirs:
            np.testing.assert_array_equal(ours[key].numpy(), theirs[key].numpy(), err_msg=f"{node} {key}")
    assert set(result.arrays) == set(whole.node_arrays(1))


def test_a_strategy_can_be_started_again() -> None:
    strategy = ClusteredFedAvg(**OFF)
    first = run(strategy).arrays
    second = run(strategy).arrays
    for key in first:
        np.testing.assert_array_equal(first[key].numpy(), second[key].numpy())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_device_and_dtype_follow_inputs(dtype: type) -> None:
    strategy = ClusteredFedAvg(**OFF)
    result = run(strategy, dtype=dtype)
    for key, array in weights(dtype).items():
        assert result.arrays[key].dtype == array.dtype
        assert strategy.node_arrays(1)[key].numpy().dtype == array.numpy().dtype
    x = torch.ones(2, 3, dtype=torch.float64)
    assert cluster_means(x.numpy(), "ab").dtype == np.float64


@pytest.mark.parametrize("wrong", [{"clusters": "colour"}, {"count": 0}, {"sketch_size": 1}])
def test_bad_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError):
        Config(**wrong)


def test_bad_lists_and_missing_languages_are_refused() -> None:
    with pytest.raises(UserError, match="twice"):
        run(ClusteredFedAvg(clusters={"encoder": [[0, 1], [1]]}, **OFF))
    with pytest.raises(UserError, match="count"):
        run(ClusteredFedAvg(clusters="random", **OFF), app=app_of(told=[None] * 6))
