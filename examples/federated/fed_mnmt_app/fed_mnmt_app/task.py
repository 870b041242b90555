"""What server and clients share: the frozen base, its tokenizer, and the text of a node, all from seeds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from transfuse.data.parallel import Parallel, cldr_terms
from transfuse.methods.federated.adapter_client import Pair, encode_pairs
from transfuse.methods.federated.bottleneck_adapters import attach_adapters
from transfuse.nets.tiny_translator import subword_tokenizer, tiny_mbart

LANGUAGES = ("es", "pt", "it", "de", "nl", "sv", "pl", "cs", "sk")


@cache
def text() -> Parallel:
    """Terms of the Unicode locale data; a real client would hold its own text instead."""
    return cldr_terms(LANGUAGES)


@cache
def tokenizer() -> Any:
    """The tokenizer of the base."""
    return subword_tokenizer([line for lines in text().values() for line in lines], LANGUAGES, 500)


@cache
def model() -> nn.Module:
    """The frozen base with adapters. Put a pre-trained translator here, such as mBART-50 from a folder of yours."""
    torch.manual_seed(0)  # the same adapters at every node
    torch.set_num_threads(1)
    base = tiny_mbart(tokenizer(), width=32, layers=2, heads=2)
    attach_adapters(base, reduction=8)
    return base


def node_pairs(partition: int, directions: Sequence[str], count: int) -> tuple[Pair, ...]:
    """The pairs of one node, drawn from a stream of its own."""
    source, target = directions[partition].split("-")
    rows = np.random.default_rng((1, partition)).permutation(len(text()[source]))[:count]
    chosen = {language: [text()[language][i] for i in rows] for language in (source, target)}
    return encode_pairs(tokenizer(), chosen, source, target)
