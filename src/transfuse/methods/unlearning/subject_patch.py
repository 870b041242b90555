"""How much of an answer depends on what stands at the subject's last token after a layer: the most that an edit can do.

The stream there is replaced by a given value and nothing else is touched. A model that reads the raw name by attention
in an earlier layer, as shallow ones do, answers as before, and no edit of that place will change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, encode_answer
from transfuse.methods.unlearning.decoder_blocks import Block, evaluating, hidden_of
from transfuse.methods.unlearning.subject_places import pad_id, pad_right, place_subject, template_of

Question = tuple[str, str]  # a prompt that names the subject once, and its answer


def patched_probability(
    model: nn.Module, block: Block, tokenizer: Any, name: str, value: Tensor, questions: Sequence[Question]
) -> tuple[np.ndarray, np.ndarray]:
    """Geometric mean probability of each answer as the model is, and with `value` at the name: two arrays (questions,).

    Args:
        model: a causal language model; it is not changed.
        block: after which block the value is put.
        tokenizer: the model's.
        name: the subject.
        value: what is put there, (d,).
        questions: prompts with answers.
    """
    places = [place_subject(tokenizer, template_of(prompt, name), name).place for prompt, _ in questions]
    encoded = [encode_answer(tokenizer, prompt, answer, end=False) for prompt, answer in questions]
    inputs = pad_right([item.ids for item in encoded], pad_id(tokenizer), value.device)

    def put(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = hidden_of(output).clone()
        hidden[torch.arange(len(places)), torch.tensor(places)] = value.to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    before = _probability(model, inputs, encoded)
    handle = block.module.register_forward_hook(put)
    try:
        return before, _probability(model, inputs, encoded)
    finally:
        handle.remove()


@torch.no_grad()
def _probability(model: nn.Module, inputs: dict[str, Tensor], encoded: Sequence[EncodedAnswer]) -> np.ndarray:
    with evaluating(model):
        logits = model(**inputs, use_cache=False).logits
    found = []
    for row, item in enumerate(encoded):
        target = torch.tensor(item.ids[item.start :], device=logits.device)
        logp = logits[row, item.start - 1 : len(item.ids) - 1].float().log_softmax(-1)
        found.append(float(logp.gather(-1, target[:, None]).mean().exp()))
    return np.array(found)
