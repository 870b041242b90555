"""Scores with shared prefixes against one whole pass a prompt, in several architectures and tokenizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from transfuse.errors import UserError
from transfuse.methods.unlearning.prefix_scores import PrefixScorer, render_messages
from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer

WORDS = "it is big red soft old . ? yes no not at all user : model :"


def models() -> dict[str, tuple[Any, Any]]:
    tokenizer = word_tokenizer([WORDS])
    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": 0}
    gpt = GPT2Config(**small, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    bloom = BloomConfig(**small, hidden_size=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    found = {
        "llama": tiny_llama(tokenizer, 16, 2),
        "gpt2": GPT2LMHeadModel(gpt),
        "bloom": BloomForCausalLM(bloom),
    }
    for model in found.values():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return {name: (model, tokenizer) for name, model in found.items()}


def asked() -> tuple[list[list[dict[str, str]]], list[int]]:
    """Contexts of several lengths, one of them empty, with questions of several lengths."""
    conversations, groups = [], []
    for group, context in enumerate(("", "it is big .", "it is not red . it is soft . it is old .", "it is")):
        for question in ("big ?", "is it not red ?", "soft ?"):
            conversations.append([{"role": "user", "content": f"{context} {question}".strip()}])
            groups.append(group)
    return conversations, groups


@torch.no_grad()
def one_by_one(model: Any, tokenizer: Any, conversations: Any, options: tuple[str, ...]) -> np.ndarray:
    found = np.zeros((len(conversations), len(options)))
    for row, messages in enumerate(conversations):
        for column, option in enumerate(options):
            prompt = tokenizer(render_messages(tokenizer, messages))["input_ids"]
            answer = tokenizer(option)["input_ids"]
            logp = torch.log_softmax(model(torch.tensor([prompt + answer])).logits[0].double(), -1)
            found[row, column] = sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("options", [("yes", "no"), ("yes", "not at all", "no")])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_scores_are_those_of_whole_passes(name: str, options: tuple[str, ...], batch: int) -> None:
    model, tokenizer = models()[name]
    conversations, groups = asked()
    expected = one_by_one(model.eval(), tokenizer, conversations, options)
    for share in (True, False):
        scorer = PrefixScorer(model, tokenizer, batch=batch, share=share)
        np.testing.assert_allclose(scorer.log_probs(conversations, options, groups), expected, atol=2e-4)


def test_contexts_pass_the_model_once() -> None:
    model, tokenizer = models()["llama"]
    conversations, groups = asked()
    seen: list[int] = []
    handle = model.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].numel()), with_kwargs=True)
    for share in (True, False):
        PrefixScorer(model, tokenizer, share=share).log_probs(conversations, ("yes", "no"), groups)
    handle.remove()
    assert len(seen) == 4  # those without a common beginning, contexts, questions; all at once without sharing
    assert sum(seen[:3]) < 0.7 * seen[3]


def test_a_chat_template_brings_its_own_special_tokens() -> None:
    model, tokenizer = models()["llama"]
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}model : "
    conversations, groups = asked()
    scores = PrefixScorer(model, tokenizer).log_probs(conversations, ("yes", "no"), groups)
    np.testing.assert_allclose(scores, one_by_one(model.eval(), tokenizer, conversations, ("yes", "no")), atol=2e-4)


def test_modes_are_left_as_they_were_and_empty_answers_refused() -> None:
    model, tokenizer = models()["llama"]
    conversations, groups = asked()
    model.train()
    PrefixScorer(model, tokenizer).log_probs(conversations, ("yes",), groups)
    assert model.training
    with pytest.raises(UserError, match="option ' '"):
        PrefixScorer(model, tokenizer).log_probs(conversations, (" ",))
