"""RedGrape: equations against autograd and brute force, the client against the method written out, the strategy in
Flower with failing clients, its baseline CReFF, and the audit of uploads."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedProx
from torch import nn
from torch.nn import functional as F

from transfuse.errors import UserError
from transfuse.hosts.flower.checkpoint import Checkpointed
from transfuse.hosts.flower.client_sampling import SampledStrategy, UniformSampler
from transfuse.hosts.flower.cohort import LocalTraining, init_mlp
from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.hosts.flower.long_tail import binary_sizes, cut_long_tail, exponential_sizes
from transfuse.methods.federated.creff import CReFF, feature_gradients, match_features, train_classifier
from transfuse.methods.federated.gradient_prototypes import (
    RECORD,
    Prototypes,
    PrototypeTable,
    class_gradients,
    defended,
    matched,
    missing_mean,
    mixed,
    read_download,
    read_upload,
    upload_problem,
    write_download,
    write_upload,
)
from transfuse.methods.federated.prototype_leakage import Case, leakage, read_case, recover_features, report
from transfuse.methods.federated.redgrape import (
    Config,
    RebalancedHeadTrainer,
    RedGrape,
    RedGrapeMixin,
    audit,
    initial_arrays,
    redgrape_train,
    train_and_reply,
)
from transfuse.methods.federated.redgrape_client import SECOND, find_head
from transfuse.studies.federated.redgrape_cohort import LocalRule, RuleCohort, focal_factor

OFF = {"fraction_evaluate": 0.0}
CLASSES, WIDTH, INPUTS = 4, 5, 6
SMALL = Config(epochs=2, samples_per_class=3, rate=0.2)


class Paired(SampledStrategy, RedGrape):
    """RedGrape with draws that depend on a seed only."""


class PairedAvg(SampledStrategy, FedAvg):
    """FedAvg likewise."""


class Batches:
    """Batches of one client in an order that depends on seed, round and client, a new one an epoch."""

    def __init__(self, x: np.ndarray, y: np.ndarray, seed: object = 0, size: int = 4) -> None:
        self.x, self.y, self.size = torch.from_numpy(x), torch.from_numpy(y), size
        self.rng = np.random.default_rng(seed)  # type: ignore[arg-type]
        self.first = True

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.arange(len(self.y)) if self.first else torch.from_numpy(self.rng.permutation(len(self.y)))
        self.first = False  # the first pass is for the prototypes
        for start in range(0, len(order), self.size):
            rows = order[start : start + self.size]
            yield self.x[rows], self.y[rows]


def perceptron(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)).to(dtype)


def clients(count: int = 5, seed: int = 0, n: int = 14) -> list[tuple[np.ndarray, np.ndarray]]:
    """Clients that hold two or three classes each, in numbers that only sometimes reach three."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CLASSES, INPUTS)) * 2
    data = []
    for client in range(count):
        shares = rng.dirichlet(np.full(CLASSES, 0.6))
        y = rng.choice(CLASSES, n + client, p=shares)
        data.append(((centres[y] + rng.normal(size=(len(y), INPUTS))).astype(np.float32), y.astype(np.int64)))
    return data


def torch_app(
    data: list[tuple[np.ndarray, np.ndarray]], config: Config, bad: dict[int, str] | None = None
) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        server_round = int(message.content["config"]["server-round"])
        dtype = next(iter(message.content["arrays"].values())).numpy().dtype
        x, y = data[client]
        loader = Batches(x.astype(dtype), y, (server_round, client))
        model = perceptron().to(torch.from_numpy(np.zeros(1, dtype)).dtype)
        reply = train_and_reply(message, context, model, loader, config, head="2", seed=client)
        return spoil(reply, (bad or {}).get(client, ""))

    return app


def spoil(reply: Message, kind: str) -> Message:
    arrays, uploaded = reply.content["arrays"], reply.content[RECORD]
    if kind == "nan":
        arrays["2.weight"] = Array(np.full((CLASSES, WIDTH), np.nan, np.float32))
    elif kind == "shape":
        arrays["0.bias"] = Array(np.zeros(WIDTH + 1, np.float32))
    elif kind == "nan prototype":
        uploaded["weight"] = Array(np.full(tuple(uploaded["weight"].shape), np.inf, np.float32))
    elif kind == "wide prototype":
        uploaded["bias"] = Array(np.zeros((1, CLASSES + 2), np.float32))
    elif kind == "foreign class":
        uploaded["classes"] = Array(uploaded["classes"].numpy() + CLASSES)
    elif kind == "no prototypes":
        del reply.content[RECORD]
    return reply


def start_of(config: Config = SMALL, dtype: torch.dtype = torch.float32) -> ArrayRecord:
    return initial_arrays(perceptron(dtype=dtype), "2", config.share_second and config.second_classifier)


def run(
    config: Config, rounds: int = 3, data: list | None = None, strategy: FedAvg | None = None, **grid: object
) -> tuple[dict[str, np.ndarray], FedAvg, object]:
    data = clients() if data is None else data
    bad = grid.pop("bad", None)
    with quiet_flower(level=60):
        strategy = strategy or Paired(sampler=UniformSampler(len(data)), head="2", redgrape=config, **OFF)
        dtype = grid.pop("dtype", torch.float32)
        local = LocalGrid(torch_app(data, config, bad), len(data), **{"on_error": "raise", **grid})
        result = strategy.start(local, start_of(config, dtype), num_rounds=rounds)
    return {key: array.numpy() for key, array in result.arrays.items()}, strategy, result


# ---------------------------------------------------------------- equations


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_class_gradients_equal_autograd_sample_by_sample(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head, h = nn.Linear(WIDTH, CLASSES).to(dtype), torch.randn(30, WIDTH, dtype=dtype)
    y = torch.randint(0, CLASSES - 1, (30,))  # the last class is absent
    weight, bias, counts = class_gradients(head(h).detach(), h, y)
    assert counts.tolist() == torch.bincount(y, minlength=CLASSES).tolist()
    for label in range(CLASSES):
        rows = torch.nonzero(y == label).flatten()
        expected = [torch.zeros_like(head.weight), torch.zeros_like(head.bias)]
        for row in rows:
            loss = F.cross_entropy(head(h[row : row + 1]), y[row : row + 1])
            for total, part in zip(expected, torch.autograd.grad(loss, (head.weight, head.bias)), strict=True):
                total += part / len(rows)
        torch.testing.assert_close(weight[label], expected[0])
        torch.testing.assert_close(bias[label], expected[1])


def test_missing_mean_takes_known_classes_outside_the_balanced_ones_and_copies() -> None:
    rng = np.random.default_rng(0)
    known = Prototypes(np.array([0, 1, 3]), rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 4)))
    before = known.weight.copy()
    mean = missing_mean(known, np.array([True, False, False, False]))
    np.testing.assert_allclose(mean.weight, (known.weight[1] + known.weight[2]) / 2)
    np.testing.assert_allclose(mean.bias, (known.bias[1] + known.bias[2]) / 2)
    assert mean.averaged.tolist() == [False, True, False, True]  # class 2 is missing but has no prototype
    mean.weight[:] = 9.0
    np.testing.assert_array_equal(known.weight, before)
    assert missing_mean(known, np.ones(4, dtype=bool)) is None


def test_mix_and_norm() -> None:
    a, b = np.full((2, 2), 1.0), np.full((2, 2), 5.0)
    np.testing.assert_allclose(mixed(a, 3, b, 1), 2.0)
    assert mixed(a, 3, None, 0) is a
    assert mixed(None, 0, b, 4) is b
    for kind in (np.asarray, torch.as_tensor):
        scaled = matched(kind(a), kind(3 * b))
        assert float((scaled**2).sum()) ** 0.5 == pytest.approx(30.0)
    assert not matched(np.zeros(3), a).any()


def test_table_averages_clients_without_weights_and_keeps_absent_classes() -> None:
    rng = np.random.default_rng(0)
    one = Prototypes(np.array([0, 2]), rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3)))
    two = Prototypes(np.array([2]), rng.normal(size=(1, 3, 4)), rng.normal(size=(1, 3)))
    table = PrototypeTable(3, 4, max_age=1)
    assert table.update([one, two]).tolist() == [True, False, True]
    np.testing.assert_allclose(table.weight[2], (one.weight[1] + two.weight[0]) / 2, rtol=1e-6)
    np.testing.assert_allclose(table.bias[0], one.bias[0], rtol=1e-6)
    table.update([two])
    np.testing.assert_allclose(table.weight[0], one.weight[0], rtol=1e-6)  # nobody held class 0
    assert table.age.tolist() == [1, 2, 0]
    table.known().weight[:] = 0.0
    assert table.weight.any()
    table.update([two])
    assert table.have.tolist() == [False, False, True]  # class 0 has expired


@pytest.mark.parametrize("dense", [False, True])
def test_uploads_survive_the_wire(dense: bool) -> None:
    rng = np.random.default_rng(0)
    found = Prototypes(np.array([1, 3]), rng.normal(size=(2, 4, 5)), rng.normal(size=(2, 4)))
    record = write_upload(found, np.array([False, True, False, False]), dense)
    assert upload_problem(record, 4, 5) == ""
    assert "array" in upload_problem(record, 4, 6)
    assert ("balanced" in record) != dense  # a secure sum must not name a client's classes
    read = read_upload(record)
    np.testing.assert_array_equal(read.classes, found.classes)
    np.testing.assert_array_equal(read.weight, found.weight)


def test_download_of_the_mean_equals_that_of_everything() -> None:
    rng = np.random.default_rng(0)
    known = Prototypes(np.array([0, 1, 3]), rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 4)))
    balanced = np.array([True, False, False, False])
    short, whole = write_download(known, balanced), write_download(known, None)
    one, other = read_download(short, balanced), read_download(whole, balanced)
    np.testing.assert_array_equal(one.weight, other.weight)
    np.testing.assert_array_equal(one.averaged, other.averaged)
    assert read_download(write_download(known, np.ones(4, dtype=bool)), np.ones(4, dtype=bool)) is None
    assert read_download(short, np.array([True, True, False, False])) is None  # the client's data have changed


def test_clipping_and_noise_are_of_the_asked_size() -> None:
    rng = np.random.default_rng(0)
    found = Prototypes(np.arange(3), 5 * rng.normal(size=(3, 40, 50)), rng.normal(size=(3, 40)))
    clipped = defended(found, 2.0, 0.0, rng)
    norms = np.sqrt((clipped.weight**2).sum(axis=(1, 2)) + (clipped.bias**2).sum(axis=1))
    np.testing.assert_allclose(norms, 2.0)
    noisy = defended(found, None, 0.5, rng)
    assert (noisy.weight - found.weight).std() == pytest.approx(0.5, rel=0.1)
    assert found.weight.std() > 4  # untouched


# ---------------------------------------------------------------- the client


def written_out(
    state: dict[str, torch.Tensor],
    second: dict[str, torch.Tensor],
    batches: list[tuple[torch.Tensor, torch.Tensor]],
    balanced: tuple[torch.Tensor, torch.Tensor] | None,
    missing: tuple[torch.Tensor, torch.Tensor] | None,
    counts: tuple[int, int],
    config: Config,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Local steps of the sheet, by autograd on plain tensors."""
    p = {key: value.clone().requires_grad_() for key, value in state.items()}
    v = {key: value.clone().requires_grad_() for key, value in second.items()}
    both = [*p.values(), *v.values()]
    speed = [torch.zeros_like(value) for value in both]
    local, lacking = counts
    for x, y in batches:

        def encode(inputs: torch.Tensor) -> torch.Tensor:
            return torch.relu(inputs @ p["0.weight"].T + p["0.bias"])

        g = None
        if local + lacking:
            g = [torch.zeros_like(p["2.weight"]), torch.zeros_like(p["2.bias"])]
            if local:
                xb, yb = balanced
                logits = encode(xb).detach() @ p["2.weight"].T + p["2.bias"]
                real = torch.autograd.grad(F.cross_entropy(logits, yb), (p["2.weight"], p["2.bias"]))
                g = [total + local * part for total, part in zip(g, real, strict=True)]
            if lacking:
                g = [total + lacking * part for total, part in zip(g, missing, strict=True)]
            g = [part / (local + lacking) for part in g]
        h = encode(x)
        loss = F.cross_entropy(h @ (p["2.weight"] + v["weight"]).T + p["2.bias"] + v["bias"], y)
        grads = torch.autograd.grad(loss, both)
        by_name = dict(zip(p, grads, strict=False))
        if g is not None:
            g = [part * by_name[key].norm() / part.norm() for part, key in zip(g, ("2.weight", "2.bias"), strict=True)]
        factor = min(1.0, config.clip / (float(torch.sqrt(sum((grad**2).sum() for grad in grads))) + 1e-6))
        with torch.no_grad():
            for value, grad, velocity in zip(both, grads, speed, strict=True):
                velocity.mul_(config.momentum).add_(factor * grad)
                value -= config.rate * velocity
            if g is not None:
                p["2.weight"] -= config.rate * config.balance_rate * g[0]
                p["2.bias"] -= config.rate * config.balance_rate * g[1]
    return {key: value.detach() for key, value in p.items()}, {key: value.detach() for key, value in v.items()}


@pytest.mark.parametrize("case", ["first round", "mix", "nothing missing", "nothing balanced"])
def test_client_equals_the_method_written_out(case: str) -> None:
    """Classes with exactly T examples, so that the balanced set leaves no choice."""
    config = Config(epochs=3, samples_per_class=3, rate=0.2, clip=0.5)
    rng = np.random.default_rng(1)
    y = np.array([0, 0, 0, 1, 1, 1, 2]) if case != "nothing balanced" else np.array([0, 0, 1, 2])
    x = rng.normal(size=(len(y), INPUTS)).astype(np.float32)
    model = perceptron()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    second = {"weight": torch.randn(CLASSES, WIDTH) / 3, "bias": torch.randn(CLASSES) / 3}
    extra = copy.deepcopy(model[2])
    extra.load_state_dict(second)
    classes = np.array([0, 1]) if case == "nothing missing" else np.array([0, 1, 2])
    known = Prototypes(
        classes,
        rng.normal(size=(len(classes), CLASSES, WIDTH)).astype(np.float32),
        rng.normal(size=(len(classes), CLASSES)).astype(np.float32),
    )
    missing = None if case == "first round" else lambda balanced: missing_mean(known, balanced)
    result = redgrape_train(model, Batches(x, y, 7), missing, config, head="2", second=extra)
    loader = Batches(x, y, 7)
    list(loader)
    batches = [batch for _ in range(3) for batch in loader]
    balanced = torch.from_numpy(x[:6]), torch.from_numpy(y[:6])
    mean = missing_mean(known, result.balanced)
    tensors = None if mean is None else (torch.from_numpy(mean.weight), torch.from_numpy(mean.bias))
    counts = {"first round": (0, 0), "mix": (2, 1), "nothing missing": (2, 0), "nothing balanced": (0, 3)}[case]
    expected, expected_second = written_out(state, second, batches, balanced, tensors, counts, config)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
    for key, value in extra.state_dict().items():
        torch.testing.assert_close(value, expected_second[key], rtol=1e-4, atol=1e-5)
    assert result.balanced_steps == (0 if case == "first round" else len(batches))


def test_prototypes_are_those_of_the_received_deployed_model() -> None:
    x, y = clients(1, seed=3)[0]
    model = perceptron()
    before = copy.deepcopy(model)
    second = nn.Linear(WIDTH, CLASSES)  # must not count
    result = redgrape_train(model, Batches(x, y), None, SMALL, head="2", second=second)
    with torch.no_grad():
        h = before[:2](torch.from_numpy(x))
        weight, bias, counts = class_gradients(before(torch.from_numpy(x)), h, torch.from_numpy(y))
    held = np.flatnonzero(counts.numpy())
    np.testing.assert_array_equal(result.prototypes.classes, held)
    np.testing.assert_allclose(result.prototypes.weight, weight[held].numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.prototypes.bias, bias[held].numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(result.balanced, counts.numpy() >= 3)


def test_rare_classes_can_be_withheld() -> None:
    x, y = clients(1, seed=3)[0]
    found = redgrape_train(perceptron(), Batches(x, y), None, replace(SMALL, min_count=3), head="2").prototypes
    assert set(found.classes) == {k for k in range(CLASSES) if (y == k).sum() >= 3}


def test_balanced_set_is_drawn_anew_each_round_and_evenly() -> None:
    from transfuse.methods.federated.redgrape_client import HeadTap, _look

    y = np.repeat([0, 1], [12, 2])
    x = np.arange(len(y) * INPUTS, dtype=np.float32).reshape(len(y), INPUTS)
    model, times = perceptron(), np.zeros(12)
    rng = np.random.default_rng(0)
    for _ in range(300):
        tap = HeadTap(model[2], None)
        with tap.attached():
            result, (xb, yb) = _look(model, tap, Batches(x, y), replace(SMALL, samples_per_class=4), rng)
        assert yb.tolist() == [0] * 4  # class 1 has too few
        rows = (xb[:, 0] / INPUTS).long().tolist()
        assert len(set(rows)) == 4
        times[rows] += 1
    assert result.balanced.tolist() == [True, False, False, False]
    assert np.abs(times / 300 - 4 / 12).max() < 0.12  # each example equally often; standard deviation 0.027


class Normalised(nn.Module):
    """With batch normalisation and dropout, and a linear layer inside whose name could be taken for the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_inner, self.norm, self.drop = nn.Linear(INPUTS, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5)
        self.out = nn.Linear(WIDTH, CLASSES, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.drop(torch.relu(self.norm(self.fc_inner(x)))))


def test_balanced_pass_leaves_statistics_and_the_model_class_alone() -> None:
    x, y = clients(1, seed=3)[0]
    config = replace(SMALL, balance_rate=0.0, epochs=1)
    known = Prototypes(np.arange(CLASSES), np.ones((CLASSES, CLASSES, WIDTH), np.float32), np.ones((CLASSES,) * 2))
    states = []
    for balanced in (False, True):
        torch.manual_seed(0)
        model = Normalised().train()
        missing = (lambda mask: missing_mean(known, mask)) if balanced else None
        result = redgrape_train(model, Batches(x, y, 5), missing, config, head="out")
        states.append(model.state_dict())
        assert bool(result.balanced_steps) == balanced
        assert model.training and not model.out._forward_hooks
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key])
    assert int(states[0]["norm.num_batches_tracked"]) == -(-len(y) // 4)


def test_second_classifier_is_dropped_at_evaluation() -> None:
    x, y = clients(1)[0]
    model = perceptron()
    redgrape_train(model, Batches(x, y), None, SMALL, head="2", second=nn.Linear(WIDTH, CLASSES))
    plain = perceptron()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(torch.from_numpy(x)), plain(torch.from_numpy(x)))


def test_clipped_match_takes_the_clipped_norm() -> None:
    x, y = clients(1, seed=3)[0]
    known = Prototypes(np.arange(CLASSES), np.ones((CLASSES, CLASSES, WIDTH), np.float32), np.ones((CLASSES,) * 2))
    moved = {}
    for match in ("gradient", "clipped"):
        config = Config(epochs=1, balance_rate=1e4, match=match, clip=1e-4, samples_per_class=99)
        model = perceptron()
        before = model[2].weight.detach().clone()
        redgrape_train(model, Batches(x, y, size=99), lambda mask: missing_mean(known, mask), config, head="2")
        moved[match] = float((model[2].weight.detach() - before).norm())
    assert moved["clipped"] < 0.01 * moved["gradient"]


def test_head_is_found_and_named() -> None:
    assert find_head(Normalised(), None).out_features == CLASSES
    with pytest.raises(UserError, match="did you mean 'out'"):
        find_head(Normalised(), "outt")
    with pytest.raises(UserError, match=r"without a torch\.nn\.Linear"):
        find_head(nn.ReLU(), None)
    with pytest.raises(UserError, match=r"\(examples, width\)"):
        model = nn.Linear(INPUTS, CLASSES)
        redgrape_train(model, [(torch.zeros(2, 3, INPUTS), torch.zeros(2, dtype=torch.int64))], None, SMALL)
    with pytest.raises(UserError, match="out of range"):
        redgrape_train(perceptron(), [(torch.zeros(2, INPUTS), torch.tensor([0, 9]))], None, SMALL)


def test_one_machine_keeps_classes_that_went_missing() -> None:
    data = clients(1, seed=2, n=60)[0]
    trainer = RebalancedHeadTrainer(perceptron(), SMALL, seed=0)
    assert trainer.fit_round(Batches(*data)).balanced_steps == 0
    kept = data[1] < 2
    result = trainer.fit_round(Batches(data[0][kept], data[1][kept]))
    assert result.balanced_steps > 0
    assert trainer.table.have.sum() == len(np.unique(data[1]))


# ---------------------------------------------------------------- in Flower


def test_degenerate_setting_equals_baseline() -> None:
    """Without a balancing step and without V, RedGrape is FedAvg on plain local training, to the bit."""
    config = replace(SMALL, balance_rate=0.0, second_classifier=False)
    ours, _, _ = run(config)
    data, app = clients(), ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        model = perceptron()
        model.load_state_dict({k: torch.from_numpy(v.numpy().copy()) for k, v in message.content["arrays"].items()})
        loader = Batches(*data[client], (int(message.content["config"]["server-round"]), client))
        list(loader)
        optimiser = torch.optim.SGD(model.parameters(), lr=config.rate, momentum=config.momentum)
        for _ in range(config.epochs):
            for x, y in loader:
                optimiser.zero_grad()
                F.cross_entropy(model(x), y).backward()
                nn.utils.clip_grad_norm_(list(model.parameters()), config.clip)
                optimiser.step()
        reply = train_and_reply(message, context, perceptron(), Batches(*data[client]), config, head="2")
        del reply.content[RECORD]
        reply.content["arrays"] = initial_arrays(model, "2", shared=False)
        return reply

    with quiet_flower():
        plain = PairedAvg(sampler=UniformSampler(len(data)), **OFF)
        grid = LocalGrid(app, len(data), on_error="raise")
        result = plain.start(grid, start_of(config), num_rounds=3)
    for key, array in result.arrays.items():
        np.testing.assert_array_equal(ours[key], array.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_device_and_dtype_follow_inputs(dtype: torch.dtype) -> None:
    arrays, _, _ = run(SMALL, rounds=2, dtype=dtype)
    expected = np.float32 if dtype == torch.float32 else np.float64
    assert {value.dtype.type for value in arrays.values()} == {expected}
    weight, bias, counts = class_gradients(*(torch.zeros(2, 3, dtype=dtype),) * 2, torch.tensor([0, 1]))
    assert weight.dtype == bias.dtype == dtype
    assert counts.dtype == torch.int64
    if torch.cuda.is_available():
        moved = class_gradients(*(torch.zeros(2, 3, device="cuda"),) * 2, torch.tensor([0, 1], device="cuda"))
        assert all(part.device.type == "cuda" for part in moved)


def study_cohort(config: Config, data: list, **rule: object) -> RuleCohort:
    how = LocalTraining(config.epochs, 4, config.rate, config.momentum, config.clip)
    return RuleCohort(data, how, LocalRule(redgrape=config, uploads=True, **rule), seed=0)


def exact_clients() -> list[tuple[np.ndarray, np.ndarray]]:
    """Classes with three examples or fewer, so that a balanced set of three leaves no choice."""
    rng = np.random.default_rng(4)
    labels = ([0, 0, 0, 1, 1], [1, 1, 1, 2, 2, 2, 3], [3, 3], [0, 3, 3, 3], [2, 2, 2, 0, 0, 0, 1, 1, 1, 3, 3, 3])
    return [(rng.normal(size=(len(y), INPUTS)).astype(np.float32), np.array(y)) for y in labels]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"direction": "local"},
        {"direction": "prototypes"},
        {"second_classifier": False},
        {"match": "clipped", "clip": 0.3},
        {"count_missing": "all"},
        {"download": "all"},
    ],
    ids=str,
)
def test_works_in_host(changes: dict) -> None:
    """Rounds of torch clients in Flower against the study's batched arithmetic: two implementations of one method."""
    config = replace(SMALL, **changes)
    data = exact_clients()
    start = init_mlp((INPUTS, WIDTH, CLASSES), np.random.default_rng(0))
    if config.second_classifier:
        start |= {f"{SECOND}{key}": np.zeros_like(start[f"fc2.{key}"]) for key in ("weight", "bias")}
    app = ClientApp()

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc2(torch.relu(self.fc1(x)))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, server_round = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
        orders = np.random.default_rng((0, server_round, client))
        x, y = (torch.from_numpy(part) for part in data[client])
        epochs = orders.permuted(np.tile(np.arange(len(y)), (config.epochs, 1)), axis=1)
        passes = iter([np.arange(len(y)), *epochs])  # the first for the prototypes

        class Epochs:
            def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
                order = next(passes)
                yield from ((x[order[i : i + 4]], y[order[i : i + 4]]) for i in range(0, len(order), 4))

        return train_and_reply(message, context, Named(), Epochs(), config, head="fc2")

    results = []
    cohort = study_cohort(config, data)
    for client_app, prepare in ((app, None), (cohort.app, cohort.prepare)):
        with quiet_flower():
            strategy = Paired(sampler=UniformSampler(4, seed=1), head="fc2", redgrape=config, **OFF)
            grid = LocalGrid(client_app, len(data), before_round=prepare, on_error="raise", roundtrip=prepare is None)
            record = ArrayRecord({key: Array(value) for key, value in start.items()})
            results.append((strategy.start(grid, record, num_rounds=4).arrays, strategy))
    (ours, first), (batched, other) = results
    assert first.table.have.tolist() == other.table.have.tolist()
    np.testing.assert_allclose(first.table.weight, other.table.weight, atol=2e-5)
    for key in start:
        np.testing.assert_allclose(ours[key].numpy(), batched[key].numpy(), atol=2e-5, err_msg=key)


def test_placebo_has_the_size_of_the_step_but_not_its_rows() -> None:
    from transfuse.studies.federated.redgrape_cohort import balancing

    data, config = exact_clients(), SMALL
    rng = np.random.default_rng(0)
    known = Prototypes(
        np.arange(CLASSES),
        rng.normal(size=(CLASSES, CLASSES, WIDTH)).astype(np.float32),
        rng.normal(size=(CLASSES, CLASSES)).astype(np.float32),
    )
    missing = [lambda mask: missing_mean(known, mask)] * len(data)
    params = {key: np.tile(value, (len(data), *(1,) * value.ndim)) for key, value in
              init_mlp((INPUTS, WIDTH, CLASSES), rng).items()}  # fmt: skip
    found = []
    for placebo in (False, True):
        rngs = [np.random.default_rng(client) for client in range(len(data))]
        found.append(balancing(config, data, missing, rngs, (CLASSES, WIDTH), placebo).direction(params))
    for real, fake in zip(*found, strict=True):
        np.testing.assert_allclose(
            np.sort(real.reshape(len(data), -1)), np.sort(fake.reshape(len(data), -1)), rtol=1e-5
        )
        assert not np.allclose(real, fake)


def test_first_round_is_not_balanced_and_later_ones_are() -> None:
    strong, weak = replace(SMALL, balance_rate=1.0), replace(SMALL, balance_rate=0.0)
    one, two = run(strong, rounds=1)[0], run(weak, rounds=1)[0]
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])
    assert not np.allclose(run(strong, rounds=2)[0]["2.weight"], run(weak, rounds=2)[0]["2.weight"])


def test_what_is_sent_does_not_change_what_comes_out() -> None:
    base, strategy, result = run(SMALL, rounds=4)
    whole, _, all_result = run(replace(SMALL, download="all"), rounds=4)
    dense, other, _ = run(replace(SMALL, upload="dense"), rounds=4)
    for key in base:
        np.testing.assert_array_equal(base[key], whole[key])
        np.testing.assert_allclose(base[key], dense[key], atol=1e-6)
    sent = [outcome.train_metrics_clientapp[4]["redgrape_down_bytes"] for outcome in (result, all_result)]
    assert sent[0] < 0.5 * sent[1]
    assert len(strategy.balanced) == 5 and not other.balanced
    assert result.train_metrics_clientapp[1]["redgrape_down_bytes"] == 0


def test_unshared_second_classifier_stays_with_its_client() -> None:
    config = replace(SMALL, share_second=False)
    data = clients()
    grid = LocalGrid(torch_app(data, config), len(data), on_error="raise")
    with quiet_flower():
        strategy = Paired(sampler=UniformSampler(len(data)), head="2", redgrape=config, **OFF)
        result = strategy.start(grid, start_of(config), num_rounds=2)
    assert not [key for key in result.arrays if key.startswith(SECOND)]
    kept = [context.state[SECOND][f"{SECOND}weight"].numpy() for context in grid.contexts.values()]
    assert all(value.any() for value in kept)
    assert not np.allclose(kept[0], kept[1])


@pytest.mark.parametrize("kind", ["nan", "shape", "nan prototype", "wide prototype", "foreign class", "no prototypes"])
def test_round_completes_without_a_broken_client(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    data = clients()
    broken, strategy, result = run(SMALL, rounds=3, data=data, bad={4: kind})
    without, other, _ = run(SMALL, rounds=3, data=data[:4])
    assert result.train_metrics_clientapp[3]["redgrape_refused"] == 1
    for key in broken:
        np.testing.assert_allclose(broken[key], without[key], atol=1e-6)
    np.testing.assert_allclose(strategy.table.weight, other.table.weight, atol=1e-6)


@pytest.mark.parametrize("kind", ["nan", "shape"])
def test_a_third_of_the_clients_fail_and_one_sends_nonsense(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    data = clients(20)
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    try:
        strategy = Paired(sampler=UniformSampler(20), head="2", redgrape=SMALL, **OFF)
        grid = LocalGrid(torch_app(data, SMALL, {0: kind}), 20, error_rate=0.15, drop_rate=0.15, seed=3)
        result = strategy.start(grid, start_of(), num_rounds=6)
    finally:
        logger.removeHandler(caplog.handler)
    assert len(result.train_metrics_clientapp) == 6
    refused = [metrics["redgrape_refused"] for metrics in result.train_metrics_clientapp.values()]
    assert max(refused) == 1
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    assert np.isfinite(strategy.table.weight).all()
    assert "the reply of node 1 was left out" in caplog.text
    assert "failures" in caplog.text  # Flower counts the others


def test_a_round_without_any_reply_keeps_model_and_prototypes() -> None:
    with quiet_flower(level=60):
        strategy = Paired(sampler=UniformSampler(5), head="2", redgrape=SMALL, **OFF)
        grid = LocalGrid(torch_app(clients(), SMALL), 5, error_rate=1.0)
        result = strategy.start(grid, start_of(), num_rounds=2)
    assert not result.arrays
    assert not strategy.table.have.any()


def test_resumed_federation_has_the_arrays_of_an_undisturbed_one(tmp_path: Path) -> None:
    """Prototypes are part of the checkpoint: without them the first round after a restart would not be balanced."""

    def federate(path: str, rounds: int) -> dict[str, np.ndarray]:
        strategy = Checkpointed(RedGrape(head="2", redgrape=SMALL, **OFF), tmp_path / path)
        with quiet_flower():
            grid = LocalGrid(torch_app(clients(), SMALL), 5, on_error="raise")
            result = strategy.start(grid, start_of(), num_rounds=rounds)
        return {key: array.numpy() for key, array in result.arrays.items()}

    whole = federate("whole", 5)
    for rounds in (2, 4, 5):
        resumed = federate("parts", rounds)
    for key, values in whole.items():
        np.testing.assert_array_equal(resumed[key], values)
    with pytest.raises(UserError, match="prototypes of shape"):
        PrototypeTable(3, 2).restore(PrototypeTable(4, 2).state())


def test_on_top_of_another_strategy() -> None:
    class RedGrapeProx(RedGrapeMixin, FedProx):
        """FedProx with prototypes; its proximal term is the client's business."""

    with quiet_flower():
        strategy = RedGrapeProx(head="2", redgrape=SMALL, proximal_mu=0.1, **OFF)
    arrays, _, result = run(SMALL, rounds=2, strategy=strategy)
    assert np.isfinite(arrays["2.weight"]).all()
    assert result.train_metrics_clientapp[2]["redgrape_classes"] == CLASSES


def test_wrong_heads_and_settings_are_one_line() -> None:
    with pytest.raises(UserError, match=r"head 'fc'.*0\.weight"), quiet_flower():
        RedGrape(head="fc", **OFF).start(LocalGrid(torch_app(clients(), SMALL), 5), start_of(), num_rounds=1)
    with pytest.raises(UserError, match="configure_train"), quiet_flower():
        RedGrape(head="2", **OFF).aggregate_train(1, [])


@pytest.mark.parametrize(
    "arguments",
    [
        {"balance_rate": -1.0},
        {"samples_per_class": 0},
        {"rate": 0.0},
        {"momentum": 1.0},
        {"prototype_clip": 0.0},
        {"noise_std": float("nan")},
        {"max_age": -1},
        {"direction": "up"},
        {"match": "none"},
    ],
)
def test_bad_settings_are_refused(arguments: dict) -> None:
    with pytest.raises(UserError):
        Config(**arguments)


# ---------------------------------------------------------------- baselines and data


def test_feature_matching_equals_double_backward() -> None:
    rng = np.random.default_rng(0)
    features, classes = rng.normal(size=(2, 3, WIDTH)), np.array([1, 3])
    target, weight, bias = (rng.normal(size=shape) for shape in ((2, CLASSES, WIDTH), (CLASSES, WIDTH), CLASSES))
    ours = match_features(features, classes, target, weight, bias, steps=3, rate=0.5)
    for row, label in enumerate(classes):
        moving = torch.tensor(features[row], requires_grad=True)
        W, b = torch.tensor(weight, requires_grad=True), torch.tensor(bias)
        for _ in range(3):
            loss = F.cross_entropy(moving @ W.T + b, torch.full((3,), int(label)))
            (gradient,) = torch.autograd.grad(loss, W, create_graph=True)
            distance = (1 - F.cosine_similarity(gradient, torch.tensor(target[row]), dim=1)).sum()
            (step,) = torch.autograd.grad(distance, moving)
            moving = (moving - 0.5 * step).detach().requires_grad_()
        np.testing.assert_allclose(ours[row], moving.detach().numpy(), rtol=1e-8)


def test_feature_gradients_are_class_gradients() -> None:
    rng = np.random.default_rng(0)
    features, weight, bias = rng.normal(size=(2, 3, WIDTH)), rng.normal(size=(CLASSES, WIDTH)), rng.normal(size=CLASSES)
    gradient, error = feature_gradients(features, np.array([1, 3]), weight, bias)
    assert error.shape == (2, CLASSES, 3)
    for row, label in enumerate((1, 3)):
        h = torch.tensor(features[row])
        expected, _, _ = class_gradients(h @ torch.tensor(weight).T + torch.tensor(bias), h, torch.full((3,), label))
        np.testing.assert_allclose(gradient[row], expected[label].numpy())


def test_retraining_descends_as_autograd_does() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, WIDTH)), rng.integers(0, CLASSES, 30)
    weight, bias = train_classifier(features, labels, CLASSES, 20, 0.5, np.random.default_rng(1))
    head = nn.Linear(WIDTH, CLASSES).double()
    start = train_classifier(features, labels, CLASSES, 0, 0.5, np.random.default_rng(1))
    with torch.no_grad():
        for parameter, value in zip(head.parameters(), start, strict=True):
            parameter.copy_(torch.tensor(value))
    optimiser = torch.optim.SGD(head.parameters(), lr=0.5)
    for _ in range(20):
        optimiser.zero_grad()
        F.cross_entropy(head(torch.tensor(features)), torch.tensor(labels)).backward()
        optimiser.step()
    np.testing.assert_allclose(weight, head.weight.detach().numpy(), rtol=1e-8)
    np.testing.assert_allclose(bias, head.bias.detach().numpy(), rtol=1e-8)


def test_creff_leaves_fedavgs_model_alone_and_learns_from_gradients() -> None:
    data = clients(n=40)
    how = LocalTraining(2, 4, 0.1, 0.9, 1.0)
    start = ArrayRecord({k: Array(v) for k, v in init_mlp((INPUTS, WIDTH, CLASSES), np.random.default_rng(0)).items()})

    class PairedCReFF(SampledStrategy, CReFF):
        """CReFF with draws of a seed."""

    results = []
    for kind, uploads, extra in ((PairedAvg, False, {}), (PairedCReFF, True, {"head": "fc2", "match_rate": 1.0})):
        cohort = RuleCohort(data, how, LocalRule(uploads=uploads), seed=0)
        with quiet_flower():
            strategy = kind(sampler=UniformSampler(4), **OFF, **extra)
            grid = LocalGrid(cohort.app, len(data), before_round=cohort.prepare, on_error="raise")
            results.append((strategy.start(grid, start, num_rounds=8).arrays, strategy))
    for key, array in results[0][0].items():
        np.testing.assert_array_equal(array.numpy(), results[1][0][key].numpy())
    model = {key: array.numpy() for key, array in results[1][0].items()}
    weight, bias = results[1][1].classifier
    x, y = (np.concatenate(parts) for parts in zip(*data, strict=True))
    hidden = np.maximum(x @ model["fc1.weight"].T + model["fc1.bias"], 0.0)
    recalls = [(((hidden @ weight.T + bias).argmax(axis=1) == y)[y == k]).mean() for k in np.unique(y)]
    assert np.mean(recalls) > 0.6  # from gradients alone; chance is 0.25


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_factor_is_the_derivative(gamma: float) -> None:
    logits = torch.randn(6, CLASSES, dtype=torch.float64, requires_grad=True)
    y = torch.arange(6) % CLASSES
    p = torch.softmax(logits, 1)[torch.arange(6), y]
    (expected,) = torch.autograd.grad((-((1 - p) ** gamma) * torch.log(p)).sum(), logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), logits)
    np.testing.assert_allclose(focal_factor(p.detach().numpy(), gamma)[:, None] * plain.numpy(), expected.numpy())


def test_long_tail_sizes_and_cut() -> None:
    sizes = exponential_sizes(100, 50.0, 10)
    assert (sizes[0], sizes[-1]) == (100, 2)
    np.testing.assert_allclose(np.diff(np.log(sizes[:7])), -np.log(50) / 9, atol=0.06)
    assert binary_sizes(100, 10.0, 4, [1, 3]).tolist() == [100, 10, 100, 10]
    labels = np.repeat(np.arange(10), 120)
    kept, order = cut_long_tail(labels, sizes, np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount(labels[kept], minlength=10)[order], sizes)
    assert len(set(kept.tolist())) == len(kept)
    again, _ = cut_long_tail(labels, sizes, np.random.default_rng(0))
    np.testing.assert_array_equal(kept, again)
    assert order.tolist() != cut_long_tail(labels, sizes, np.random.default_rng(1))[1].tolist()
    assert cut_long_tail(labels, sizes, np.random.default_rng(1), shuffle_classes=False)[1].tolist() == list(range(10))
    with pytest.raises(UserError, match="at least 200"):
        cut_long_tail(labels, np.full(10, 200), np.random.default_rng(0))
    with pytest.raises(UserError):
        exponential_sizes(0, 2.0, 3)
    with pytest.raises(UserError):
        binary_sizes(10, 2.0, 3, [5])


# ---------------------------------------------------------------- the audit


def a_case(per_client: Callable[[np.random.Generator], np.ndarray], seed: int = 0, count: int = 30) -> Case:
    rng = np.random.default_rng(seed)
    labels = [per_client(rng) for _ in range(count)]
    y = np.concatenate(labels)
    centres = np.abs(rng.normal(size=(CLASSES, 20)))
    features = np.maximum(centres[y] + 0.5 * rng.normal(size=(len(y), 20)), 0.0).astype(np.float32)
    owner = np.repeat(np.arange(count), [len(each) for each in labels])
    weight, bias = rng.normal(size=(CLASSES, 20)).astype(np.float32) / 5, np.zeros(CLASSES, np.float32)
    return Case(features, y, owner, weight, bias)


def few(rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([[0], [1, 1], rng.integers(0, CLASSES, 3)])


def test_one_example_is_recovered_exactly_and_two_are_not() -> None:
    rng = np.random.default_rng(0)
    h, q = rng.normal(size=WIDTH), rng.normal(size=CLASSES)
    np.testing.assert_allclose(recover_features(np.outer(q, h), q), h)
    found = leakage(a_case(few))
    single = [item.own for item in found if item.count == 1]
    assert min(single) > 0.9999
    assert np.mean([item.own for item in found if item.count > 1]) < np.mean(single)


def test_audit_flags_leaks_and_is_silent_where_there_are_none() -> None:
    leaky = report(a_case(few), draws=300)
    by_name = {finding.name: finding for finding in leaky.findings}
    assert by_name["recovered examples"].verdict == by_name["single examples"].verdict == "finding"
    assert leaky.exit_code == 1
    assert leaky.false_alarm_rate <= 0.12
    drowned = report(a_case(few), draws=300, clip=1.0, noise_std=5.0)
    assert drowned.exit_code == 0
    alarms = [report(a_case(few, seed), draws=150, noise_std=50.0).exit_code for seed in range(20)]
    assert sum(alarms) <= 4  # 5 % of 20 is one; more than four has probability below 1 %
    withheld = report(a_case(few), draws=150, min_count=2)
    assert {f.name: f.verdict for f in withheld.findings}["single examples"] == "ok"


def test_audit_of_captured_uploads(tmp_path: Path) -> None:
    case = a_case(few)
    h, y = torch.from_numpy(case.features), torch.from_numpy(case.labels)
    logits = h @ torch.from_numpy(case.weight).T
    one = [class_gradients(logits[i : i + 1], h[i : i + 1], y[i : i + 1]) for i in range(6)]
    many = [class_gradients(logits[i : i + 9], h[i : i + 9], y[i : i + 9]) for i in range(0, 54, 9)]
    pick = [(w[c], b[c]) for w, b, n in many for c in range(CLASSES) if int(n[c]) > 1]
    pick += [(w[int(y[i])], b[int(y[i])]) for i, (w, b, _) in enumerate(one)]
    path = tmp_path / "uploads.npz"
    np.savez(path, upload_weight=torch.stack([w for w, _ in pick]), upload_bias=torch.stack([b for _, b in pick]))
    found = audit(path)
    assert found.findings[0].value == pytest.approx(6 / len(pick))
    assert found.false_alarm_rate == 0.0
    clean = tmp_path / "clean.npz"
    np.savez(
        clean, upload_weight=torch.stack([w for w, _ in pick[:-6]]), upload_bias=torch.stack([b for _, b in pick[:-6]])
    )
    assert audit(clean).exit_code == 0


def test_audit_reads_a_case_from_a_file_and_gives_json(tmp_path: Path) -> None:
    case = a_case(few)
    path = tmp_path / "case.npz"
    np.savez(path, **case.__dict__)
    assert isinstance(read_case(path), Case)
    found = audit(path, draws=150)
    assert json.loads(found.to_json())["environment"]["clients"] == 30


@pytest.mark.parametrize("kind", ["missing", "text", "pickle", "keys", "shapes", "nan", "labels", "one client"])
def test_malformed_files_give_one_clear_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "case.npz"
    parts: dict[str, np.ndarray] = dict(a_case(few).__dict__)
    if kind == "text":
        path.write_text("nothing")
    elif kind != "missing":
        changes = {
            "pickle": {"features": np.array([{}], dtype=object)},
            "shapes": {"weight": np.zeros((CLASSES, 3), np.float32)},
            "nan": {"features": np.full_like(parts["features"], np.nan)},
            "labels": {"labels": parts["labels"] + 7},
            "one client": {"client": np.zeros_like(parts["client"])},
        }
        parts |= changes.get(kind, {})
        if kind == "keys":
            del parts["weight"]
        np.savez(path, **parts)
    with pytest.raises(UserError) as caught:
        audit(path)
    assert "\n" not in str(caught.value)


def test_prototypes_do_not_reach_the_average(tmp_path: Path) -> None:
    """Flower averages every array record of a reply; ours must be gone by then."""
    _, strategy, _ = run(SMALL, rounds=1)
    messages = list(strategy.configure_train(2, start_of(), ConfigRecord(), LocalGrid(ClientApp(), 5)))
    contents = [message.content for message in messages]
    assert all(RECORD in content for content in contents)
    assert len({id(content) for content in contents}) == len(contents)  # Flower shares one among them
