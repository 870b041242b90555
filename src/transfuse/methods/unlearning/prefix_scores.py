"""How probable each of a few answers is to many questions that share contexts, with each context computed once.

The usual loop generates an answer to each prompt, and reads the context anew for every question about it. Here the
prompts of a group are cut at the end of what they have in common; that part passes the model once, its keys and values
are repeated for the questions, and answers are compared by their log probabilities, so that nothing is generated.

>>> from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer
>>> tokenizer = word_tokenizer(["a thing is big . big ? small ? yes no"])
>>> asked = [[{"role": "user", "content": f"a thing is big . {word} ?"}] for word in ("big", "small")]
>>> PrefixScorer(tiny_llama(tokenizer, 16, 1), tokenizer).log_probs(asked, ("yes", "no"), groups=[0, 0]).shape
(2, 2)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transfuse.errors import UserError
from transfuse.methods.unlearning.context_ladder import Message

Render = Callable[[Any, Sequence[Message]], str]


def render_messages(tokenizer: Any, messages: Sequence[Message]) -> str:
    """A conversation as the text that the model continues: its chat template, or the turns one after another."""
    if getattr(tokenizer, "chat_template", None):
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    return " ".join(message["content"] for message in messages)


@dataclass(frozen=True)
class _Answer:
    """An answer behind a prompt: what the model reads, and the tokens of the answer, which begin at `start`."""

    read: tuple[int, ...]
    start: int
    tokens: tuple[int, ...]


class PrefixScorer:
    """Scores answers by a causal language model of transformers.

    Args:
        model: the model; it is put into evaluation mode.
        tokenizer: its tokenizer.
        render: how a conversation becomes a text.
        batch: prompts a forward pass.
        share: compute common beginnings once; without, each prompt passes whole (for models without a cache).
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, render: Render = render_messages, batch: int = 64, share: bool = True
    ) -> None:
        self.model, self.tokenizer, self.render, self.batch, self.share = model, tokenizer, render, batch, share
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def log_probs(
        self,
        conversations: Sequence[Sequence[Message]],
        options: Sequence[str],
        groups: Sequence[Hashable] | None = None,
    ) -> np.ndarray:
        """Log probabilities of each option after each conversation, summed over its tokens, (conversations, options).

        Args:
            conversations: prompts; the last message is the user's.
            options: answers to compare.
            groups: conversations of one group share what they have in common; none share without.
        """
        answers = [[self._encode(c, option) for option in options] for c in conversations]
        members: dict[Hashable, list[int]] = {}
        for number in range(len(conversations)):
            members.setdefault(groups[number] if groups is not None and self.share else number, []).append(number)
        found = np.zeros((len(conversations), len(options)))
        training = self.model.training
        self.model.eval()
        for batch in self._batches([_Group.of([answers[n] for n in m], m, self.share) for m in members.values()]):
            self._score(batch, found)
        self.model.train(training)
        return found

    def _encode(self, messages: Sequence[Message], option: str) -> _Answer:
        template = bool(getattr(self.tokenizer, "chat_template", None))
        text = self.render(self.tokenizer, messages)
        glue = "" if template or not text or text[-1].isspace() else " "
        prompt, whole = (
            self.tokenizer(part, add_special_tokens=not template)["input_ids"] for part in (text, text + glue + option)
        )
        if len(whole) > 1 and whole[-1] == self.tokenizer.eos_token_id:
            whole = whole[:-1]  # some tokenizers append one of their own
        start = _common([prompt, whole])
        if not 0 < start < len(whole):
            raise UserError(
                f"option {option!r} after {text[-40:]!r}", "a prompt and an answer with tokens of their own"
            )
        return _Answer(tuple(whole[:-1]), start, tuple(whole[start:]))

    def _batches(self, groups: Sequence[_Group]) -> list[list[_Group]]:
        """Groups of alike length together, about `batch` prompts at a time; those that share nothing apart."""
        found: list[list[_Group]] = []
        for group in sorted(groups, key=lambda g: (g.prefix > 0, g.prefix, len(g.rows[0]))):
            last = found[-1] if found else None
            fits = last and sum(len(g.rows) for g in last) + len(group.rows) <= self.batch
            if last is None or not fits or (last[0].prefix > 0) != (group.prefix > 0):
                found.append([group])
            else:
                last.append(group)
        return found

    @torch.inference_mode()
    def _score(self, groups: Sequence[_Group], found: np.ndarray) -> None:
        device = next(self.model.parameters()).device
        rows = [row[group.prefix :] for group in groups for row in group.rows]
        owner = [place for place, group in enumerate(groups) for _ in group.rows]
        cache, before = None, torch.zeros(len(rows), 0, dtype=torch.long, device=device)
        if groups[0].prefix:
            ids, mask = _padded([group.rows[0][: group.prefix] for group in groups], device)
            index = torch.tensor(owner, device=device)
            none = torch.zeros(1, dtype=torch.long, device=device)
            cache = self._pass(ids, mask, torch.zeros_like(mask[:, :1]), None, (none, none), True).past_key_values
            cache.batch_select_indices(index)
            before = mask[index]
        ids, mask = _padded(rows, device)
        row, place, token, target = self._places(groups)
        places = torch.tensor(row, device=device), torch.tensor(place, device=device)
        logits = self._pass(ids, torch.cat([before, mask], 1), before.sum(1, keepdim=True), cache, places).logits
        logp = torch.log_softmax(logits.float(), dim=-1)  # (answer tokens, vocabulary)
        values = logp.gather(-1, torch.tensor(token, device=device)[:, None])[:, 0].double().cpu().numpy()
        np.add.at(found, tuple(np.array(target).T), values)

    def _pass(
        self, ids: Tensor, mask: Tensor, first: Tensor, cache: Any, places: tuple[Tensor, Tensor], keep: bool = False
    ) -> Any:
        """A forward pass of right-padded rows behind a cache, with logits at some places only, (places, vocabulary).

        `first` is the position of each row's first token. Elsewhere the head would cost more than the rest.
        """
        more: dict[str, Any] = {"past_key_values": cache} if cache is not None else {}
        if self._takes_positions:
            more["position_ids"] = first + torch.arange(ids.shape[1], device=ids.device)
        head = self.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda module, args: (args[0][places][None], *args[1:]))
        try:
            output = self.model(input_ids=ids, attention_mask=mask, use_cache=keep or cache is not None, **more)
        finally:
            handle.remove()
        output.logits = output.logits[0]
        return output

    @staticmethod
    def _places(groups: Sequence[_Group]) -> tuple[list[int], list[int], list[int], list[tuple[int, int]]]:
        """Row and place of each answer token's prediction, the token, and the score it counts to."""
        row, place, token, target = [], [], [], []
        first = 0
        for group in groups:
            for which, number, option, answer in group.wanted:
                for offset, value in enumerate(answer.tokens):
                    row.append(first + which)
                    place.append(answer.start - 1 + offset - group.prefix)
                    token.append(value)
                    target.append((number, option))
            first += len(group.rows)
        return row, place, token, target


@dataclass(frozen=True)
class _Group:
    """Prompts with a common beginning.

    Attributes:
        prefix: tokens in common.
        rows: what is read, each once.
        wanted: row, number of the conversation, option, answer.
    """

    prefix: int
    rows: tuple[tuple[int, ...], ...]
    wanted: tuple[tuple[int, int, int, _Answer], ...]

    @classmethod
    def of(cls, answers: Sequence[Sequence[_Answer]], numbers: Sequence[int], share: bool) -> _Group:
        rows: dict[tuple[int, ...], int] = {}
        wanted = [
            (rows.setdefault(answer.read, len(rows)), number, option, answer)
            for own, number in zip(answers, numbers, strict=True)
            for option, answer in enumerate(own)
        ]
        limit = min(answer.start for own in answers for answer in own) - 1  # the last prompt token predicts
        prefix = min(limit, _common(list(rows))) if share and len(rows) > 1 else 0
        return cls(prefix, tuple(rows), tuple(wanted))


def _common(rows: Sequence[Sequence[int]]) -> int:
    """Length of the common beginning."""
    low, high = min(rows, key=tuple), max(rows, key=tuple)  # in order, all others lie between the two
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, padded on the right, where causal attention does not look."""
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return ids.to(device), mask.to(device)
