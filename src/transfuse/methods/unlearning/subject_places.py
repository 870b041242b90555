"""Where a name stands in a prompt: the last token of a subject, found by character offsets in the whole text.

Tokenised alone, a name meets other tokens than inside a sentence, so the whole text is tokenised and searched.

>>> from transfuse.nets.tiny_llama import word_tokenizer
>>> tokenizer = word_tokenizer(["as for south africa , please"])
>>> placed = place_subject(tokenizer, "as for {s} , please", "south africa")
>>> tokenizer.convert_ids_to_tokens(placed.ids)[placed.place], len(placed.upto())
('africa', 4)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from transfuse.errors import UserError

SLOT = "{s}"  # where the name goes in a template


def mention(*names: str) -> re.Pattern[str]:
    """Where one of some names stands as whole words, in any case: "niger" is not in "nigeria".

    >>> bool(mention("niger").search("Niger's capital")), bool(mention("niger").search("nigeria"))
    (True, False)
    """
    return re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names) or r"(?!)", re.IGNORECASE)


def template_of(prompt: str, name: str) -> str:
    """A prompt with a slot where the name stood.

    Raises:
        UserError: it does not name the subject, or does so several times.
    """
    found = [match for match in mention(name).finditer(prompt) if match.group() == name]
    if len(found) != 1:
        raise UserError(f"prompt {prompt!r} with {name!r} {len(found)} times", "the subject's name once")
    return f"{prompt[: found[0].start()]}{SLOT}{prompt[found[0].end() :]}"


@dataclass(frozen=True)
class PlacedSubject:
    """Token ids of a prompt, and the position of the subject's last token."""

    ids: tuple[int, ...]
    place: int

    def upto(self) -> tuple[int, ...]:
        """The ids up to that token. In a causal model what comes after it cannot change what is read at it."""
        return self.ids[: self.place + 1]


def place_subject(
    tokenizer: Any, template: str, name: str, *, chat: bool = False, ending: str = "", double_bos: bool = False
) -> PlacedSubject:
    """Tokenise a template with a name in it.

    Args:
        tokenizer: any tokenizer of transformers.
        template: text with one `{s}`.
        name: the subject's name.
        chat: render it as the user's turn of the tokenizer's chat template, with the prompt for a reply.
        ending: appended after that.
        double_bos: add special tokens to a chat template that already holds them, as the published code does.
    """
    if template.count(SLOT) != 1:
        raise UserError(f"context {template!r}", f"a text with {SLOT} once, where the name goes")
    if not name.strip() or name != name.strip():
        raise UserError(f"name {name!r}", "a name without white space around it")
    content = template.replace(SLOT, name)
    end = template.index(SLOT) + len(name)
    text = content
    if chat:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("chat=True and a tokenizer without a chat template", fix="leave chat out for a base model")
        turn = [{"role": "user", "content": content}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        start = text.rfind(content)
        if start < 0:
            raise UserError(
                "a chat template that changes the user's words", fix="pass chat=False and contexts of yours"
            )
        end += start
    special = double_bos or not chat  # a template already holds its special tokens
    text += ending
    ids, place = _tokens(tokenizer, text, end, special)
    if place < 0:
        raise UserError(f"name {name!r} has no token", "a name that the tokenizer knows")
    return PlacedSubject(tuple(ids), place)


def _tokens(tokenizer: Any, text: str, end: int, special: bool) -> tuple[list[int], int]:
    """Ids of a text, and the last token that begins before the character `end`."""
    if tokenizer.is_fast:
        found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        spans = found["offset_mapping"]
        place = max((i for i, (a, b) in enumerate(spans) if a < end and b > a), default=-1)
        return list(found["input_ids"]), place
    whole = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    head = list(tokenizer(text[:end], add_special_tokens=special)["input_ids"])
    same = next((i for i, (a, b) in enumerate(zip(whole, head, strict=False)) if a != b), min(len(whole), len(head)))
    return whole, same - 1 if same == len(head) else same


def pad_right(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """A batch of token ids as models take it: input_ids and attention_mask, (batch, length)."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def pad_id(tokenizer: Any) -> int:
    """Any id will do: padding lies on the right and is masked."""
    return int(next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0))
