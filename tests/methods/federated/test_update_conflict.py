"""The conflict audit: statistics against brute force, false alarms on clean federations, alarms on camps, all files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam

from transfuse.errors import UserError
from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.conflict_report import camp_strength, mean_cosines, read_losses, report, residuals
from transfuse.methods.federated.fed_mnmt import audit, by_stack
from transfuse.methods.federated.update_conflict import (
    ConflictRound,
    UpdateHistory,
    as_rounds,
    conflict,
    read_history,
    write_history,
)


def history(
    seed: int, camps: float = 0.0, clients: int = 10, rounds: int = 4, size: int = 300, labelled: bool = True
) -> list[ConflictRound]:
    """Clients with lasting differences of their own and noise a round; with camps, two directions besides."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(size=size), 0.7 * rng.normal(size=(clients, size))
    side = np.arange(clients) % 2
    camp = camps * rng.normal(size=(2, size))[side]
    noise = rng.uniform(0.3, 2.0, clients)[:, None]  # clients with less data are noisier
    names = tuple(f"c{i}" for i in range(clients))
    result = []
    for number in range(1, rounds + 1):
        updates = shared + own + camp + noise * rng.normal(size=(clients, size))
        result.append(ConflictRound(number, names, {"all": conflict(updates, side.tolist() if labelled else ())}))
    return result


def test_conflict_equals_brute_force() -> None:
    x = np.random.default_rng(0).normal(size=(3, 7))
    found = conflict(x)
    for i in range(3):
        assert found.norms[i] == pytest.approx(np.linalg.norm(x[i]))
        for j in range(3):
            expected = x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])
            assert found.cosines[i][j] == pytest.approx(expected)
    minority = sum(min((x[:, k] > 0).sum(), (x[:, k] < 0).sum()) for k in range(7)) / 21
    assert found.sign_conflict == pytest.approx(minority)
    still = conflict(np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert still.cosines[0][1] == 0.0 and still.sign_conflict == 0.0
    with pytest.raises(UserError):
        conflict(np.array([[np.nan]]))


def test_levels_of_clients_are_no_camps() -> None:
    levels = np.random.default_rng(0).normal(size=6)
    a, b = np.triu_indices(6, 1)
    np.testing.assert_allclose(residuals(levels[a] + levels[b], 6), 0, atol=1e-12)
    camp = np.array([1, 1, 1, -1, -1, -1.0])
    strong = camp_strength(levels[a] + levels[b] + camp[a] * camp[b], 6)
    dealt = np.random.default_rng(1).permuted(np.tile(camp[a] * camp[b], (200, 1)), axis=1)
    assert strong >= camp_strength(dealt, 6).max() - 1e-9


def test_false_alarms_are_as_rare_as_stated() -> None:
    """150 clean federations with lasting differences between clients and unequal noise: about 5 % are flagged."""
    flagged = [any(f.verdict == "finding" for f in report(history(s), draws=400).findings) for s in range(150)]
    assert np.mean(flagged) <= 0.10  # 5 % and three standard errors
    stated = report(history(0), draws=2000).false_alarm_rate
    assert stated is not None and 0.015 <= stated <= 0.06


@pytest.mark.parametrize("labelled", [True, False])
def test_camps_are_found_and_named(labelled: bool) -> None:
    found = report(history(0, camps=0.6, labelled=labelled))
    camps = next(f for f in found.findings if f.name == "camps in all")
    assert camps.verdict == "finding" and "c0, c2, c4, c6, c8" in camps.meaning and "ClusteredFedAvg" in camps.remedy
    names = [f.name for f in found.findings if f.verdict == "finding"]
    assert ("clusters in all" in names) == labelled


def test_one_round_and_partial_participation() -> None:
    assert report(history(0, camps=1.0, rounds=1)).findings[0].verdict == "finding"
    rng = np.random.default_rng(0)
    items = []
    for item in history(1, camps=1.0, rounds=40):
        chosen = sorted(rng.choice(10, 6, replace=False))
        cosines = np.array(item.groups["all"].cosines)[np.ix_(chosen, chosen)]
        group = {"cosines": cosines.tolist(), "clusters": [int(c) % 2 for c in chosen]}
        items.append({"round": item.round, "clients": [f"c{c}" for c in chosen], "groups": {"all": group}})
    names, cosines, _ = mean_cosines(as_rounds(items), "all")
    assert len(names) == 10 and np.allclose(np.diag(cosines), 1)
    assert report(items).findings[0].verdict == "finding"


def test_clients_that_never_met_are_left_out() -> None:
    items = [
        {"clients": list("abcdefg"), "groups": {"g": {"cosines": np.eye(7).tolist()}}},
        {"clients": ["a", "z"], "groups": {"g": {"cosines": np.eye(2).tolist()}}},
    ]
    assert mean_cosines(as_rounds(items), "g")[0] == list("abcdefg")


def test_harm_against_training_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    local = rng.uniform(1, 2, 50)
    losses = {"c0": (local + 0.3 + 0.1 * rng.normal(size=50), local), "c1": (0.9 * local, local)}
    finding = next(f for f in report(history(0), losses).findings if f.name == "negative transfer")
    assert finding.verdict == "finding" and "c0" in finding.meaning and "c1" not in finding.meaning
    path = tmp_path / "losses.json"
    path.write_text(json.dumps({k: {"federated": list(f), "local": list(g)} for k, (f, g) in losses.items()}))
    assert read_losses(path).keys() == losses.keys()


def test_all_file_forms_say_the_same(tmp_path: Path) -> None:
    rounds = history(3, camps=0.5)
    write_history(rounds, tmp_path / "h.jsonl")
    loaded = [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().splitlines()]
    (tmp_path / "h.json").write_text(json.dumps({"rounds": loaded}))
    lines = ["round,group,client_a,client_b,cosine,cluster_a,cluster_b"]
    for item in rounds:
        group = item.groups["all"]
        lines += [
            f"{item.round},all,{a},{b},{group.cosines[i][j]},{group.clusters[i]},{group.clusters[j]}"
            for i, a in enumerate(item.clients)
            for j, b in enumerate(item.clients)
            if i < j
        ]
    (tmp_path / "h.csv").write_text("\n".join(lines) + "\n")
    values = [
        [(f.name, round(f.value, 9)) for f in audit(tmp_path / name).findings if "sign" not in f.name]
        for name in ("h.jsonl", "h.json", "h.csv")
    ]
    assert values[0] == values[1] == values[2]


def test_whole_updates_are_read_too() -> None:
    x = np.random.default_rng(0).normal(size=(7, 20))
    (item,) = as_rounds([{"clients": list("abcdefg"), "groups": {"g": {"updates": x.tolist()}}}])
    np.testing.assert_allclose(item.groups["g"].cosines, conflict(x).cosines)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("h.json", "{"),
        ("h.json", "[]"),
        ("h.json", '[{"round": 1}]'),
        ("h.json", '[{"clients": ["a", "a"], "groups": {"g": {"cosines": [[1, 0], [0, 1]]}}}]'),
        ("h.json", '[{"clients": ["a", "b"], "groups": {"g": {"cosines": [[1, 3], [3, 1]]}}}]'),
        ("h.json", '[{"clients": ["a", "b"], "groups": {"g": {"cosines": [[1]]}}}]'),
        ("h.json", '[{"clients": ["a", "b"], "groups": {"g": {"cosines": [[1, 0], [0, 1]]}}}]'),  # two clients only
        ("h.csv", "round,client_a\n1,x\n"),
        ("h.csv", "round,client_a,client_b,cosine\n1,x,y,much\n"),
        ("h.csv", "round,client_a,client_b,cosine\n1,x,y,7\n"),
        ("none.json", None),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        audit(tmp_path / name)
    assert "\n" not in str(error.value)


def test_any_flower_strategy_can_be_watched(tmp_path: Path) -> None:
    """FedAdam with the mixin: the run is the same as without it, and its history can be audited."""

    class Watched(UpdateHistory, FedAdam):
        """FedAdam that records."""

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        rng = np.random.default_rng(client)
        arrays = {}
        for key, array in message.content["arrays"].items():
            camp = (1 if client % 2 else -1) * (by_stack(key) == "decoder")
            arrays[key] = Array((array.numpy() + camp + rng.normal(size=200)).astype(np.float32))
            if client == 8:
                arrays[key] = Array(np.full(200, np.nan, np.float32))
        content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    def run(strategy: FedAdam, nodes: int):
        start = ArrayRecord({f"{s}.w": Array(np.zeros(200, np.float32)) for s in ("encoder", "decoder")})
        random.seed(0)
        with quiet_flower(60):
            return strategy.start(LocalGrid(app, nodes), start, num_rounds=2)

    watched = Watched(group_of=by_stack, fraction_evaluate=0.0)
    ours, plain = run(watched, 8), run(FedAdam(fraction_evaluate=0.0), 8)
    for key in plain.arrays:
        np.testing.assert_array_equal(ours.arrays[key].numpy(), plain.arrays[key].numpy())
    write_history(watched.conflicts, tmp_path / "h.jsonl")
    assert [item.round for item in read_history(tmp_path / "h.jsonl")] == [1, 2]
    verdicts = {f.name: f.verdict for f in audit(tmp_path / "h.jsonl").findings}
    assert verdicts["camps in decoder"] == "finding"
    broken = Watched(group_of=by_stack, fraction_evaluate=0.0)
    run(broken, 9)
    assert all(len(item.clients) == 8 for item in broken.conflicts[:1])
