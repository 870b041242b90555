"""FedKA: kernels, ramp, votes and local steps against brute force; the strategy in Flower; the Group Effect audit."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedProx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn import functional as F

from transfuse.errors import UserError
from transfuse.hosts.flower.checkpoint import Checkpointed
from transfuse.hosts.flower.client_sampling import SampledStrategy, UniformSampler
from transfuse.hosts.flower.domain_partition import by_domain, by_subject
from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.federated_voting import fine_tune, majority_vote, predict_each
from transfuse.methods.federated.fedka import Config, FedKA, KAMixin, audit, ramp, round_ramp
from transfuse.methods.federated.fedka_client import (
    DomainHead,
    LocalTraining,
    Workspace,
    adversarial_loss,
    make_client,
    matching_loss,
    reverse_gradient,
)
from transfuse.methods.federated.group_effect import (
    GroupEffectMixin,
    RoundEffect,
    client_transfer_audit,
    measure_round,
)
from transfuse.methods.federated.group_effect_report import rank_clients, read_effects, report, write_effects
from transfuse.methods.federated.kernel_matching import (
    bandwidth,
    features_mmd,
    frequencies,
    mean_features,
    mk_mmd,
    squared_distances,
)
from transfuse.methods.federated.split_model import SplitModel, rows_in_batches
from transfuse.methods.federated.target_samples import TargetSamples

torch.set_num_threads(1)
OFF = {"fraction_evaluate": 0.0}
SMALL = {"steps": 4, "accumulate": 2, "batch": 4, "vote_steps": 3, "workspace": 12, "rate": 1e-2}
SIZE, CLASSES = 6, 3


class Net(nn.Module):
    """Features with dropout, so that a forgotten seed would show."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        middle = nn.BatchNorm1d(5) if norm else nn.LayerNorm(5)
        self.features = nn.Sequential(nn.Linear(SIZE, 5), middle, nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(5, CLASSES)


def make_net(norm: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(norm)


def client_data(context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes are the signs of the first features, shifted by client."""
    partition = int(context.node_config["partition-id"])
    x = torch.randn(20, SIZE, generator=torch.Generator().manual_seed(partition)) + 0.3 * partition
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def target(n: int = 25) -> torch.Tensor:
    return torch.randn(n, SIZE, generator=torch.Generator().manual_seed(99)) - 0.5


class Ordered(SampledStrategy):
    """Sends in an order that follows from the seed and the round, so that sums are the same in every run."""


class OrderedFedKA(Ordered, FedKA):
    pass


def strategy_of(kind: type = OrderedFedKA, nodes: int = 3, **arguments: object) -> FedAvg:
    with quiet_flower(level=60):
        if issubclass(kind, Ordered):
            arguments = {"sampler": UniformSampler(nodes), "min_available_nodes": 2, **arguments}
        return kind(**OFF, **arguments)


def ka(nodes: int = 3, kind: type = OrderedFedKA, **fields: object) -> FedAvg:
    if issubclass(kind, FedKA):
        return strategy_of(kind, nodes, model_fn=make_net, target=target(), **{**SMALL, **fields})
    settings = {name: fields.pop(name) for name in list(fields) if name in Config.__dataclass_fields__}
    made = Config(**{**SMALL, **settings})
    return strategy_of(kind, nodes, model_fn=make_net, target=target(), ka=made, **fields)


def run(strategy: FedAvg, rounds: int = 3, nodes: int = 3, client: object = None, model: object = None, **grid: object):
    app = client or make_client(make_net, client_data)
    arrays = SplitModel(model or make_net()).arrays()
    with quiet_flower(level=60):
        return strategy.start(LocalGrid(app, nodes, **{"on_error": "raise", **grid}), arrays, num_rounds=rounds)


def arrays_of(result) -> dict[str, np.ndarray]:
    return {key: array.numpy() for key, array in result.arrays.items()}


def assert_equal(first, second, **tolerance: float) -> None:
    for key, value in arrays_of(first).items():
        np.testing.assert_allclose(value, arrays_of(second)[key], **{"rtol": 0, "atol": 0, **tolerance}, err_msg=key)


# ---------------------------------------------------------------- kernels


def expanded_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """The definition with (2n, 2n, d) differences, float64."""
    z = np.concatenate((a, b)).astype(np.float64)
    n = len(a)
    d = np.square(z[:, None] - z[None]).sum(axis=-1)
    s = d.sum() / (len(z) ** 2 - len(z)) / 4
    k = sum(np.exp(-d / max(s * 2**j, 1e-300)) for j in range(5))
    return float(k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean())


@given(hnp.arrays(np.float64, (8, 3), elements=st.floats(-5, 5)), st.floats(-100, 100))
def test_mmd_equals_the_expanded_form(z: np.ndarray, shift: float) -> None:
    if np.ptp(z) < 1e-3:
        return
    ours = float(mk_mmd(torch.from_numpy(z[:4] + shift), torch.from_numpy(z[4:] + shift)))
    assert ours == pytest.approx(expanded_mmd(z[:4], z[4:]), abs=1e-6)
    assert ours >= -1e-9


def test_mmd_of_batches_and_of_unequal_sizes() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 5, 7)), rng.normal(size=(4, 9, 7)) + 1
    ours = mk_mmd(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(ours, [expanded_mmd(x, y) for x, y in zip(a, b, strict=True)], rtol=1e-10)
    same = torch.from_numpy(a[0])
    assert float(mk_mmd(same, same)) == pytest.approx(0.0, abs=1e-12)
    assert float(mk_mmd(torch.zeros(3, 2), torch.zeros(3, 2))) == pytest.approx(0.0)  # no spread at all


def test_gradient_of_mmd_is_that_of_the_expanded_form_with_a_constant_bandwidth() -> None:
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.normal(size=(5, 4))).requires_grad_()
    b = torch.from_numpy(rng.normal(size=(5, 4)) + 0.5)
    mk_mmd(a, b).backward()
    twin = a.detach().clone().requires_grad_()
    z = torch.cat((twin, b))
    d = (z[:, None] - z[None]).square().sum(-1)
    s = d.detach().sum() / (100 - 10) / 4
    k = sum(torch.exp(-d / (s * 2**j)) for j in range(5))
    (k[:5, :5].mean() + k[5:, 5:].mean() - 2 * k[:5, 5:].mean()).backward()
    np.testing.assert_allclose(a.grad, twin.grad, rtol=1e-8, atol=1e-12)
    assert torch.isfinite(a.grad).all()


def test_random_features_approach_the_kernel() -> None:
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.normal(size=(40, 6)).astype(np.float32) + shift) for shift in (0.0, 0.7))
    width = bandwidth(squared_distances(b))
    exact = float(mk_mmd(a, b, width))
    errors = []
    for count in (500, 50_000):
        table = torch.from_numpy(frequencies(6, count, float(width), 0))
        errors.append(abs(float(features_mmd(a, mean_features(b, table), table)) - exact))
    assert errors[1] < 0.02 * exact
    assert errors[1] < errors[0]
    np.testing.assert_array_equal(frequencies(3, 10, 1.0, 5), frequencies(3, 10, 1.0, 5))


# ---------------------------------------------------------------- ramp, adversary, votes


def test_ramp_runs_over_all_rounds_and_batches() -> None:
    values = [alpha for server_round in (1, 2, 3) for alpha in round_ramp(server_round, 4, 3)]
    expected = [2 / (1 + math.exp(-5 * (i + epoch * 4) / 3 / 4)) - 1 for epoch in range(3) for i in range(4)]
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert values[0] == 0.0
    assert ramp(1.0) == pytest.approx(0.98661, abs=1e-5)


def test_gradient_reversal() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    y = reverse_gradient(x, 0.3)
    torch.testing.assert_close(y, x)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, -0.3 * 2 * x.detach())


@pytest.mark.parametrize("share", ["raw", "embeddings"])
def test_adversary_moves_features_against_the_domain_head(share: str) -> None:
    model, domain = SplitModel(make_net()).eval(), DomainHead(5, 4)
    xs, xt, rows = torch.randn(6, SIZE), torch.randn(9, SIZE), torch.tensor([0, 3, 8])
    fixed = model.embed(xt).detach()
    workspace = Workspace(fixed, xt if share == "raw" else None)
    adversarial_loss(model, domain, model.embed(xs), rows, workspace, 0.7).backward()
    ours = [p.grad.clone() for p in model.model.features.parameters()]
    heads = [p.grad.clone() for p in domain.parameters()]
    model.zero_grad(), domain.zero_grad()
    logits = domain.layers(model.embed(xs)), domain.layers(model.embed(xt[rows]) if share == "raw" else fixed[rows])
    (F.cross_entropy(logits[0], torch.zeros(6).long()) + F.cross_entropy(logits[1], torch.ones(3).long())).backward()
    for mine, parameter in zip(ours, model.model.features.parameters(), strict=True):
        torch.testing.assert_close(mine, -0.7 * parameter.grad)  # features climb
    for mine, parameter in zip(heads, domain.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)  # the head descends
    assert all(p.grad is None for p in model.model.head.parameters())


def test_matching_loss_accumulates_and_reproduces_the_slip() -> None:
    source, fixed = torch.randn(4, 3, 5), torch.randn(10, 5)
    rows, alphas = torch.randint(10, (4, 3)), torch.tensor([0.1, 0.2, 0.3, 0.4])
    terms = [float(a * mk_mmd(x, fixed[r])) for a, x, r in zip(alphas, source, rows, strict=True)]
    assert float(matching_loss(source, rows, Workspace(fixed), alphas)) == pytest.approx(sum(terms) / 4, rel=1e-5)
    slip = float(matching_loss(source, rows, Workspace(fixed), alphas, official=True))
    assert slip == pytest.approx(terms[3] / 4, rel=1e-5)


@given(hnp.arrays(np.float64, (4, 7, 3), elements=st.floats(-9, 0)))
def test_votes_by_hand(log_probs: np.ndarray) -> None:
    votes = majority_vote(torch.from_numpy(log_probs))
    for i in range(7):
        ballots = [int(np.argmax(row)) for row in log_probs[:, i]]
        counts = [ballots.count(c) for c in range(3)]
        tied = [c for c in range(3) if counts[c] == max(counts)]
        best = max(log_probs[:, i, c].sum() for c in tied)
        assert int(votes.labels[i]) in tied
        assert log_probs[:, i, int(votes.labels[i])].sum() == pytest.approx(best)
        assert float(votes.agreement[i]) == max(counts) / 4
        shares = np.array([c / 4 for c in counts if c])
        assert float(votes.entropy[i]) == pytest.approx(-(shares * np.log(shares)).sum())


def test_predictions_of_several_weights_leave_the_model_alone() -> None:
    model, other = SplitModel(make_net()), make_net()
    nn.init.normal_(other.head.weight)
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    x = torch.randn(11, SIZE)
    rows = predict_each(model, [SplitModel(other).arrays(), model.arrays()], x)
    torch.testing.assert_close(rows[0], SplitModel(other).eval()(x))
    torch.testing.assert_close(rows[1], SplitModel(make_net()).eval()(x))
    for key, value in model.model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_fine_tuning_passes_over_what_is_not_kept_and_keeps_statistics() -> None:
    model = SplitModel(make_net(norm=True))
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(8, SIZE), torch.zeros(8).long()
    fine_tune(model, optimiser, x, y, torch.zeros(8, dtype=torch.bool), [1.0, 1.0])
    torch.testing.assert_close(dict(model.model.state_dict()), before, rtol=0, atol=0)
    fine_tune(model, optimiser, x, y, torch.arange(8) % 2 == 0, [1.0, 1.0])
    after = model.model.state_dict()
    assert not torch.equal(after["head.weight"], before["head.weight"])
    for key in ("features.1.running_mean", "features.1.running_var", "features.1.num_batches_tracked"):
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0)


def test_batches_are_passes_over_all_rows() -> None:
    rows = rows_in_batches(7, 5, 3, torch.Generator().manual_seed(0)).flatten().tolist()
    assert sorted(rows[:7]) == sorted(rows[7:14]) == list(range(7))


# ---------------------------------------------------------------- the client


def test_a_round_of_a_client_written_out_by_hand() -> None:
    """Blocks A and B with raw samples: 2 steps and one accumulated step on float64, no dropout."""
    config = Config(share="raw", steps=2, accumulate=2, batch=3, rounds=4, rate=0.01, workspace=8, domain_hidden=4)
    ours, theirs = (SplitModel(make_net().double()) for _ in range(2))
    for model in (ours, theirs):
        model.model.features[3].p = 0.0
    x, y, xt = torch.randn(9, SIZE).double(), torch.randint(CLASSES, (9,)), torch.randn(8, SIZE).double()
    workspace = Workspace(theirs.embed(xt).detach(), xt)
    training, twin = LocalTraining(ours, config, 5), LocalTraining(theirs, config, 5)
    training.domain.double(), twin.domain.double()
    training.round(x, y, workspace, 2, torch.Generator().manual_seed(3))

    g, domain, optimiser = torch.Generator().manual_seed(3), twin.domain, twin.optimiser
    alphas = [2 / (1 + math.exp(-5 * (i + 2) / 8)) - 1 for i in range(2)]
    source, target_rows = rows_in_batches(9, 2, 3, g), rows_in_batches(8, 2, 3, g)
    for i in range(2):
        es, et = theirs.embed(x[source[i]]), theirs.embed(xt[target_rows[i]])
        optimiser.zero_grad()
        loss = F.cross_entropy(theirs.model.head(es), y[source[i]])
        loss += F.nll_loss(domain(es, alphas[i]), torch.zeros(3).long())
        loss += F.nll_loss(domain(et, alphas[i]), torch.ones(3).long())
        loss.backward()
        optimiser.step()
    head = theirs.model.head.weight.detach().clone()
    source, target_rows = rows_in_batches(9, 2, 3, g), rows_in_batches(8, 2, 3, g)
    optimiser.zero_grad()
    total = 0.0
    for i in range(2):
        total = total + alphas[i] * mk_mmd(theirs.embed(x[source[i]]), workspace.embeddings[target_rows[i]])
    (total / 2).backward()
    optimiser.step()
    torch.testing.assert_close(theirs.model.head.weight.detach(), head, rtol=0, atol=0)  # features alone are matched
    for key, value in theirs.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[key], value, rtol=1e-6, atol=1e-8)


def test_client_state_survives_as_arrays() -> None:
    config = Config(**SMALL, rounds=2)
    x, y = torch.randn(9, SIZE), torch.randint(CLASSES, (9,))
    workspace = Workspace(torch.randn(12, 5))
    whole, first, second = (LocalTraining(SplitModel(make_net()), config, 5) for _ in range(3))
    for training in (whole, first, second):
        training.model.model.features[3].p = 0.0
    whole.round(x, y, workspace, 1, torch.Generator().manual_seed(0))
    first.round(x, y, workspace, 1, torch.Generator().manual_seed(0))
    second.model.load(first.model.arrays())
    second.restore(first.state())
    for training in (whole, second):
        training.round(x, y, workspace, 2, torch.Generator().manual_seed(1))
    for key, value in whole.model.model.state_dict().items():
        torch.testing.assert_close(second.model.model.state_dict()[key], value)


# ---------------------------------------------------------------- in Flower


def plain_client() -> ClientApp:
    """Supervised training and nothing else, written without this package's loop."""
    app = ClientApp()
    optimisers: dict[int, tuple[nn.Module, torch.optim.Optimizer]] = {}

    @app.train()
    def train(message: Message, context: Context) -> Message:
        from transfuse.methods.federated.split_model import seeded, stream_seed

        partition, number = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
        if partition not in optimisers:
            net = make_net()
            optimisers[partition] = net, torch.optim.Adam(net.parameters(), lr=SMALL["rate"], fused=True)
        net, optimiser = optimisers[partition]
        state = {key: torch.from_numpy(a.numpy().copy()) for key, a in message.content["arrays"].items()}
        net.load_state_dict(state)
        net.train()
        x, y = client_data(context)
        seed = stream_seed(0, number, partition, 11)
        rows = rows_in_batches(len(y), 4, 4, torch.Generator().manual_seed(seed))
        with seeded(seed, torch.device("cpu")):
            for batch in rows:
                optimiser.zero_grad()
                F.cross_entropy(net.head(net.features(x[batch])), y[batch]).backward()
                optimiser.step()
        arrays = SplitModel(net).arrays()
        return Message(
            RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": len(y)})}), reply_to=message
        )

    return app


def test_degenerate_setting_equals_baseline() -> None:
    """All blocks off is FedAvg of clients that train plainly."""

    class OrderedFedAvg(Ordered, FedAvg):
        pass

    ours = run(ka(disentangle=False, match=False, vote=False, weighted=True))
    theirs = run(strategy_of(OrderedFedAvg), client=plain_client())
    assert_equal(ours, theirs, rtol=1e-5, atol=1e-6)


def test_votes_that_are_only_looked_at_change_nothing_for_the_clients() -> None:
    """With the average broadcast, clients of a federation that votes upload what they would without votes."""
    uploads = []
    for vote in (True, False):
        strategy = ka(match=False, disentangle=False, vote=vote, broadcast="averaged", evaluate=lambda arrays: 0.0)
        run(strategy)
        uploads.append({key: array.numpy() for key, array in strategy._averaged.items()})
    for key, value in uploads[0].items():
        np.testing.assert_array_equal(value, uploads[1][key])


@pytest.mark.parametrize(
    ("share", "disentangle"), [("raw", True), ("embeddings", True), ("stats", False), ("embeddings", False)]
)
@pytest.mark.parametrize("vote", [True, False])
def test_works_in_host(share: str, disentangle: bool, vote: bool) -> None:
    result = run(ka(share=share, disentangle=disentangle, vote=vote), roundtrip=True)
    assert all(np.isfinite(value).all() for value in arrays_of(result).values())
    metrics = result.train_metrics_clientapp[3]
    assert metrics["matching_loss"] >= 0
    assert metrics["refused"] == 0
    assert ("domain_loss" in metrics) == disentangle
    assert ("vote_agreement" in metrics) == vote


def test_what_clients_get_to_see_is_what_was_chosen() -> None:
    seen = {}
    for share, disentangle in (("raw", True), ("embeddings", True), ("stats", False)):
        strategy = ka(share=share, disentangle=disentangle, rounds=2)
        messages = list(strategy.configure_train(1, SplitModel(make_net()).arrays(), ConfigRecord(), local_grid()))
        seen[share] = {key: array.shape for key, array in messages[0].content["workspace"].items()}
    assert set(seen["raw"]) == {"samples", "embeddings"}
    assert seen["embeddings"] == {"embeddings": (12, 5)}
    assert seen["stats"] == {"mean": (2 * 1280,), "width": (), "seed": ()}
    strategy = ka(match=False, disentangle=False, rounds=2)
    messages = list(strategy.configure_train(1, SplitModel(make_net()).arrays(), ConfigRecord(), local_grid()))
    assert "workspace" not in messages[0].content


def local_grid(nodes: int = 3) -> LocalGrid:
    return LocalGrid(make_client(make_net, client_data), nodes)


def test_workspace_is_the_global_models_embedding_of_target_samples() -> None:
    strategy = ka(share="raw", rounds=2)
    net = make_net().eval()
    strategy.configure_train(1, SplitModel(net).arrays(), ConfigRecord(), local_grid())
    workspace = {key: torch.from_numpy(array.numpy()) for key, array in strategy.workspace(1).items()}
    torch.testing.assert_close(net.features(workspace["samples"]), workspace["embeddings"])
    assert all((row == target()).all(dim=1).any() for row in workspace["samples"])


def test_average_is_plain_and_the_votes_are_those_of_the_uploads() -> None:
    """A round against hand-made replies: the mean ignores sizes, and the labels come from the uploads."""
    strategy = ka(vote=True, rounds=1)
    grid = local_grid()
    arrays = SplitModel(make_net()).arrays()
    with quiet_flower():
        replies = list(grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid)))
    for index, reply in enumerate(replies):
        reply.content["metrics"]["num-examples"] = 10**index
    uploads = [{key: array.numpy() for key, array in reply.content["arrays"].items()} for reply in replies]
    seen = {}

    def spy(server_round: int, x: torch.Tensor, models: list) -> object:
        seen["models"], seen["average"] = models, strategy.model.arrays()
        seen["votes"] = KAMixin.pseudo_labels(strategy, server_round, x, models)
        seen["expected"] = majority_vote(predict_each(strategy.model, models, x))
        return seen["votes"]

    strategy.pseudo_labels = spy
    with quiet_flower():
        tuned, _ = strategy.aggregate_train(1, replies)
    for key, array in seen["average"].items():
        np.testing.assert_allclose(array.numpy(), np.mean([u[key] for u in uploads], axis=0), rtol=1e-5, atol=1e-6)
        assert len(seen["models"]) == 3
    torch.testing.assert_close(seen["votes"].labels, seen["expected"].labels)
    assert any(not np.allclose(tuned[key].numpy(), seen["average"][key].numpy()) for key in tuned)


@pytest.mark.parametrize("broadcast", ["finetuned", "averaged"])
def test_clients_receive_what_was_chosen(broadcast: str) -> None:
    strategy = ka(broadcast=broadcast, rounds=3)
    grid, arrays = local_grid(), SplitModel(make_net()).arrays()
    with quiet_flower():
        replies = list(grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid)))
        uploads = [{key: array.numpy() for key, array in reply.content["arrays"].items()} for reply in replies]
        tuned, _ = strategy.aggregate_train(1, replies)
        message = next(iter(strategy.configure_train(2, tuned, ConfigRecord(), grid)))
    expected = {key: np.mean([u[key] for u in uploads], axis=0) for key in tuned}
    if broadcast == "finetuned":
        expected = {key: array.numpy() for key, array in tuned.items()}
    for key, array in message.content["arrays"].items():
        np.testing.assert_allclose(array.numpy(), expected[key], rtol=1e-5, atol=1e-6)


class KAProx(Ordered, KAMixin, FedProx):
    pass


class KAAvgM(Ordered, KAMixin, FedAvgM):
    pass


class KAAdam(Ordered, KAMixin, FedAdam):
    pass


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(KAProx, {"proximal_mu": 5.0}), (KAAvgM, {"server_momentum": 0.5}), (KAAdam, {"eta": 0.01})],
)
def test_goes_on_top_of_other_strategies(kind: type, arguments: dict) -> None:
    strategy = ka(kind=kind, broadcast="finetuned", **arguments)
    result = run(strategy)
    assert all(np.isfinite(value).all() for value in arrays_of(result).values())
    if kind is KAAvgM:
        for key, value in arrays_of(result).items():
            np.testing.assert_array_equal(strategy.current_arrays[key].numpy(), value)


def test_proximal_term_pulls_clients_back() -> None:
    start = SplitModel(make_net()).arrays()
    moved = []
    for mu in (1e-6, 100.0):
        result = run(ka(kind=KAProx, proximal_mu=mu, vote=False), rounds=1)
        moved.append(sum(np.abs(value - start[key].numpy()).sum() for key, value in arrays_of(result).items()))
    assert moved[1] < moved[0]


def test_equal_seeds_give_equal_runs() -> None:
    first, second = run(ka()), run(ka())
    assert_equal(first, second)
    other = run(ka(seed=1))
    assert any(not np.array_equal(v, arrays_of(other)[k]) for k, v in arrays_of(first).items())
    strategy = ka()
    assert_equal(run(strategy), run(strategy))  # a strategy that is started again begins anew


@pytest.mark.parametrize("broadcast", ["finetuned", "averaged"])
def test_a_federation_survives_the_death_of_its_server(tmp_path: Path, broadcast: str) -> None:
    app = make_client(make_net, client_data)

    def start(rounds: int, path: str, grid: LocalGrid):
        strategy = ka(rounds=4, broadcast=broadcast, evaluate=lambda arrays: float(arrays["head.bias"].sum()))
        with quiet_flower(level=60):
            saved = Checkpointed(strategy, tmp_path / path)
            return saved.start(grid, SplitModel(make_net()).arrays(), num_rounds=rounds), strategy.effects

    whole, effects = start(4, "whole", LocalGrid(app, 3))
    nodes = LocalGrid(app, 3)  # nodes outlive the server, and keep their state
    start(2, "parts", nodes)
    continued, again = start(4, "parts", nodes)
    assert_equal(continued, whole)
    assert again == effects


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_device_and_dtype_follow_inputs(dtype: torch.dtype) -> None:
    def net() -> nn.Module:
        return make_net().to(dtype)

    def data(context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = client_data(context)
        return x.to(dtype), y

    strategy = strategy_of(model_fn=net, target=target().to(dtype), **SMALL)
    result = run(strategy, client=make_client(net, data), model=net())
    assert all(value.dtype == str(dtype).removeprefix("torch.") for value in arrays_of(result).values())
    a = torch.randn(3, 2, dtype=dtype)
    assert mk_mmd(a, a + 1).dtype == dtype
    if torch.cuda.is_available():
        assert mk_mmd(a.cuda(), a.cuda() + 1).device.type == "cuda"


def broken_client(kinds: dict[int, str]) -> ClientApp:
    """Partitions that misbehave after honest training."""
    honest, app = make_client(make_net, client_data), ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        kind = kinds.get(int(context.node_config["partition-id"]), "")
        if kind == "raises":
            raise RuntimeError("out of memory")
        reply = honest(message, context)
        record = reply.content["arrays"]
        weight = record["head.weight"].numpy().copy()
        if kind == "nan":
            weight[0] = np.nan
        elif kind == "shape":
            weight = weight[:, :2]
        elif kind == "keys":
            del record["head.weight"]
        elif kind == "weight":
            reply.content["metrics"]["num-examples"] = 0
        if kind in ("nan", "shape"):
            record["head.weight"] = Array(weight)
        return reply

    return app


@pytest.mark.parametrize("kind", ["nan", "shape", "keys", "weight", "raises"])
def test_round_completes_without_a_broken_client(kind: str) -> None:
    broken = run(ka(nodes=4), nodes=4, client=broken_client({3: kind}), on_error="reply")
    without = run(ka(nodes=3), nodes=3)
    assert_equal(broken, without, rtol=1e-4, atol=1e-5)
    assert broken.train_metrics_clientapp[1]["refused"] == int(kind != "raises")


def test_a_refusal_is_said_and_dropouts_are_survived(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    try:
        grid = LocalGrid(broken_client({1: "nan"}), 3)
        ka().start(grid, SplitModel(make_net()).arrays(), num_rounds=1)
    finally:
        logger.removeHandler(caplog.handler)
    assert "reply of node 2 was left out" in caplog.text
    assert "not finite" in caplog.text
    result = run(ka(nodes=5), rounds=6, nodes=5, drop_rate=0.4, error_rate=0.2, on_error="reply")
    assert all(np.isfinite(value).all() for value in arrays_of(result).values())
    nobody = run(ka(), client=broken_client(dict.fromkeys(range(3), "nan")))
    assert not nobody.arrays


def test_fine_tuning_that_explodes_is_taken_back() -> None:
    strategy = ka(rounds=1)
    grid, arrays = local_grid(), SplitModel(make_net()).arrays()
    with quiet_flower(level=60):
        replies = list(grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid)))
        for group in strategy._optimiser.param_groups:
            group["lr"] = float("inf")
        tuned, metrics = strategy.aggregate_train(1, replies)
    assert metrics["vote_kept"] == 0.0
    assert all(np.isfinite(array.numpy()).all() for array in tuned.values())


def test_targets_of_all_kinds_and_the_rest_of_an_item_is_ignored() -> None:
    rows, cpu = torch.tensor([2, 0]), torch.device("cpu")
    x = target()
    labelled = torch.utils.data.TensorDataset(x, torch.full((25,), -1))
    for source in (x, x.numpy(), labelled, list(x)):
        torch.testing.assert_close(TargetSamples(source).take(rows, cpu), x[rows])
    with pytest.raises(UserError, match=r"loader\.dataset"):
        TargetSamples(torch.utils.data.DataLoader(labelled))
    with pytest.raises(UserError, match="without samples"):
        TargetSamples(x[:0])
    with pytest.raises(UserError, match="not finite"):
        TargetSamples(torch.tensor([[np.nan]]))


def test_models_split_by_names_or_callables() -> None:
    net, x = make_net().eval(), torch.randn(4, SIZE)
    by_name = SplitModel(net)(x)
    by_call = SplitModel(net, lambda m, z: m.features(z), lambda m, e: m.head(e))(x)
    torch.testing.assert_close(by_name, by_call)
    with pytest.raises(UserError, match="features, head"):
        SplitModel(net, "body")
    with pytest.raises(UserError, match=r"head\.bias"):
        SplitModel(net).load(ArrayRecord({k: v for k, v in SplitModel(net).arrays().items() if k != "head.bias"}))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"share": "everything"}, "one of raw"),
        ({"share": "stats"}, "disentangle=False"),
        ({"steps": 9}, "multiple of accumulate"),
        ({"batch": 0}, "at least 1"),
        ({"rate": 0.0}, "positive rate"),
        ({"min_agreement": 2.0}, "between 0 and 1"),
        ({"rounds": 0}, "at least 1"),
        ({"broadcast": "both"}, "finetuned"),
    ],
)
def test_bad_settings_are_refused(arguments: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Config(**arguments)


def test_rounds_must_be_known() -> None:
    with pytest.raises(UserError, match="number of rounds"):
        ka().configure_train(1, SplitModel(make_net()).arrays(), ConfigRecord(), local_grid())


# ---------------------------------------------------------------- partitions


def test_partitions_by_domain_and_by_subject() -> None:
    rng = np.random.default_rng(0)
    domains = np.array(list("aabbbbcccccc"))
    parts = by_domain(domains, rng, 2)
    assert list(parts) == ["a", "b", "c"]
    assert sorted(np.concatenate([p for clients in parts.values() for p in clients]).tolist()) == list(range(12))
    assert all((domains[p] == name).all() for name, clients in parts.items() for p in clients)
    subjects = rng.integers(0, 7, 60)
    dealt = by_subject(subjects, 3, np.random.default_rng(1))
    assert sorted(np.concatenate(dealt).tolist()) == list(range(60))
    owners = [set(subjects[part].tolist()) for part in dealt]
    assert not owners[0] & owners[1] and not owners[1] & owners[2] and not owners[0] & owners[2]
    again = by_subject(subjects, 3, np.random.default_rng(1))
    assert all((x == y).all() for x, y in zip(dealt, again, strict=True))
    one_large = by_subject(np.array([0] * 50 + [1, 2]), 3, np.random.default_rng(0))
    assert sorted(len(part) for part in one_large) == [1, 1, 50]
    with pytest.raises(UserError, match="subjects"):
        by_subject(subjects, 8, rng)
    with pytest.raises(UserError, match="domain 'a'"):
        by_domain(domains, rng, 3)


# ---------------------------------------------------------------- the Group Effect


def test_effect_of_a_round_by_hand() -> None:
    models = {"p": {"w": np.array([0.0])}, "q": {"w": np.array([1.0])}, "r": {"w": np.array([5.0])}}
    weights = {"p": 1.0, "q": 1.0, "r": 2.0}

    def score(arrays: dict[str, np.ndarray]) -> float:
        return -abs(float(arrays["w"][0]) - 1.0)

    effect = measure_round(4, models, {"w": np.array([2.0])}, score, weights)
    assert effect.local == (-1.0, 0.0, -4.0)
    assert effect.effect == pytest.approx(-1.0 + 5 / 3)
    assert effect.against_best == -1.0
    assert effect.mean == pytest.approx(-abs(11 / 4 - 1))
    assert effect.without == pytest.approx((-abs(11 / 3 - 1), -abs(10 / 3 - 1), -0.5))
    alone = measure_round(1, {"p": models["p"]}, models["p"], score)
    assert alone.without == ()
    assert alone.effect == 0.0


def test_errors_of_single_examples() -> None:
    rng = np.random.default_rng(0)
    models = {k: {"w": rng.normal(size=30)} for k in range(3)}
    effect = measure_round(1, models, models[0], lambda arrays: arrays["w"] > 0)
    everyone = np.mean([m["w"] for m in models.values()], axis=0) > 0
    other = (models[1]["w"] + models[2]["w"] > 0).astype(float) - everyone
    assert effect.without[0] - effect.mean == pytest.approx(other.mean())
    assert effect.without_error[0] == pytest.approx(other.std(ddof=1) / math.sqrt(30))
    with pytest.raises(UserError, match="finite score"):
        measure_round(1, models, models[0], lambda arrays: float("nan"))


class WatchedAdam(GroupEffectMixin, FedAdam):
    pass


def test_any_flower_run_can_be_watched_and_nothing_of_it_changes() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        w = message.content["arrays"]["w"].numpy() + (1.0 if client else -3.0)
        if client == 2:
            w = np.full_like(w, np.nan) if int(message.content["config"]["server-round"]) == 2 else w
        metrics = MetricRecord({"num-examples": client + 1})
        return Message(RecordDict({"arrays": ArrayRecord({"w": Array(w)}), "metrics": metrics}), reply_to=message)

    def start(strategy: FedAvg):
        with quiet_flower(level=60):
            return strategy.start(LocalGrid(app, 3), ArrayRecord({"w": Array(np.zeros(2))}), num_rounds=1)

    with quiet_flower(level=60):
        watched, plain = WatchedAdam(evaluate=lambda a: float(a["w"].mean()), **OFF), FedAdam(**OFF)
    first, second = start(watched), start(plain)
    assert_equal(first, second, rtol=1e-6)
    (effect,) = watched.effects
    assert sorted(effect.clients) == [1, 2, 3]
    assert effect.mean == pytest.approx((1 * -3 + 2 + 3) / 6)
    assert first.train_metrics_clientapp[1]["ge"] == pytest.approx(effect.effect)
    by_client = dict(zip(effect.clients, effect.without, strict=True))
    assert by_client[1] == pytest.approx(1.0)
    with quiet_flower(level=60):
        off = WatchedAdam(**OFF)
    start(off)
    assert off.effects == []


def test_a_client_without_a_usable_model_is_not_scored() -> None:
    strategy = ka(nodes=3, evaluate=lambda arrays: float(arrays["head.bias"].sum()), vote=False)
    run(strategy, client=broken_client({1: "nan"}), rounds=2)
    assert [set(effect.clients) for effect in strategy.effects] == [{1, 3}, {1, 3}]


def history(rng: np.random.Generator, harm: float = 0.0, gain: float = 0.02, rounds: int = 40, drift: float = 0.0):
    """Scores of five clients; leaving out client 3 gains `harm`; noise of 0.01 with an autocorrelation of `drift`."""
    noise, effects = np.zeros(12), []
    for number in range(1, rounds + 1):
        noise = drift * noise + math.sqrt(1 - drift**2) * 0.01 * rng.normal(size=12)
        mean = 0.7 + noise[0]
        local = tuple(mean - gain + noise[1 + k] for k in range(5))
        without = tuple(mean + noise[6 + k] + harm * (k == 3) for k in range(5))
        effects.append(RoundEffect(number, mean, tuple("abcde"), local, mean, without))
    return effects


def test_audit_names_the_client_and_stays_silent_without_one() -> None:
    found = report(history(np.random.default_rng(0), harm=0.02), draws=500)
    finding = next(f for f in found.findings if f.name == "harmful client")
    assert (finding.verdict, found.exit_code) == ("finding", 1)
    assert "client d" in finding.meaning
    assert finding.value > finding.threshold
    assert next(iter(rank_clients(history(np.random.default_rng(0), harm=0.02)))).client == "d"


@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_false_alarms_are_as_rare_as_stated(drift: float) -> None:
    """No effect at all, in independent rounds and in rounds that resemble their neighbours."""
    reports = [report(history(np.random.default_rng(s), gain=0.0, drift=drift), draws=400) for s in range(100)]
    flagged = sum(r.exit_code for r in reports)
    assert flagged <= 12  # 5 % of 100 is 5; more than 12 has probability below 0.3 %
    large = report(history(np.random.default_rng(0), gain=0.0, drift=drift), draws=4000)
    assert large.false_alarm_rate == pytest.approx(0.05, abs=0.02)


def test_audit_sees_negative_transfer() -> None:
    found = report(history(np.random.default_rng(1), gain=-0.02), draws=500)
    assert found.findings[0].name == "group effect"
    assert found.findings[0].verdict == "finding"
    assert "negative transfer" in found.findings[0].meaning
    fine = report(history(np.random.default_rng(1), gain=0.02), draws=500)
    assert fine.findings[0].verdict == "ok"
    losses = [
        RoundEffect(e.round, -e.aggregate, e.clients, tuple(-x for x in e.local), -e.mean, tuple(-x for x in e.without))
        for e in history(np.random.default_rng(1), gain=-0.02)
    ]
    turned = report(losses, draws=500, higher_is_better=False)
    assert turned.findings[0].value == pytest.approx(found.findings[0].value)
    assert turned.exit_code == 1


def test_a_gain_that_the_held_out_sample_explains_is_no_finding() -> None:
    effects = [
        RoundEffect(e.round, e.aggregate, e.clients, e.local, e.mean, e.without, (0.05,) * 5)
        for e in history(np.random.default_rng(0), harm=0.02)
    ]
    assert report(effects, draws=500).exit_code == 0
    assert report(history(np.random.default_rng(0), harm=0.02), draws=500, minimum=0.1).exit_code == 0


def test_audit_of_clients_that_are_not_always_there() -> None:
    rng = np.random.default_rng(0)
    effects = []
    for e in history(rng, harm=0.03, rounds=60):
        who = np.sort(rng.choice(5, 3, replace=False))
        local, without = (tuple(part[k] for k in who) for part in (e.local, e.without))
        effects.append(RoundEffect(e.round, e.aggregate, tuple("abcde"[k] for k in who), local, e.mean, without))
    found = report(effects, draws=500)
    assert "client d" in next(f for f in found.findings if f.name == "harmful client").meaning
    assert sum(row.rounds for row in rank_clients(effects)) == 180


def test_audit_reads_all_three_forms(tmp_path: Path) -> None:
    effects = history(np.random.default_rng(0), harm=0.02)
    lines, table, whole = (tmp_path / f"effects.{suffix}" for suffix in ("jsonl", "csv", "json"))
    write_effects(effects, lines)
    items = [json.loads(line) for line in lines.read_text().splitlines()]
    whole.write_text(json.dumps({"rounds": items}))
    names = ("round", "aggregate", "clients", "local", "mean", "without")
    rows = [",".join(";".join(map(str, i[n])) if isinstance(i[n], list) else str(i[n]) for n in names) for i in items]
    table.write_text("\n".join([",".join(names), *rows]))
    values = [audit(path, draws=400) for path in (lines, table, whole)]
    assert len({v.findings[1].value for v in values}) == 1
    assert read_effects(lines)[0].without == pytest.approx(effects[0].without)
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps([{"aggregate": e.aggregate, "local": e.local} for e in effects]))
    assert "only the aggregate" in audit(bare, draws=400).calibration


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", "{", "cannot be read as a history"),
        ("a.json", "[]", "no list of rounds"),
        ("a.json", '[{"loss": 1}]', "aggregate and local"),
        ("a.json", '[{"aggregate": "high", "local": [1]}]', "numbers"),
        ("a.json", '[{"aggregate": 1, "local": [1, 2], "clients": [1]}]', "one entry a client"),
        ("a.json", '[{"aggregate": 1, "local": [NaN]}]', "finite"),
        ("a.jsonl", '{"aggregate": 1, "local": [1]}', "at least 20"),
    ],
)
def test_malformed_histories_give_one_clear_line(tmp_path: Path, name: str, text: str, expected: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
        audit(path)


def test_one_client_is_judged_by_federating_with_and_without_it() -> None:
    """Nearest class means as a federation that takes no time: the mislabelled client is found out, the good one not."""
    from transfuse.data.images import digits

    data = digits()
    x, y = data.features[:1200], data.labels[:1200]
    test_x, test_y = data.features[1200:], data.labels[1200:]
    clients = [(x[i : i + 60], y[i : i + 60]) for i in (0, 60)]
    wrong = (x[120:420], (y[120:420] + 1) % 10)
    good = (x[120:420], y[120:420])

    def federate(parts: list, seed: int) -> float:
        rng = np.random.default_rng(seed)
        means = []
        for px, py in parts:
            keep = rng.permutation(len(py))[: len(py) * 3 // 4]
            own = [px[keep][py[keep] == c].mean(axis=0) if (py[keep] == c).any() else np.zeros(64) for c in range(10)]
            means.append(own)
        centres = np.average(means, axis=0, weights=[len(py) for _, py in parts])
        return float((np.square(test_x[:, None] - centres).sum(-1).argmin(1) == test_y).mean())

    helped = client_transfer_audit(federate, [*clients, good], 2, seeds=range(6))
    hurt = client_transfer_audit(federate, [*clients, wrong], 2, seeds=range(6))
    assert helped.findings[0].verdict == "ok"
    assert "negative transfer" in hurt.findings[0].meaning
    with pytest.raises(UserError, match="suspect"):
        client_transfer_audit(federate, clients, 2)
