"""Questions and answers as token ids with labels on the answer only, in batches padded on the right.

>>> from transfuse.nets.tiny_llama import word_tokenizer
>>> tokenizer = word_tokenizer(["the capital of france is paris ."])
>>> encoded = encode_answer(tokenizer, "the capital of france is", "paris")
>>> encoded.ids[encoded.start :] == tuple(tokenizer.convert_tokens_to_ids(["paris", "."]))
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from transfuse.errors import UserError

IGNORED = -100  # the label that cross-entropy leaves out, as everywhere in transformers


@dataclass(frozen=True)
class EncodedAnswer:
    """Token ids of prompt and answer; the answer (with its end-of-sequence token) begins at `start`."""

    ids: tuple[int, ...]
    start: int


def encode_answer(tokenizer: Any, prompt: str, answer: str, *, chat: bool = False, end: bool = True) -> EncodedAnswer:
    """Tokenise prompt and answer together and find where the answer begins.

    Tokenised apart, the two would meet in other tokens than the model sees when it writes. A token that holds the end
    of the prompt and the beginning of the answer counts to the answer.

    Args:
        tokenizer: any tokenizer of transformers.
        prompt: what the model is given.
        answer: what it should write; a space comes between the two unless the prompt ends with white space.
        chat: put the prompt into the tokenizer's chat template as the user's turn.
        end: append the end-of-sequence token, so that stopping is part of the answer.
    """
    if not answer.strip():
        raise UserError(f"an empty answer to {prompt!r}", "a text to score or to forget")
    if chat:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("chat=True and a tokenizer without a chat template", fix="leave chat out for a base model")
        turn = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    glue = "" if not prompt or prompt[-1].isspace() or chat else " "
    whole = prompt + glue + answer
    special = not chat  # a template already holds its special tokens
    if tokenizer.is_fast:
        found = tokenizer(whole, add_special_tokens=special, return_offsets_mapping=True)
        ids = list(found["input_ids"])
        spans = found["offset_mapping"]
        start = next((i for i, (a, b) in enumerate(spans) if b > len(prompt) and b > a), len(ids))
    else:
        ids = list(tokenizer(whole, add_special_tokens=special)["input_ids"])
        alone = list(tokenizer(prompt, add_special_tokens=special)["input_ids"])
        start = next((i for i, (a, b) in enumerate(zip(ids, alone, strict=False)) if a != b), min(len(alone), len(ids)))
    while len(ids) > start and ids[-1] == tokenizer.eos_token_id:
        ids.pop()  # some tokenizers append one of their own
    if start >= len(ids):
        raise UserError(f"answer {answer!r} has no token of its own", "a text that the tokenizer knows")
    if end and tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return EncodedAnswer(tuple(ids), start)


def pad_answers(encoded: Sequence[EncodedAnswer], pad: int) -> dict[str, torch.Tensor]:
    """A batch as models of transformers take it: input_ids, attention_mask and labels, each (batch, length)."""
    length = max(len(item.ids) for item in encoded)
    ids = torch.full((len(encoded), length), pad)
    mask = torch.zeros((len(encoded), length), dtype=torch.long)
    labels = torch.full((len(encoded), length), IGNORED)
    for row, item in enumerate(encoded):
        tokens = torch.tensor(item.ids)
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, item.start : len(tokens)] = tokens[item.start :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def by_length(encoded: Sequence[EncodedAnswer], size: int) -> list[list[int]]:
    """Indices in batches of alike length, so that little is spent on padding."""
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].ids))
    return [order[first : first + size] for first in range(0, len(order), size)]
