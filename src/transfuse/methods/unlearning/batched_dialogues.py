"""Many interactive dialogues with one causal language model at once, in which nothing is computed twice.

The usual loop renders a dialogue anew for each turn, and fills the cache again from its first token. Here a batch of
dialogues goes on together: keys and values are kept, each turn appends only what is new, dialogues that begin with the
same turns share them and their cache until they part, and a row stops as soon as it is finished. Where a row has
nothing to append it appends a hole, which attention does not see; positions count what is there, so that answers are
those of the usual loop.

>>> from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer
>>> tokenizer = word_tokenizer(["who are you ? i am a model ."])
>>> dialogues = BatchedDialogues(tiny_llama(tokenizer, 16, 1), tokenizer, max_new_tokens=3)
>>> [len(replies) for replies in dialogues.converse([["who ?"], ["who ?", "you ?"]])]
[1, 2]
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from transfuse.errors import UserError
from transfuse.hosts.causal_model import Device, load_causal_model
from transfuse.methods.unlearning.respondents import Ask, Message, Respondent
from transfuse.methods.unlearning.spoken_tokens import Render, Speech, render_messages

_SHARED = 8  # tokens at the beginning of all dialogues that are worth a pass of their own
_HOLES = 1.5  # slots over tokens from which a cache is packed anew


@dataclass
class _Row:
    """A dialogue so far: its messages, the dialogues that share them, its tokens in the cache, the reply in work."""

    messages: list[Message]
    members: list[int]
    cached: list[int] = field(default_factory=list)
    reply: list[int] = field(default_factory=list)
    over: bool = False
    last: bool = False  # no member goes on after this turn


class _State:
    """Keys and values of a batch, and which of their slots hold a token: (rows, slots)."""

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        self.model = model
        self.cache = DynamicCache(config=model.config)
        self.mask = torch.zeros(1, 0, dtype=torch.bool, device=model.device)
        self.head_only_last = "logits_to_keep" in inspect.signature(model.forward).parameters

    def select(self, rows: Sequence[int]) -> None:
        """Keep, drop or repeat rows."""
        if list(rows) == list(range(len(self.mask))):
            return
        index = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[index]
        if self.mask.shape[1]:
            self.cache.batch_select_indices(index)

    def forget(self, kept: Sequence[int]) -> None:
        """Keep only so many first tokens of each row."""
        limit = torch.tensor(kept, device=self.mask.device)[:, None]
        self.mask = self.mask & (self.mask.cumsum(1) <= limit)

    def pack(self) -> None:
        """Push the tokens of each row together at the right end, where holes have become many."""
        slots, length = self.mask.shape[1], int(self.mask.sum(1).max()) if self.mask.numel() else 0
        if slots <= _HOLES * length + _SHARED:
            return
        order = torch.sort(self.mask.byte(), dim=1, stable=True).indices[:, slots - length :]  # (rows, length)
        self.mask = self.mask.gather(1, order)
        for layer in self.cache.layers:
            for name in ("keys", "values"):
                old = getattr(layer, name)  # (rows, heads, slots, width)
                index = order[:, None, :, None].expand(-1, old.shape[1], -1, old.shape[3]).to(old.device)
                setattr(layer, name, old.gather(2, index))

    def feed(self, news: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens to the rows, aligned at the right; logits after each row's last, (rows, vocabulary)."""
        width = max(map(len, news))
        ids = torch.zeros(len(news), width, dtype=torch.long)
        fresh = torch.zeros(len(news), width, dtype=torch.bool)
        for row, tokens in enumerate(news):
            if tokens:
                ids[row, width - len(tokens) :] = torch.tensor(tokens)
                fresh[row, width - len(tokens) :] = True
        ids, fresh = ids.to(self.mask.device), fresh.to(self.mask.device)
        before = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask.expand(len(news), -1), fresh], dim=1)
        more = {"logits_to_keep": 1} if self.head_only_last else {}
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask.long(),
            position_ids=(before + fresh.cumsum(1) - 1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            **more,
        )
        return output.logits[:, -1]


class BatchedDialogues(Respondent):
    """A causal language model of transformers as a respondent.

    Args:
        model: the model; device and dtype are its own.
        tokenizer: its tokenizer, with a chat template or without.
        max_new_tokens: of a reply.
        batch: dialogues at a time.
        temperature: of samples (`draw` above 0).
        stop: texts that end a reply; without a chat template a line break does.
        render: messages -> text to continue, where `render_messages` does not suit the model.

    Models without a plain cache (sliding windows, state spaces) are asked turn by turn through `generate`, in batches
    padded on the left.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_new_tokens: int = 16,
        batch: int = 128,
        temperature: float = 0.7,
        stop: Sequence[str] | None = None,
        render: Render = render_messages,
    ) -> None:
        if max_new_tokens < 1 or batch < 1 or temperature <= 0:
            raise UserError(
                f"max_new_tokens {max_new_tokens}, batch {batch}, temperature {temperature}", "numbers above 0"
            )
        self.model = model
        self.max_new_tokens, self.batch, self.temperature = max_new_tokens, batch, temperature
        self.speech = Speech.of(model, tokenizer, render, stop)
        self.keep_cache = has_plain_cache(model)

    @torch.inference_mode()
    def converse(self, dialogues: Sequence[Sequence[str]], draw: int = 0) -> list[list[str]]:
        """Lead all dialogues to their end; see `Respondent`."""
        replies: list[list[str]] = [[] for _ in dialogues]
        order = sorted((i for i, d in enumerate(dialogues) if d), key=lambda i: (len(dialogues[i]), *dialogues[i]))
        was_training = self.model.training
        self.model.eval()
        try:
            for first in range(0, len(order), self.batch):
                self._converse(dialogues, order[first : first + self.batch], replies, draw)
        finally:
            self.model.train(was_training)
        return replies

    def _converse(
        self, dialogues: Sequence[Sequence[str]], members: list[int], replies: list[list[str]], draw: int
    ) -> None:
        """A batch of dialogues. Most likely replies to the same turns are the same, so rows part only with them."""
        state = _State(self.model) if self.keep_cache else None
        rows = [_Row([], members)] if draw == 0 else [_Row([], [member]) for member in members]
        for turn in range(max(len(dialogues[member]) for member in members)):
            parents, asked = _branched(rows, dialogues, turn)
            seeds = None if draw == 0 else [f"{draw}/{row.members[0]}/{turn}" for row in asked]
            if state is None:
                rows = self._generate(asked, seeds)
            else:
                if turn:
                    state.select(parents)
                rows = self._append(asked, state, seeds)
            for row in asked:
                text = self.speech.text(row.reply)
                row.messages.append({"role": "assistant", "content": text})
                for member in row.members:
                    replies[member].append(text)

    def _append(self, rows: list[_Row], state: _State, seeds: list[str] | None) -> list[_Row]:
        """One reply of every row, appended to what the cache holds; returns the rows that it still holds."""
        logits = self._prefill(rows, state)
        generators = dict(zip(map(id, rows), map(_generator, seeds), strict=True)) if seeds else {}
        for step in range(self.max_new_tokens):
            for row, token in zip(rows, self._choose(logits, rows, generators), strict=True):
                if not row.over:
                    row.reply.append(token)
                    row.over = self.speech.is_over(row.reply)
            if step == self.max_new_tokens - 1 or all(row.over for row in rows):
                break
            kept = [place for place, row in enumerate(rows) if not (row.over and row.last)]
            if 2 * len(kept) <= len(rows):  # half the rows have nothing more to say
                state.select(kept)
                rows = [rows[place] for place in kept]
            news = [[] if row.over else row.reply[-1:] for row in rows]
            logits = state.feed(news)
            for row, tokens in zip(rows, news, strict=True):
                row.cached += tokens
        return rows

    def _prefill(self, rows: list[_Row], state: _State) -> Tensor:
        """Feed what each row's dialogue has in excess of its cache."""
        wanted = [self.speech.encode(row.messages) for row in rows]
        # What the model wrote may tokenise differently as part of a text; the last token is fed anew for its logits.
        kept = [min(_common(row.cached, ids), len(ids) - 1) for row, ids in zip(rows, wanted, strict=True)]
        if state.mask.shape[1] == 0:
            shared = min(_common(wanted[0], ids) for ids in wanted)
            shared = min(shared, min(map(len, wanted)) - 1)
            if len(rows) > 1 and shared >= _SHARED:
                state.feed([wanted[0][:shared]])
                state.select([0] * len(rows))
                kept = [shared] * len(rows)
        else:
            state.forget(kept)
            state.pack()
        logits = state.feed([ids[start:] for ids, start in zip(wanted, kept, strict=True)])
        for row, ids in zip(rows, wanted, strict=True):
            row.cached = ids
        return logits

    def _choose(self, logits: Tensor, rows: Sequence[_Row], generators: dict[int, torch.Generator]) -> list[int]:
        """The next token of each row: the most likely, or a draw by the row's own generator."""
        if generators:
            scaled = torch.log_softmax(logits.float() / self.temperature, dim=-1).cpu()
            noise = [torch.empty(scaled.shape[1]).exponential_(generator=generators[id(row)]) for row in rows]
            return list(map(int, (scaled - torch.stack(noise).log()).argmax(-1)))
        return list(map(int, logits.argmax(-1)))

    def _generate(self, rows: list[_Row], seeds: list[str] | None) -> list[_Row]:
        """One reply of every row through the model's own `generate`, with its dialogue from the first token on."""
        encoded = [self.speech.encode(row.messages) for row in rows]
        if seeds is None:
            for row, ids in zip(rows, _generated(self.model, self.speech, encoded, self.max_new_tokens), strict=True):
                row.reply = ids
            return rows
        for row, ids, seed in zip(rows, encoded, seeds, strict=True):  # one by one, so that each has its own draws
            with torch.random.fork_rng():
                torch.manual_seed(_generator(seed).initial_seed())
                row.reply = _generated(self.model, self.speech, [ids], self.max_new_tokens, self.temperature)[0]
        return rows


def generating(
    model: Any, tokenizer: Any, *, max_new_tokens: int = 16, stop: Sequence[str] | None = None,
    render: Render = render_messages,
) -> Ask:  # fmt: skip
    """The usual way as a callable: one dialogue at a time, filled in anew each turn, greedy, by `generate`."""
    speech = Speech.of(model, tokenizer, render, stop)

    def ask(messages: list[Message]) -> str:
        return speech.text(_generated(model, speech, [speech.encode(messages)], max_new_tokens)[0])

    return ask


def _generated(
    model: Any, speech: Speech, encoded: Sequence[Sequence[int]], limit: int, temperature: float | None = None
) -> list[list[int]]:
    """New tokens of each prompt, up to their end."""
    width = max(map(len, encoded))
    ids = torch.full((len(encoded), width), speech.tokenizer.pad_token_id or 0)
    mask = torch.zeros(len(encoded), width, dtype=torch.long)
    for row, tokens in enumerate(encoded):
        ids[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1
    how: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0}
    if temperature is not None:
        how |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    if speech.stop:
        how["stopping_criteria"] = [_stopper(speech, width)]
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=limit,
            eos_token_id=sorted(speech.ends) or None, pad_token_id=speech.tokenizer.pad_token_id or 0, **how,
        )  # fmt: skip
    found = []
    for tokens in output[:, width:].tolist():
        size = next((i + 1 for i in range(len(tokens)) if speech.is_over(tokens[: i + 1])), len(tokens))
        found.append(tokens[:size])
    return found


def _stopper(speech: Speech, width: int) -> Any:
    """The stop texts as a criterion of `generate`, whose own cannot read word-level vocabularies."""
    from transformers import StoppingCriteria

    class Stop(StoppingCriteria):  # type: ignore[misc, unused-ignore]
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
            over = [speech.is_over(ids) for ids in input_ids[:, width:].tolist()]
            return torch.tensor(over, device=input_ids.device)

    return Stop()


def has_plain_cache(model: Any) -> bool:
    """Whether a model keeps keys and values of all tokens in all layers, so that rows may have holes."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _branched(rows: Sequence[_Row], dialogues: Sequence[Sequence[str]], turn: int) -> tuple[list[int], list[_Row]]:
    """The rows of the next turn, one for each new question after the same dialogue, and the row each comes from."""
    groups: dict[tuple[int, str], list[int]] = {}
    for place, row in enumerate(rows):
        for member in row.members:
            if len(dialogues[member]) > turn:
                groups.setdefault((place, dialogues[member][turn]), []).append(member)
    asked = []
    for (place, question), members in groups.items():
        messages = [*rows[place].messages, {"role": "user", "content": question}]
        last = all(len(dialogues[member]) == turn + 1 for member in members)
        asked.append(_Row(messages, members, list(rows[place].cached), last=last))
    return [place for place, _ in groups], asked


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with together."""
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return place
    return min(len(first), len(second))


def _generator(seed: str) -> torch.Generator:
    digest = hashlib.sha256(seed.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def load_dialogues(
    name: str, *, max_new_tokens: int = 64, batch: int = 64, device: Device = "auto", temperature: float = 0.7
) -> BatchedDialogues:
    """A model and its tokenizer from a folder or a hub name, in the type that they were saved in.

    Raises:
        UserError: there is no such model, or no such device.
    """
    return BatchedDialogues(
        *load_causal_model(name, device), max_new_tokens=max_new_tokens, batch=batch, temperature=temperature
    )
