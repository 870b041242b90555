"""What a decoder holds at names, and which directions general text uses: everything that an edit reads of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.decoder_blocks import Block, read_blocks
from transfuse.methods.unlearning.subject_places import PlacedSubject, mention, pad_id, pad_right, place_subject


@dataclass(frozen=True)
class NameReader:
    """Reads a model at the last token of names, averaged over contexts.

    Attributes:
        model: a causal language model.
        tokenizer: its tokenizer.
        blocks: the blocks whose keys are read, in order; the residual stream is read after the last.
        contexts: templates with one `{s}`.
        chat: put them into the tokenizer's chat template, as the user's turn.
        ending: what follows the chat template's prompt for a reply.
        double_bos: tokenise special tokens a second time, as the published code does.
    """

    model: nn.Module
    tokenizer: Any
    blocks: Sequence[Block]
    contexts: Sequence[str]
    chat: bool = False
    ending: str = ""
    double_bos: bool = False

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def place(self, context: str, name: str) -> PlacedSubject:
        """The tokens of a context with a name in it."""
        if not self.chat:
            return place_subject(self.tokenizer, context, name)
        double = self.double_bos
        return place_subject(self.tokenizer, context, name, chat=True, ending=self.ending, double_bos=double)

    def read(self, names: Sequence[str], contexts: Sequence[str] | None = None) -> tuple[list[Tensor], Tensor]:
        """Keys of each block (d_ff, n) and the stream after the last (d, n), mean over contexts, at least float32."""
        chosen = contexts or self.contexts
        return self.at([self.place(context, name) for name in names for context in chosen], len(names))

    def at(self, placed: Sequence[PlacedSubject], n: int) -> tuple[list[Tensor], Tensor]:
        """The same at given places, as many for each of n names in turn."""
        inputs = pad_right([p.upto() for p in placed], pad_id(self.tokenizer), self.device)
        keys, stream = read_blocks(self.model, self.blocks, inputs)
        rows, places = torch.arange(len(placed)), torch.tensor([p.place for p in placed])
        means = [exact(x[rows, places]).unflatten(0, (n, -1)).mean(1).T for x in (*keys, stream)]
        return means[:-1], means[-1]

    def second_moments(
        self, texts: Sequence[str], without: Sequence[str], max_length: int, batch_tokens: int
    ) -> list[Tensor]:
        """E[k k^T] over the tokens of general text that holds none of the names `without`, (d_ff, d_ff) a block."""
        named = mention(*without)
        kept = [text for text in texts if text.strip() and not named.search(text)]
        if not kept:
            raise UserError(f"{len(texts)} texts, none of them without {', '.join(without) or 'words'}", "general text")
        sums: list[Tensor] = []
        count = 0
        for inputs in self._batches(kept, max_length, batch_tokens):
            keys, _ = read_blocks(self.model, self.blocks, inputs)
            real = inputs["attention_mask"].bool()
            rows = [exact(key[real.to(key.device)]) for key in keys]  # (tokens, d_ff)
            count += len(rows[0])
            products = [k.T @ k for k in rows]
            sums = [m + p for m, p in zip(sums, products, strict=True)] if sums else products
        return [total / count for total in sums]

    def _batches(self, texts: Sequence[str], longest: int, tokens: int) -> Iterator[dict[str, Tensor]]:
        encoded = self.tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
        rows = sorted((ids for ids in encoded if len(ids)), key=len)
        first = 0
        while first < len(rows):
            last = first + 1
            while last < len(rows) and (last + 1 - first) * len(rows[last]) <= tokens:
                last += 1
            yield pad_right(rows[first:last], pad_id(self.tokenizer), self.device)
            first = last


def exact(values: Tensor) -> Tensor:
    """At least float32: half precision is too coarse for moments and solves."""
    return values if values.dtype == torch.float64 else values.float()
