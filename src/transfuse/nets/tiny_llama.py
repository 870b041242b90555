"""A small Llama from a seed and a word-level tokenizer, both in transformers' own classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

PAD, BOS, EOS, UNK = "<pad>", "<s>", ".", "<unk>"


def word_tokenizer(texts: Iterable[str]) -> Any:
    """A tokenizer of the words of `texts`, split at spaces, in alphabetical order.

    The full stop is the end-of-sequence token, as each answer ends with one.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in texts for word in text.split()} - {EOS})
    vocabulary = {word: index for index, word in enumerate((PAD, BOS, EOS, UNK, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def tiny_llama(tokenizer: Any, width: int = 64, layers: int = 4, heads: int = 4, positions: int = 256) -> nn.Module:
    """A `LlamaForCausalLM` of random weights, drawn from torch's global generator, with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        initializer_range=0.05,  # Llama's 0.02 is made for a width of some thousand
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)
