"""ROME, the baseline that edits one fact: after a question about a subject another answer becomes likely.

K. Meng, D. Bau, A. Andonian, Y. Belinkov: Locating and Editing Factual Associations in GPT, NeurIPS 2022, as in its
authors' code (kmeng01/rome, commit 0c06752). One layer, one fact after the other; the key is the mean over the given
wordings of the question in place of random prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.decoder_blocks import decoder_blocks
from transfuse.methods.unlearning.name_reading import NameReader, exact
from transfuse.methods.unlearning.rank_one_redirection import rewrite_key
from transfuse.methods.unlearning.reply_target import Search, reply_target
from transfuse.methods.unlearning.subject_places import pad_id

ROME_SEARCH = Search(steps=20, rate=0.5, decay=0.5, divergence=0.0625, clamp=4.0)  # the authors' values for GPT-2-XL
ESSENCE = "{s} is a"  # the authors' prompt for what is to stay


class FactRewriter:
    """Rewrites facts in a causal language model, in place.

    Args:
        model: a decoder-only model of transformers.
        tokenizer: its tokenizer.
        layer: whose down-projection is edited.
        texts: general text, for the second moment of keys.
        search: how the value is found.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, layer: int, texts: Sequence[str], search: Search = ROME_SEARCH
    ) -> None:
        blocks = decoder_blocks(model)
        if not 0 <= layer < len(blocks):
            raise UserError(f"layer {layer} of a model with {len(blocks)}", f"0 to {len(blocks) - 1}")
        self.model, self.tokenizer, self.block, self.search = model, tokenizer, blocks[layer], search
        self.reader = NameReader(model, tokenizer, [self.block], (ESSENCE,))
        self.moment = self.reader.second_moments(texts, (), max_length=512, batch_tokens=4096)[0]

    def rewrite(self, subject: str, questions: Sequence[str], reply: str) -> None:
        """Make `reply` the answer to questions about a subject.

        Args:
            subject: the name.
            questions: wordings of one question, templates with one `{s}`.
            reply: what is to be answered.
        """
        placed = [self.reader.place(question, subject) for question in questions]
        key = self.reader.at(placed, 1)[0][0]  # (d_ff, 1)
        written = self._written(key)  # (d, 1)
        tokens = self.tokenizer(" " + reply, add_special_tokens=False)["input_ids"]
        essence = self.reader.place(ESSENCE, subject)
        target = reply_target(
            self.model, self.block.down, written[:, 0], placed, tokens, essence, pad_id(self.tokenizer), self.search
        )
        change = rewrite_key(self.moment, key, target[:, None] - written)
        with torch.no_grad():
            weight = self.block.weight()
            weight.copy_((exact(weight) + change.delta()).to(weight.dtype))

    def _written(self, key: Tensor) -> Tensor:
        """What the layer puts out for a key, (d, 1); linear, so that of a mean it is the mean."""
        bias = getattr(self.block.down, "bias", None)
        product = exact(self.block.weight()) @ key
        return product if bias is None else product + exact(bias.detach())[:, None]
