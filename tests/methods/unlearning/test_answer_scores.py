"""Answers as tokens, and their scores, against passes of single items in float64 and definitions by brute force."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.methods.unlearning.small_models import item_logp, items, llama, real_gpt2, token_logp, tokenizer
from torch import nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_scores import AnswerScores, answer_logits, score_answers
from transfuse.methods.unlearning.answer_tokens import IGNORED, by_length, encode_answer, pad_answers
from transfuse.nets.tiny_llama import word_tokenizer

TOK = tokenizer()
ITEMS = items(TOK, 0, 9)


def scores_of(hits: list[list[bool]], ended: bool = False) -> AnswerScores:
    arrays = tuple(np.array(row, bool) for row in hits)
    zeros = tuple(np.zeros(len(row)) for row in hits)
    return AnswerScores(zeros, arrays, zeros, zeros, (ended,) * len(hits))


def test_the_answer_begins_after_the_prompt_and_ends_with_eos() -> None:
    item = encode_answer(TOK, "question : w1 answer :", "w2 w3")
    assert TOK.convert_ids_to_tokens(list(item.ids[item.start :])) == ["w2", "w3", "."]
    open_ended = encode_answer(TOK, "question : w1 answer :", "w2 w3", end=False)
    assert open_ended.ids == item.ids[:-1] and open_ended.start == item.start


def byte_tokenizer(join: bool) -> object:
    """BPE over characters; with `join` the space and the letter after it are one token, as in GPT-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(c) for c in range(97, 123)] + ["Ġ", "?", "<eos>"]
    merges = [("Ġ", "p"), ("Ġp", "a")] if join else []
    vocabulary = {token: i for i, token in enumerate([*letters, *(a + b for a, b in merges)])}
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


@pytest.mark.parametrize("join", [True, False])
def test_prompt_and_answer_meet_in_the_tokens_that_the_model_writes(join: bool) -> None:
    """The space between the two is the answer's to write, in a token of its own or in that of the first letters."""
    tok: object = byte_tokenizer(join)
    item = encode_answer(tok, "city?", "paris")
    found = tok.convert_ids_to_tokens(list(item.ids[item.start :]))  # type: ignore[attr-defined]
    assert "".join(found).removeprefix("Ġ") == "paris<eos>"
    assert found[0] == ("Ġpa" if join else "Ġ")


def test_an_answer_without_tokens_or_a_missing_template_is_refused() -> None:
    with pytest.raises(UserError, match="empty answer"):
        encode_answer(TOK, "w1", "  ")
    with pytest.raises(UserError, match="chat template"):
        encode_answer(TOK, "w1", "w2", chat=True)


def test_labels_are_on_answer_tokens_only() -> None:
    batch = pad_answers(ITEMS, pad=0)
    for row, item in enumerate(ITEMS):
        n = len(item.ids)
        assert batch["labels"][row, : item.start].eq(IGNORED).all() and batch["labels"][row, n:].eq(IGNORED).all()
        assert tuple(batch["labels"][row, item.start : n].tolist()) == item.ids[item.start :]
        assert batch["attention_mask"][row].sum() == n
    assert sorted(i for part in by_length(ITEMS, 4) for i in part) == list(range(9))


@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_one_pass_equals_single_items_in_float64(batch: int, pad: int) -> None:
    """Neither padding, nor its id, nor the company in a batch changes a score; -100 is never an index."""
    model = llama(TOK).double()
    scores = score_answers(model, ITEMS, pad, batch=batch, eos=TOK.eos_token_id)
    for i, item in enumerate(ITEMS):
        logp = item_logp(model, item).detach()
        p = logp.exp()
        np.testing.assert_allclose(scores.logp[i], token_logp(model, item).detach(), atol=2e-6)
        np.testing.assert_array_equal(scores.hit[i], logp.argmax(-1) == torch.tensor(item.ids[item.start :]))
        np.testing.assert_allclose(scores.mean[i], (p * logp).sum(-1), atol=2e-6)
        spread = (p * (logp - (p * logp).sum(-1, keepdim=True)) ** 2).sum(-1)
        np.testing.assert_allclose(scores.variance[i], spread, atol=1e-5)
        assert scores.ended[i]


def test_probability_is_that_of_transformers_own_loss() -> None:
    model = llama(TOK)
    own = score_answers(model, ITEMS, TOK.pad_token_id).probability()
    for i, item in enumerate(ITEMS):
        loss = model(**pad_answers([item], 0)).loss
        assert own[i] == pytest.approx(float(torch.exp(-loss.detach())), rel=1e-5)


def test_exact_is_what_greedy_generation_writes() -> None:
    model = llama(TOK)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(6):  # enough for some answers, not for all
        optimiser.zero_grad()
        model(**pad_answers(ITEMS, 0)).loss.backward()
        optimiser.step()
    exact = score_answers(model, ITEMS, 0, eos=TOK.eos_token_id).exact()
    assert 0 < exact.sum() < len(ITEMS), "the model knows all or nothing: the test shows nothing"
    for item, right in zip(ITEMS, exact, strict=True):
        answer = item.ids[item.start : -1]
        written = model.generate(
            torch.tensor([item.ids[: item.start]]), do_sample=False, max_new_tokens=len(answer), eos_token_id=None,
            pad_token_id=0,
        )[0, item.start :]  # fmt: skip
        assert right == (tuple(written.tolist()) == answer)


def brute_extraction(hits: list[bool]) -> float:
    """1 - k / n with the smallest k such that all from k on is right; k = n, and 0, if even the last token is wrong."""
    n = len(hits)
    return 1 - next(k for k in range(n + 1) if all(hits[k:])) / n


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.booleans())
def test_extraction_strength_and_memorisation_by_brute_force(hits: list[bool], ended: bool) -> None:
    """A wrong last token gives 0; published code gives 1 - (n - 1) / n. The end-of-sequence token is left out."""
    scores = scores_of([[*hits, False] if ended else hits], ended)
    assert scores.extraction()[0] == pytest.approx(brute_extraction(hits))
    assert scores.memorised()[0] == pytest.approx(np.mean(hits))
    assert scores.exact()[0] == all(hits)
    if not hits[-1]:
        assert scores.extraction()[0] == 0.0


def test_membership_scores_as_they_are_defined() -> None:
    rng = np.random.default_rng(0)
    logp, mean = -rng.gamma(1.0, size=11), -rng.gamma(1.0, size=11)
    variance = rng.gamma(1.0, size=11)
    scores = AnswerScores((logp,), (logp > -1,), (mean,), (variance,), (False,))
    assert scores.loss()[0] == pytest.approx(logp.mean())
    assert scores.min_k(0.2)[0] == pytest.approx(np.sort(logp)[:2].mean())  # floor(0.2 * 11)
    assert scores.min_k(0.01)[0] == logp.min()  # one at least
    standard = (logp - mean) / np.sqrt(variance)
    assert scores.min_k_plus(0.2)[0] == pytest.approx(np.sort(standard)[:2].mean())
    text = "paris is the capital"
    assert scores.zlib([text])[0] == pytest.approx(logp.mean() / len(zlib.compress(text.encode())))


def test_a_part_of_a_pass_is_the_pass_of_the_part() -> None:
    model = llama(TOK)
    whole, part = score_answers(model, ITEMS, 0), score_answers(model, ITEMS[2:5], 0)
    np.testing.assert_allclose(whole.part(2, 5).sums(), part.sums(), atol=1e-5)
    assert len(whole.part(2, 5)) == 3


class Capped(nn.Module):
    """A model that does something to its logits behind the head, as Gemma does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, []

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def forward(self, **inputs: object) -> object:
        output = self.inner(**inputs)
        self.seen.append(tuple(output.logits.shape))
        output.logits = 2.0 * torch.tanh(output.logits / 2.0)
        return output


def test_the_head_sees_answer_tokens_only_and_what_comes_behind_it_still_happens() -> None:
    capped = Capped(llama(TOK)).eval()
    batch = pad_answers(ITEMS, 0)
    labels = batch.pop("labels")[:, 1:]
    found = answer_logits(capped, batch, labels >= 0)
    assert capped.seen == [(1, int((labels >= 0).sum()), len(TOK))]
    whole = capped(**batch, use_cache=False).logits[:, :-1][labels >= 0]
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)
    head = capped.get_output_embeddings()
    assert not head._forward_pre_hooks, "the hook stays behind"


def test_under_adapters_and_in_half_precision() -> None:
    """Probabilities of a model in bfloat16 are those of its logits in float32, not rounded once more."""
    from peft import LoraConfig, get_peft_model

    peft = get_peft_model(llama(TOK), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    for i, item in enumerate(ITEMS[:3]):
        own = score_answers(peft, ITEMS[:3], 0).logp[i]
        np.testing.assert_allclose(own, token_logp(peft, item).detach(), atol=1e-5)
    half = llama(TOK).to(torch.bfloat16)
    found = score_answers(half, ITEMS, 0)
    assert found.logp[0].dtype == np.float32
    assert len({float(value) for value in np.concatenate(found.logp)}) > 15, "log probabilities on a coarse grid"


def test_mode_is_left_as_it_was() -> None:
    model = real_gpt2()  # has dropout
    model.train()
    first = score_answers(model, ITEMS[:2], 0).sums()
    assert model.training
    np.testing.assert_array_equal(first, score_answers(model, ITEMS[:2], 0).sums())


def test_a_word_tokenizer_ends_with_its_full_stop() -> None:
    tok = word_tokenizer(["b a", "c ."])
    assert tok.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<pad>", "<s>", ".", "<unk>", "a"]
    assert tok.eos_token_id == 2 and tok("a x b .")["input_ids"] == [4, 3, 5, 2]


def test_tiny_llama_is_tied_and_drawn_from_the_global_generator() -> None:
    one, two, other = llama(TOK, 0), llama(TOK, 0), llama(TOK, 1)
    assert one.lm_head.weight is one.model.embed_tokens.weight
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
