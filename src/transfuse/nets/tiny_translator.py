"""A small mBART from a seed and its tokenizer: the official architecture at a hundredth of a percent of its size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

PAD, EOS, BOS, UNK, MASK = "<pad>", "</s>", "<s>", "<unk>", "<mask>"


def language_tag(language: str) -> str:
    """The token that stands for a language, as mBART-50's ``de_DE``."""
    return f"<{language}>"


def subword_tokenizer(texts: Iterable[str], languages: Sequence[str], size: int) -> Any:
    """A byte-pair tokenizer of our own, as transformers' fast tokenizers are: special tokens, tags, then subwords."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from tokenizers.decoders import Metaspace
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = Metaspace()
    special = [PAD, EOS, BOS, UNK, MASK, *map(language_tag, languages)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, bos_token=BOS, unk_token=UNK, mask_token=MASK
    )


def tiny_mbart(tokenizer: Any, width: int = 64, layers: int = 3, heads: int = 4, positions: int = 64) -> nn.Module:
    """An `MBartForConditionalGeneration` of random weights, drawn from torch's global generator; no dropout.

    A batch of tiny data sees each sentence a few times only, so dropout has nothing to prevent; without it the place of
    an adapter before or behind the dropout is the same.
    """
    from transformers import MBartConfig, MBartForConditionalGeneration

    config = MBartConfig(
        vocab_size=len(tokenizer),
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        max_position_embeddings=positions,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        scale_embedding=True,
        init_std=0.05,  # mBART's 0.02 is made for a width of 1024
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    return MBartForConditionalGeneration(config)


def mbart_large_50() -> nn.Module:
    """The architecture of mBART-large-50 without weights (on the meta device), to count parameters."""
    import torch
    from transformers import MBartConfig, MBartForConditionalGeneration

    with torch.device("meta"):
        config = MBartConfig(vocab_size=250054, d_model=1024, encoder_layers=12, decoder_layers=12,
                             encoder_ffn_dim=4096, decoder_ffn_dim=4096, max_position_embeddings=1024)  # fmt: skip
        return MBartForConditionalGeneration(config)
