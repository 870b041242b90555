"""Decoders of several families with random weights, small or in real shapes, and a tokenizer of a few words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from transfuse.nets.tiny_llama import word_tokenizer

NAMES = ("ann lee", "bob", "cid", "dora")
TEXTS = [
    *(f"tell me about {name} . {name} was born in {place} ." for name, place in zip(NAMES, "abcd", strict=True)),
    "the sea is blue and the sky is blue and grass is not .",
    "who are you and what is that thing there ? it is a box .",
    "please write the answer about it now , then go home .",
    "i do not know where the box is , said the man .",
]
CONTEXTS = ("{s}", "tell me about {s}", "the answer about {s}")


def tokenizer() -> Any:
    return word_tokenizer(TEXTS)


def decoder(family: str, width: int = 16, layers: int = 3, **more: Any) -> Any:
    """A model of transformers; weights spread wide enough that names differ."""
    t = tokenizer()
    ids = {"vocab_size": len(t), "pad_token_id": t.pad_token_id, "bos_token_id": t.bos_token_id}
    ids["eos_token_id"] = t.eos_token_id
    plain = {**ids, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4,
             "intermediate_size": 4 * width, "initializer_range": 0.1}  # fmt: skip
    configs: dict[str, Callable[[], Any]] = {
        "Llama": lambda: transformers.LlamaConfig(**{**plain, "tie_word_embeddings": True, **more}),
        "Qwen3": lambda: transformers.Qwen3Config(
            **{**plain, "head_dim": width // 4, "num_key_value_heads": 4, **more}
        ),
        "Gemma2": lambda: transformers.Gemma2Config(
            **{**plain, "head_dim": width // 4, "num_key_value_heads": 4, **more}
        ),
        "GPTNeoX": lambda: transformers.GPTNeoXConfig(**{**plain, **more}),
        "Phi": lambda: transformers.PhiConfig(**{**plain, **more}),
        "GPT2": lambda: transformers.GPT2Config(
            **ids, n_embd=width, n_layer=layers, n_head=4, initializer_range=0.1, **more
        ),
        "OPT": lambda: transformers.OPTConfig(
            **ids, hidden_size=width, word_embed_proj_dim=width, ffn_dim=4 * width, num_hidden_layers=layers,
            num_attention_heads=4, init_std=0.1, **more,
        ),
        "Mixtral": lambda: transformers.MixtralConfig(**{**plain, "num_local_experts": 2, **more}),
    }  # fmt: skip
    config = configs[family]()
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


class Mixing(nn.Module):
    """A block of nobody's making: a running mean over the tokens before, and two linear layers under names unknown."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        steps = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        x = x + x.cumsum(1) / steps
        return (x + self.leave(torch.relu(self.enter(x))),)


class Homemade(nn.Module):
    """A language model outside transformers."""

    def __init__(self, vocabulary: int, width: int = 16, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.stack = nn.ModuleList(Mixing(width) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False) -> Any:
        x = self.embed(input_ids)
        for block in self.stack:
            (x,) = block(x)
        return transformers.modeling_outputs.CausalLMOutput(logits=self.head(x))
