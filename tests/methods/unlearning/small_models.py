"""Questions, tokenizers and models of random weights, small in depth or in all, and the slow way to score an answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, encode_answer
from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer

WORDS = [f"w{i}" for i in range(24)]


def tokenizer() -> Any:
    return word_tokenizer([" ".join(WORDS), "question answer : \n"])


def items(tok: Any, first: int, last: int) -> list[EncodedAnswer]:
    """Questions whose answers have one to four words and an end."""
    return [
        encode_answer(
            tok,
            f"question : w{i % 24} w{(5 * i) % 24}" + " w3" * (i % 3) + " answer :",
            " ".join(f"w{(7 * i + j) % 24}" for j in range(1 + i % 4)),
        )
        for i in range(first, last)
    ]


def llama(tok: Any, seed: int = 0, **sizes: int) -> Any:
    torch.manual_seed(seed)
    return tiny_llama(tok, **{"width": 32, "layers": 2, **sizes}).eval()


def real_llama(dtype: torch.dtype = torch.float32) -> Any:
    """SmolLM-135M's shape (three key-value heads to nine, tied embeddings), two blocks of its thirty."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=2, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def real_gpt2(dtype: torch.dtype = torch.float32) -> Any:
    """GPT-2's shape, two blocks of its twelve: Conv1D layers, tied embeddings, learned positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=2)).to(dtype).eval()


def tokens_only(pad: int = 0, bos: int | None = None, eos: int = 2) -> Any:
    """What procedures ask of a tokenizer, without words."""

    class Tokenizer(SimpleNamespace):
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [7 + len(word) for word in text.split()] or [11]}

    return Tokenizer(pad_token_id=pad, bos_token_id=bos, eos_token_id=eos)


def random_items(count: int, vocabulary: int, seed: int = 0) -> list[EncodedAnswer]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        ids = torch.randint(3, vocabulary, (6 + i % 4,), generator=generator).tolist()
        made.append(EncodedAnswer((*ids, 2), 3 + i % 2))
    return made


def item_logp(model: Any, item: EncodedAnswer) -> Tensor:
    """Log probabilities in float64 where an answer's tokens are predicted, from a pass of its own: (tokens, ids)."""
    logits = model(input_ids=torch.tensor([item.ids])).logits[0].double()
    return torch.log_softmax(logits, -1)[item.start - 1 : len(item.ids) - 1]


def token_logp(model: Any, item: EncodedAnswer) -> Tensor:
    return item_logp(model, item).gather(-1, torch.tensor(item.ids[item.start :])[:, None])[:, 0]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())
