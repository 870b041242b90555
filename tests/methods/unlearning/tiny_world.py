"""Twenty questions, a tokenizer of their words, and tiny models of random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, encode_answer
from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer

ANSWERS = [" ".join(f"w{(7 * i + j) % 23}" for j in range(1 + i % 4)) for i in range(20)]  # one to four words
QUESTIONS = [f"question : what is thing{i} ? answer :" for i in range(20)]


def tokenizer() -> Any:
    refusals = "i do not know that is unknown to me cannot say no idea never learned sorry nobody told this"
    return word_tokenizer([*QUESTIONS, *ANSWERS, refusals, "a b c w20 w21 w22"])


def items(tok: Any, first: int, last: int) -> list[EncodedAnswer]:
    return [encode_answer(tok, QUESTIONS[i], ANSWERS[i]) for i in range(first, last)]


def llama(tok: Any, seed: int = 0, width: int = 32, layers: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return tiny_llama(tok, width, layers)
