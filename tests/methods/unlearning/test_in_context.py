"""In-context unlearning: the order of a prompt, its ablations, and a prefixed model against the whole text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.methods.unlearning.small_models import items, llama, real_gpt2, tokenizer

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_scores import score_answers
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, pad_answers
from transfuse.methods.unlearning.in_context import (
    Config,
    PrefixedModel,
    Variant,
    icu_prompt,
    icul_examples,
    icul_prefix,
    icul_prompt,
    other_label,
    unlearn_icu,
    unlearn_icul,
)

TOK = tokenizer()
GONE, KEPT = items(TOK, 0, 5), items(TOK, 5, 14)
LABELS = ("bad", "good")
CORRECT = [(f"text {i}", LABELS[i % 2]) for i in range(6)]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_flipped_ones_first_then_correct_ones_then_the_query() -> None:
    examples = icul_examples([("dull", "good")], CORRECT, labels=LABELS, rng=rng(), shots=4)
    assert examples[0] == ("dull", "bad") and len(examples) == 4
    assert len(set(examples[1:])) == 3 and set(examples[1:]) <= set(CORRECT)
    text = icul_prompt([("dull", "good")], CORRECT, "so so", labels=LABELS, rng=rng(), shots=4)
    assert text.split("\n") == [f"{t} {label}" for t, label in examples] + ["so so"]


def test_ablations_differ_in_one_thing_each() -> None:
    def make(variant: Variant) -> list[tuple[str, str]]:
        return icul_examples([("dull", "good")], CORRECT, labels=LABELS, rng=rng(), shots=3, variant=variant)

    assert make("correct_labels")[0] == ("dull", "good") and make("correct_labels")[1:] == make("icul")[1:]
    assert make("same_text") == [("dull", "bad")] * 3
    text, label = make("random_point")[0]
    assert dict(CORRECT)[text] != label and text not in [t for t, _ in make("random_point")[1:]]


def test_other_labels_are_drawn_evenly() -> None:
    draws = rng()
    found = [other_label("a", ("a", "b", "c"), draws) for _ in range(300)]
    assert "a" not in found and 120 < found.count("b") < 180
    with pytest.raises(UserError, match="at least one other"):
        other_label("a", ("a", "a"), draws)


def test_more_examples_than_there_are_and_unknown_variants_are_refused() -> None:
    with pytest.raises(UserError, match="shots"):
        icul_examples([("dull", "good")], CORRECT, labels=LABELS, rng=rng(), shots=9)
    with pytest.raises(UserError, match="variant"):
        icul_examples([("dull", "good")], CORRECT, labels=LABELS, rng=rng(), variant="icl")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="forget"):
        icul_examples([], CORRECT, labels=LABELS, rng=rng())


def test_the_instruction_names_its_subjects() -> None:
    assert icu_prompt("who ?", ["a", "b"], "forget {subject} !") == "forget a or b !\nwho ?"
    with pytest.raises(UserError, match="subject"):
        icu_prompt("who ?", [])


@pytest.mark.parametrize("bos", [None, 1])
def test_a_prefixed_model_reads_the_whole_text(bos: int | None) -> None:
    """Behind a leading beginning-of-sequence token, without shifting what is scored; padding stays out."""
    model = llama(TOK)
    front = () if bos is None else (bos,)
    asked = [EncodedAnswer((*front, *item.ids), item.start + len(front)) for item in KEPT]
    prefix = (4, 9, 2, 11)
    found = score_answers(PrefixedModel(model, prefix, bos), asked, 0, batch=4)
    whole = [EncodedAnswer((*front, *prefix, *item.ids), item.start + len(front) + 4) for item in KEPT]
    expected = score_answers(model, whole, 0, batch=1)
    for a, b in zip(found.logp, expected.logp, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    batch = pad_answers(asked, 0)
    batch.pop("labels")
    assert PrefixedModel(model, prefix, bos)(**batch).logits.shape[:2] == batch["input_ids"].shape


def test_an_empty_prefix_is_the_model() -> None:
    model = real_gpt2()
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(PrefixedModel(model, ())(ids).logits, model(ids).logits)


def answers(tokens: list[int]) -> list[str]:
    """What a prefix answers to each of its questions."""
    text = " ".join(TOK.convert_ids_to_tokens(tokens))
    return [part.split("answer : ")[1].strip() for part in text.split(".") if part.strip()]


def test_questions_are_shown_with_the_answers_of_others_and_retained_ones_with_their_own() -> None:
    words = {
        variant: answers(icul_prefix(TOK, GONE, KEPT, Config(shots=4, points=2, variant=variant), seed=0))
        for variant in ("icul", "correct_labels", "same_text")
    }
    right = {" ".join(TOK.convert_ids_to_tokens(list(item.ids[item.start : -1]))) for item in GONE}
    assert len(words["icul"]) == 4 and words["icul"][2:] == words["correct_labels"][2:]
    assert all(a != b for a, b in zip(words["icul"][:2], words["correct_labels"][:2], strict=True))
    assert set(words["correct_labels"][:2]) <= right
    assert [len(a.split()) for a in words["icul"][:2]] == [len(a.split()) for a in words["correct_labels"][:2]]
    assert words["same_text"][:2] == words["same_text"][2:]
    with pytest.raises(UserError, match="as many as there are"):
        icul_prefix(TOK, GONE, KEPT, Config(shots=40), seed=0)


def test_the_separator_takes_the_place_of_the_end_where_there_is_a_token_for_it() -> None:
    ended = icul_prefix(TOK, GONE, KEPT, Config(separator="\n"), seed=0)  # no token in this vocabulary
    lined = icul_prefix(TOK, GONE, KEPT, Config(separator=":"), seed=0)
    colon = TOK.convert_tokens_to_ids(":")
    assert ended.count(TOK.eos_token_id) == 4 and lined.count(TOK.eos_token_id) == 0
    assert lined.count(colon) == ended.count(colon) + 4


def test_the_procedures_wrap_and_change_nothing() -> None:
    model, seen = llama(TOK), []
    before = model.lm_head.weight.detach().clone()
    for procedure, config in (
        (unlearn_icul, Config()),
        (unlearn_icu, Config(subjects=("w1",), instruction="w2 {subject}")),
    ):
        found = procedure(model, TOK, GONE, KEPT, config, seed=0, on_step=lambda step, m: bool(seen.append(step)))
        assert isinstance(found, PrefixedModel) and found.model is model and not found.training
    assert seen == [1, 1] and torch.equal(before, model.lm_head.weight)
    assert found.prefix.tolist() == TOK("w2 w1")["input_ids"]
