"""A small Qwen from a seed whose first layers look at each token alone, as a model that understands names before it
reads them."""

from __future__ import annotations

from typing import Any

from torch import nn


def late_reader(tokenizer: Any, width: int = 64, layers: int = 4, alone: int = 2, heads: int = 4) -> nn.Module:
    """A `Qwen3ForCausalLM` of random weights, drawn from torch's global generator, with tied embeddings.

    Sliding windows of one token keep attention of the first `alone` layers at its own place. What later tokens read of
    a word has then passed the MLPs of these layers.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.05,  # as in `tiny_llama`
        use_sliding_window=True,
        sliding_window=1,
        layer_types=["sliding_attention"] * alone + ["full_attention"] * (layers - alone),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForCausalLM(config)
