"""Reinforced contrast: its equation, one model with an adapter against two, and generation of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.methods.unlearning.small_models import items, llama, real_gpt2, same, tokenizer, weights
from tests.methods.unlearning.test_adapter_composition import randomised
from transformers import LogitsProcessorList

from transfuse.methods.unlearning.answer_scores import score_answers
from transfuse.methods.unlearning.answer_training import answer_control, fine_tune
from transfuse.methods.unlearning.generated_answers import write_answers
from transfuse.methods.unlearning.reinforced_contrast import (
    Config,
    ContrastedModel,
    ReinforcedContrast,
    contrast,
    unlearn_reinforced_contrast,
)

TOK = tokenizer()
GONE, KEPT = items(TOK, 0, 4), items(TOK, 4, 12)
IDS = torch.tensor([[4, 5, 6, 7], [8, 9, 10, 11]])


def test_only_what_the_reinforced_model_raises_is_lowered() -> None:
    generator = torch.Generator().manual_seed(0)
    base, reinforced = (torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(2))
    found = contrast(base, reinforced, 1.7)
    for v, r, u in zip(base.tolist(), reinforced.tolist(), found.tolist(), strict=True):
        assert u == pytest.approx(v - 1.7 * max(0.0, r - v), abs=1e-12)
    assert torch.equal(contrast(base, reinforced, 0.0), base)


def pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    """The same reinforced model twice: as an adapter on its base, and merged."""
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"])
    merged = randomised(get_peft_model(llama(TOK), config)).merge_and_unload()
    return randomised(get_peft_model(llama(TOK), config)), merged


def test_one_model_with_an_adapter_says_what_two_models_say() -> None:
    peft, merged = pair()
    base = llama(TOK)
    found = ContrastedModel(peft, 2.5).eval()(IDS).logits
    torch.testing.assert_close(found, contrast(base(IDS).logits, merged(IDS).logits, 2.5), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ContrastedModel(peft, 0.0).eval()(IDS).logits, base(IDS).logits)


def test_generation_with_the_processor_is_greedy_on_the_contrast() -> None:
    """Prompts of several lengths, padded on the left: the reinforced model must see neither pads nor shifted places."""
    peft, merged = pair()
    base = llama(TOK)
    expected = write_answers(ContrastedModel(peft, 2.0), TOK, GONE, tokens=6)  # right-padded, one step after another
    length = max(item.start for item in GONE)
    ids = torch.tensor([[0] * (length - item.start) + list(item.ids[: item.start]) for item in GONE])
    found = base.generate(
        input_ids=ids, attention_mask=(ids != 0).long(), do_sample=False, max_new_tokens=6, pad_token_id=0,
        logits_processor=LogitsProcessorList([ReinforcedContrast(merged, 2.0, pad=0)]),
    )[:, length:]  # fmt: skip
    for row, text in zip(found.tolist(), expected, strict=True):
        kept = row[: row.index(TOK.eos_token_id)] if TOK.eos_token_id in row else row
        assert TOK.decode(kept, skip_special_tokens=True) == text


def test_learned_positions_are_not_shifted_by_padding() -> None:
    reinforced = real_gpt2()
    scores = torch.zeros(1, 50257)
    plain = ReinforcedContrast(reinforced, 1.0)(torch.tensor([[5, 6, 7]]), scores)
    padded = ReinforcedContrast(reinforced, 1.0, pad=3)(torch.tensor([[3, 3, 5, 6, 7]]), scores)
    torch.testing.assert_close(plain, padded, atol=1e-4, rtol=1e-4)


def test_log_probabilities_are_contrasted_with_log_probabilities() -> None:
    _, merged = pair()
    scores = torch.log_softmax(llama(TOK)(IDS).logits[:, -1], -1)
    found = ReinforcedContrast(merged, 2.0, log_probs=True)(IDS, scores)
    expected = contrast(scores, torch.log_softmax(merged(IDS).logits[:, -1], -1), 2.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_procedure_forgets_by_avoiding_and_leaves_the_model_alone() -> None:
    model = llama(TOK)
    fine_tune(model, GONE + KEPT, 0, steps=8, rate=1e-2, batch=12, seed=0)
    before, known = weights(model), answer_control(GONE, 0)(model)
    config = Config(rank=2, steps=8, rate=1e-2, grid=(0.0, 5.0), keep=0.0)
    found = unlearn_reinforced_contrast(model, TOK, GONE, KEPT, config, seed=0)
    assert isinstance(found, ContrastedModel) and found.strength == 5.0
    assert answer_control(GONE, 0)(found) < known
    assert same(found.peft.unload(), before)


def test_degenerate_strength_is_the_model() -> None:
    model = llama(TOK)
    expected = score_answers(model, KEPT, 0)
    found = unlearn_reinforced_contrast(model, TOK, GONE, KEPT, Config(rank=2, steps=2, grid=(0.0,)), seed=0)
    np.testing.assert_allclose(score_answers(found, KEPT, 0).sums(), expected.sums(), atol=1e-4)
