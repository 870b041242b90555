"""The late reader: what a token activates in the first layers does not depend on what stands before it."""

from __future__ import annotations

import torch

from transfuse.nets.tiny_llama import word_tokenizer
from transfuse.nets.tiny_qwen import late_reader


def test_the_first_layers_look_at_each_token_alone() -> None:
    torch.manual_seed(0)
    model = late_reader(word_tokenizer(["a b c d e f"]), width=16, layers=4, alone=2).eval()
    ids = torch.tensor([[4, 5, 6, 7], [9, 8, 7, 7], [7, 7, 5, 7]])
    for mask in (None, torch.ones_like(ids)):  # with padding, and without
        states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        for layer, same in ((1, True), (2, True), (3, False), (4, False)):
            last = states[layer][:, -1]
            assert torch.allclose(last[0], last[1], atol=1e-5) == same
            assert torch.allclose(last[0], last[2], atol=1e-5) == same
