"""Metrics of unlearning: definitions by brute force, the one pass against one pass a set, and generated answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from tests.methods.unlearning.small_models import items, llama, token_logp, tokenizer
from torch import nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_scores import score_answers
from transfuse.methods.unlearning.answer_training import fine_tune
from transfuse.methods.unlearning.generated_answers import refusals, rouge_recall, write_answers
from transfuse.methods.unlearning.unlearning_metrics import (
    Questions,
    forget_quality,
    knowledge,
    log_truth_ratios,
    membership_aucs,
    model_utility,
    privacy_leak,
    score_questions,
    summary,
    truth_to_forget,
    truth_to_keep,
)

TOK = tokenizer()
GONE, KEPT, NEW = items(TOK, 0, 5), items(TOK, 5, 13), items(TOK, 13, 19)


def questions(chosen: list[Any], **options: Any) -> Questions:
    """Wrong answers are those of other questions, one to three; the right one in other words is a neighbour's."""
    pool = items(TOK, 0, 24)
    wrong = [[pool[(7 * i + k + 1) % 24] for k in range(1 + i % 3)] for i in range(len(chosen))]
    texts = [TOK.decode(item.ids[item.start :]) for item in chosen]
    return Questions(chosen, texts, [pool[(i + 3) % 24] for i in range(len(chosen))], wrong, **options)


SETS = {
    "forget": questions(GONE),
    "retain": questions(KEPT),
    "holdout": questions(NEW),
    "facts": questions(KEPT[:3], options=True),
}


def average(model: nn.Module, item: Any) -> float:
    return float(token_logp(model, item).mean().detach())


def test_truth_ratio_and_its_aggregates_as_they_are_written() -> None:
    rng = np.random.default_rng(0)
    right, wrong = -rng.gamma(1.0, size=8), [-rng.gamma(1.0, size=k) for k in (1, 2, 3, 4, 5, 1, 2, 3)]
    ratios = [math.exp(np.mean(w)) / math.exp(r) for r, w in zip(right, wrong, strict=True)]
    found = log_truth_ratios(right, wrong)
    np.testing.assert_allclose(np.exp(found), ratios, rtol=1e-12)
    assert truth_to_forget(found) == pytest.approx(np.mean([min(t, 1 / t) for t in ratios]))
    assert truth_to_keep(found) == pytest.approx(np.mean([max(0.0, 1 - t) for t in ratios]))
    expected = [math.exp(r) / (math.exp(r) + math.exp(np.mean(w))) for r, w in zip(right, wrong, strict=True)]
    assert knowledge(found) == pytest.approx(np.mean(expected))


def test_perturbed_answers_have_a_geometric_mean() -> None:
    """exp of the mean, not mean of exp, as in both published codes."""
    assert float(np.exp(log_truth_ratios([0.0], [np.log([0.1, 0.9])]))[0]) == pytest.approx(math.sqrt(0.09))


def test_a_collapsed_model_gives_numbers() -> None:
    found = log_truth_ratios([-5000.0, -1.0], [[-1.0], [-5000.0]])
    assert truth_to_forget(found) == 0.0 and truth_to_keep(found) == 0.5 and knowledge(found) == 0.5
    with pytest.raises(UserError, match="wrong answers"):
        log_truth_ratios([0.0, 1.0], [[1.0], []])


def test_forget_quality_is_the_two_sample_test_and_tells_the_direction() -> None:
    rng = np.random.default_rng(0)
    gold = rng.normal(size=60)
    for shift, direction in ((-3.0, -1), (3.0, 1)):
        found = forget_quality(gold + shift, gold)
        assert found.direction == direction and found.p < 1e-6
        theirs = ks_2samp(1 / np.exp(gold + shift), 1 / np.exp(gold))  # as published, on 1 / TR
        assert (found.p, found.statistic) == pytest.approx((theirs.pvalue, theirs.statistic))
    with pytest.raises(UserError, match="not finite"):
        forget_quality([float("nan")], gold)


def test_utility_is_the_harmonic_mean_and_nothing_where_one_is_nothing() -> None:
    values = [0.2, 0.5, 0.9]
    assert model_utility(values) == pytest.approx(3 / sum(1 / v for v in values))
    assert model_utility([0.9, 0.0]) == 0.0
    for bad in ([], [-0.1, 0.5]):
        with pytest.raises(UserError, match="utility"):
            model_utility(bad)


def test_privacy_leak_by_hand() -> None:
    assert privacy_leak(0.5, 0.5) == 0.0
    assert privacy_leak(1.0, 0.5) == -100.0  # nothing forgotten
    assert privacy_leak(0.0, 0.5) == 100.0  # pushed away
    assert privacy_leak(2e-5, 0.98) == pytest.approx(100 * (0.99998 - 0.02) / 0.02)  # as the published issue has it
    with pytest.raises(UserError, match="below 1"):
        privacy_leak(0.5, 1.0)


def test_one_pass_gives_what_one_pass_a_set_and_metric_gives() -> None:
    model = llama(TOK)
    scored = score_questions(model, SETS, 0, batch=7, eos=TOK.eos_token_id)
    for name, own in SETS.items():
        answers = score_answers(model, own.answers, 0, batch=1, eos=TOK.eos_token_id)
        found = scored[name]
        for metric in ("loss", "exact", "memorised", "extraction", "min_k", "min_k_plus"):
            np.testing.assert_allclose(getattr(found.answers, metric)(), getattr(answers, metric)(), atol=1e-5)
        ratios = [
            np.mean([average(model, w) for w in wrong]) - average(model, right)
            for wrong, right in zip(own.perturbed, own.paraphrased, strict=True)
        ]
        np.testing.assert_allclose(found.log_truth_ratios(), ratios, atol=1e-5)


def test_probability_among_options() -> None:
    model = llama(TOK)
    found = score_questions(model, {"facts": SETS["facts"]}, 0)["facts"].probability()
    for i, item in enumerate(KEPT[:3]):
        right = math.exp(average(model, item))
        wrong = sum(math.exp(average(model, w)) for w in SETS["facts"].perturbed[i])
        assert found[i] == pytest.approx(right / (right + wrong), rel=1e-4)


def test_membership_auc_by_pairs() -> None:
    model = llama(TOK)
    fine_tune(model, GONE, 0, steps=4, rate=5e-3, batch=5, seed=0)
    scored = score_questions(model, SETS, 0)
    found = membership_aucs(scored["forget"], scored["holdout"])
    assert set(found) == {"loss", "zlib", "min_k", "min_k_plus"}
    members, others = ([average(model, item) for item in chosen] for chosen in (GONE, NEW))
    pairs = [float(m > o) + 0.5 * float(m == o) for m in members for o in others]
    assert found["loss"] == pytest.approx(np.mean(pairs)) and found["loss"] > 0.5


def test_the_summary_names_all_and_knows_the_model_itself() -> None:
    model, other = llama(TOK), llama(TOK, 1)
    scored, gold = (score_questions(m, SETS, 0, eos=TOK.eos_token_id) for m in (model, other))
    found = summary(scored, gold, rouge={"retain": 0.5, "facts": 0.25})
    assert all(math.isfinite(value) for value in found.values())
    kept = [found[f"{name}.{metric}"] for name in ("retain", "facts") for metric in ("probability", "rouge", "truth")]
    assert found["utility"] == pytest.approx(model_utility(kept))
    assert found["forget.truth"] == truth_to_forget(scored["forget"].log_truth_ratios())
    assert found["retain.truth"] == truth_to_keep(scored["retain"].log_truth_ratios())
    itself = summary(gold, gold)
    assert itself["forget_quality.p"] == 1.0 and itself["privacy_leak.loss"] == 0.0
    assert "utility" not in summary({"forget": scored["forget"]})


def test_sets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="texts"):
        Questions(GONE, ["one"])
    with pytest.raises(UserError, match="without answers"):
        Questions([])
    with pytest.raises(UserError, match="options"):
        Questions(GONE, options=True)


def test_rouge_recall_by_hand() -> None:
    found = rouge_recall(["the cat was running", "cats", ""], ["the cats run home", "dogs", "dogs"])
    np.testing.assert_allclose(found, [3 / 4, 0.0, 0.0])  # the, cat, run: stems in order
    with pytest.raises(UserError, match="one answer a text"):
        rouge_recall(["a"], [])


def test_refusals_at_the_borders_of_words() -> None:
    texts = [
        "I don\u2019t know that.",
        "I'm sorry, but I cannot provide this.",
        "Unknown to me",
        "no ideal gas",
        "Paris",
        "",
    ]
    assert refusals(texts, ("unknown to me", "no idea", "don't know", "cannot provide")).tolist() == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert refusals(["i never learned that"]).all()
    with pytest.raises(UserError, match="phrase"):
        refusals(texts, ())


class Plain(nn.Module):
    """A model without a `generate`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> Any:
        return self.inner(**inputs)


@pytest.mark.parametrize("wrap", [lambda m: m, Plain], ids=["generate", "plain"])
def test_written_answers_are_greedy_whatever_the_batch_and_the_settings(wrap: Any) -> None:
    model = llama(TOK)
    fine_tune(model, GONE + KEPT, 0, steps=30, rate=1e-2, batch=13, seed=0)
    right = [TOK.decode(item.ids[item.start : -1]) for item in GONE + KEPT]
    exact = score_answers(model, GONE + KEPT, 0, eos=TOK.eos_token_id)
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    for batch in (1, 5):
        found = write_answers(wrap(model), TOK, GONE + KEPT, tokens=6, batch=batch)
        ended = exact.exact() & np.array([hits[-1] for hits in exact.hit])
        assert ended.any()
        assert [text == r for text, r in zip(found, right, strict=True)] == ended.tolist()


def test_written_answers_stop_at_the_limit_and_need_a_prompt() -> None:
    model = llama(TOK)
    assert all(len(text.split()) <= 2 for text in write_answers(model, TOK, GONE, tokens=2))
    from transfuse.methods.unlearning.answer_tokens import EncodedAnswer

    with pytest.raises(UserError, match="in front of its answer"):
        write_answers(model, TOK, [EncodedAnswer((5, 6), 0)])
    assert torch.is_inference_mode_enabled() is False
