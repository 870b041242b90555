"""The arithmetic of the audit of removal: recovery and verdicts, leaks, rounding, weights, closeness, probes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from transfuse.methods.unlearning.fake_quantisation import fake_quantised, quantised_state, rounded_away, step_sizes
from transfuse.methods.unlearning.latent_probes import lens_hits, probe_hits, ridge_classes, some_layers
from transfuse.methods.unlearning.qa_file import QARow
from transfuse.methods.unlearning.recovery import (
    Limits,
    Recovery,
    excess_recovery,
    expected_leak,
    facts_needed,
    false_alarm_rate,
    judge,
    leak_at_k,
    no_exception_bound,
    recovery,
    worst,
    worst_of,
)
from transfuse.methods.unlearning.relearning import (
    Relearned,
    area,
    checkpoints,
    direct_lesson,
    excess_curve,
    half_step,
    rtt_lessons,
)
from transfuse.methods.unlearning.side_effects import closeness, membership_auc, side_effects
from transfuse.methods.unlearning.weight_probes import interpolated, pruned, with_noise, without_directions

RNG = np.random.default_rng(5)


def bits(rate: float, n: int = 60) -> np.ndarray:
    return (RNG.random(n) < rate).astype(float)


def test_excess_recovery_is_its_formula_and_its_interval_that_of_resampled_facts() -> None:
    treated, treated_gold, original, gold = bits(0.6), bits(0.1), bits(0.95), bits(0.05)
    found = excess_recovery(treated, treated_gold, original, gold, draws=4000)
    expected = (treated.mean() - treated_gold.mean()) / (original.mean() - gold.mean())
    assert found.value == pytest.approx(expected) and found.normalised and found.facts == 60
    drawn = []
    for _ in range(4000):
        i = RNG.integers(60, size=60)
        drawn.append((treated[i].mean() - treated_gold[i].mean()) / (original[i].mean() - gold[i].mean()))
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert found.low == pytest.approx(low, abs=0.03) and found.high == pytest.approx(high, abs=0.03)


def test_recovery_and_the_case_where_nothing_was_known() -> None:
    one, none = np.ones(20), np.zeros(20)
    assert recovery(one, none, one) == 1.0 and recovery(none, none, one) == 0.0
    assert recovery(one, one, one) is None
    found = excess_recovery(one, none, none, none)
    assert found.value == 1.0 and not found.normalised


@pytest.mark.parametrize(("facts", "comparisons"), [(6, 1), (36, 1), (36, 7)])
def test_intervals_are_never_narrower_than_the_binomial_bound(facts: int, comparisons: int) -> None:
    none, one = np.zeros(facts), np.ones(facts)
    found = excess_recovery(none, none, one, none, comparisons=comparisons)
    bound = no_exception_bound(facts, comparisons)
    assert found.high == pytest.approx(bound)
    assert (1 - bound) ** facts == pytest.approx(0.025 / comparisons)
    if facts == 6:
        assert judge(found) == "INCONCLUSIVE"  # never PASS on six facts


def test_the_worst_of_several_has_an_interval_for_the_largest() -> None:
    parts = [Recovery(0.1, 0.0, 0.9, 20, True), Recovery(0.5, 0.3, 0.6, 10, True)]
    assert worst_of(parts) == Recovery(0.5, 0.3, 0.9, 10, True)


def test_verdicts() -> None:
    limits = Limits()
    assert judge(Recovery(0.0, -0.05, 0.05, 90, True), limits) == "PASS"
    assert judge(Recovery(0.5, 0.3, 0.7, 90, True), limits) == "SUPPRESSED"
    assert judge(Recovery(0.1, 0.0, 0.3, 90, True), limits) == "INCONCLUSIVE"
    assert judge(Recovery(0.0, 0.0, 0.0, 90, True), limits, utility=0.4) == "BROKEN"
    assert worst(["PASS", "INCONCLUSIVE", "SUPPRESSED"]) == "SUPPRESSED" and worst([]) == "INCONCLUSIVE"
    assert facts_needed(Recovery(0.0, -0.2, 0.2, 25, True)) == 100
    assert facts_needed(Recovery(0.15, 0.0, 0.3, 25, True)) is None


def test_false_alarms_of_gold_models_that_never_guess_and_of_those_that_do() -> None:
    assert false_alarm_rate(0.0, 1.0, 36) == 0.0
    assert false_alarm_rate(0.3, 1.0, 36, draws=100) < 0.1


def test_leak_at_k_against_all_subsets_and_its_expectation() -> None:
    n, right, k = 7, 2, 3
    subsets = list(itertools.combinations(range(n), k))
    brute = sum(any(i < right for i in chosen) for chosen in subsets) / len(subsets)
    assert leak_at_k(n, right, k) == pytest.approx(brute)
    p = 0.3
    mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * leak_at_k(n, c, k) for c in range(n + 1))
    assert expected_leak(np.array([p, 0.0, 1.0]), k) == pytest.approx([mean, 0.0, 1.0])


@pytest.mark.parametrize("group", [None, 4])
def test_rounding_against_weight_by_weight(group: int | None) -> None:
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    got = fake_quantised(weight, 4, group)
    for row in range(3):
        for column in range(8):
            first = 0 if group is None else column // group * group
            part = weight[row, first : first + (group or 8)]
            step = float(part.abs().max()) / 7
            assert float(got[row, column]) == pytest.approx(round(float(weight[row, column]) / step) * step, abs=1e-6)


def test_rounding_leaves_the_head_alone_and_reads_transposed_layers() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=8))
    state = quantised_state(model, 4)
    assert "lm_head.weight" not in state and len(state) == 4
    weight = model.transformer.h[0].mlp.c_fc.weight
    torch.testing.assert_close(state["transformer.h.0.mlp.c_fc.weight"], fake_quantised(weight.T, 4).T)


def test_an_update_below_half_a_step_is_rounded_away() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    step = step_sizes(model[0].weight.detach(), 4)
    before = fake_quantised(model[0].weight.detach(), 4)
    model[0].weight.data = before + 0.4 * step * torch.where(
        before.abs() < before.abs().amax(1, keepdim=True), 1.0, 0.0
    )
    found = rounded_away({"0.weight": before}, model, 4)
    assert found.below_half == 1.0 and found.same_code == 1.0 and 0 < found.size < 1


def test_weights_along_the_update_pruned_with_noise_and_without_directions() -> None:
    generator = torch.Generator().manual_seed(1)
    before = {"w": torch.randn(6, 5, generator=generator), "n": torch.tensor(3)}
    after = {"w": before["w"] + torch.randn(6, 5, generator=generator), "n": torch.tensor(3)}
    torch.testing.assert_close(interpolated(before, after, 0.0)["w"], before["w"])
    torch.testing.assert_close(interpolated(before, after, 1.5)["w"], 1.5 * after["w"] - 0.5 * before["w"])
    kept = pruned(after, 0.2)["w"]
    smallest = after["w"].abs().flatten().argsort()[:6]
    assert set(torch.nonzero(kept.flatten() == 0).flatten().tolist()) == set(smallest.tolist())
    noise = with_noise({"w": torch.ones(2000, 50)}, 0.02, generator)["w"] - 1
    assert float(noise.norm(dim=1).mean() / 50**0.5) == pytest.approx(0.02, rel=0.05)
    rest = torch.linalg.svdvals(without_directions(before, after, 2)["w"] - before["w"])
    whole = torch.linalg.svdvals(after["w"] - before["w"])
    torch.testing.assert_close(rest[:3], whole[2:], atol=1e-5, rtol=1e-5)


def test_lessons_test_each_fact_once_and_never_train_on_it() -> None:
    lessons = rtt_lessons(11, 3, seed=0)
    assert sum(lesson.tested.astype(int) for lesson in lessons).tolist() == [1] * 11
    for lesson in lessons:
        assert not lesson.tested[list(lesson.facts)].any() and len(lesson.facts) + lesson.tested.sum() == 11
    one = direct_lesson(20, 0.25, seed=0)
    assert len(one.facts) == 5 and one.tested.sum() == 15 and not one.tested[list(one.facts)].any()
    assert checkpoints(30) == (0, 1, 2, 5, 10, 20, 30) and checkpoints(1) == (0, 1)


def test_the_attacker_chooses_rate_and_step_and_curves_are_measured_there() -> None:
    known = np.zeros((2, 3, 2, 4))
    known[1, 1, 0, :3] = 1.0
    known[1, 2, 0, :2] = 1.0
    known[1, 2, 1] = 1.0
    known[:, :, 0, 3] = np.nan  # a fact that was trained on
    found = Relearned((0.1, 0.2), (0, 1, 2), known)
    assert found.best() == (1, 1)
    assert np.array_equal(found.at_best()[0], known[1, 1, 0], equal_nan=True) and found.at_best()[1].all()
    curve = excess_curve(found, np.array([0.0, 0.5, 0.0]), 0.5)
    assert curve == pytest.approx([0.0, 1.0, 4 / 3])
    assert half_step(found.steps, curve) == 1 and half_step(found.steps, curve * 0) is None
    assert area((0, 1, 2), curve) == pytest.approx((0.5 * 1.0 + 0.5 * (1 + 4 / 3)) / 2)


def test_ridge_in_its_dual_is_ridge() -> None:
    x, asked = RNG.normal(size=(12, 5)), RNG.normal(size=(6, 5))
    labels = ["abc"[i % 3] for i in range(12)]
    a = (x - x.mean(0)) / (x.std(0) + 1e-6)
    b = (asked - x.mean(0)) / (x.std(0) + 1e-6)
    y = np.eye(3)[[i % 3 for i in range(12)]]
    weights = np.linalg.solve(a.T @ a + 0.7 * 12 * np.eye(5), a.T @ (y - y.mean(0)))
    expected = ["abc"[i] for i in (b @ weights + y.mean(0)).argmax(1)]
    assert ridge_classes(x, labels, asked, 0.7) == expected


def test_probes_read_relations_whose_answers_recur_and_no_others() -> None:
    states = np.array([[1.0, 0], [0.9, 0.1], [0, 1.0], [0.1, 0.9], [5, 5], [6, 6]])
    answers = [
        ("colour", "red"),
        ("colour", "red"),
        ("colour", "blue"),
        ("colour", "blue"),
        ("code", "1"),
        ("code", "2"),
    ]
    asked = [("colour", "red"), ("colour", "red"), ("code", "1"), ("colour", "green")]
    hits = probe_hits(states, answers, np.array([[1.0, 0.0], [0.0, 1.0], [5, 5], [1, 0]]), asked)
    assert hits[:2].tolist() == [1.0, 0.0] and np.isnan(hits[2:]).all()
    assert some_layers(12, 4)[-1] == 11 and len(some_layers(12, 4)) == 4 and some_layers(2, 4) == [0, 1]


def test_closeness_by_shared_answers_and_by_words() -> None:
    def row(subject: str, relation: str, answer: str) -> QARow:
        return QARow(f"{relation} of {subject}?", answer, subject, relation)

    forget = [row("a", "tongue", "x"), row("a", "money", "y")]
    keep = [row("b", "tongue", "x"), row("b", "money", "y"), row("c", "tongue", "x"), row("d", "tongue", "z")]
    assert closeness(forget, keep).tolist() == [2, 2, 1, 0]
    plain = [QARow("what is the colour of the sky ?", "blue")]
    near = closeness(plain, [QARow("what is the colour of grass ?", "green"), QARow("who ?", "me")])
    assert near[0] > near[1]


def test_side_effects_and_auc_by_hand() -> None:
    before, after = np.ones(6), np.array([1, 1, 1, 0, 0, 0.0])
    found = side_effects(before, after, np.array([0, 0, 1, 1, 3, 3]), forget_drop=0.5)
    assert found.bins == (0, 1, 3) and found.drops == (0.0, 0.5, 1.0) and found.cost == pytest.approx(0.5)
    assert found.selectivity == pytest.approx(1 / 3)
    a, b = RNG.integers(5, size=9), RNG.integers(5, size=7)
    brute = np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
    assert membership_auc(a, b) == pytest.approx(brute)


def test_the_lens_behind_the_last_block_is_the_model_itself() -> None:
    from tests.methods.unlearning.tiny_world import items, llama, tokenizer

    from transfuse.methods.unlearning.answer_scores import score_answers
    from transfuse.methods.unlearning.latent_probes import last_states

    tok = tokenizer()
    model, asked = llama(tok).eval(), items(tok, 0, 12)
    states = last_states(model, asked, tok.pad_token_id, batch=5)
    scores = score_answers(model, asked, tok.pad_token_id, eos=tok.eos_token_id)
    first = [bool(hits[0]) for hits in scores.hit]
    assert lens_hits(model, states, [item.ids[item.start] for item in asked])[-1].tolist() == first
