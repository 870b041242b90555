"""Is the answer still inside, though it is no longer said? Linear probes, the logit lens, and one direction removed.

All read the residual stream at the last token of the prompt, behind every block.

>>> import numpy as np
>>> x = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
>>> ridge_classes(x, ["a", "a", "b", "b"], np.array([[0.8, 0.0], [0.0, 0.7]]), ridge=1e-3)
['a', 'b']
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, by_length, pad_answers
from transfuse.methods.unlearning.decoder_blocks import decoder_blocks, evaluating, hidden_of

_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")  # of Llama and kin, GPT-2, Phi and GPT-NeoX, OPT


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """What a block returned with another residual stream: a tensor as transformers 5 has it, or a tuple as before."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@torch.no_grad()
def last_states(model: nn.Module, encoded: Sequence[EncodedAnswer], pad: int, batch: int = 64) -> Tensor:
    """The residual stream at the last token of each prompt, behind each block, (blocks, items, width) in float32."""
    blocks = [block.module for block in decoder_blocks(model)]
    device = next(model.parameters()).device
    found: list[list[Tensor]] = [[] for _ in blocks]
    order: list[int] = []
    prompts = [EncodedAnswer(item.ids[: item.start], item.start) for item in encoded]
    for indices in by_length(prompts, batch):
        inputs = {key: value.to(device) for key, value in pad_answers([prompts[i] for i in indices], pad).items()}
        inputs.pop("labels")
        last = torch.tensor([prompts[i].start - 1 for i in indices], device=device)
        with contextlib.ExitStack() as stack, evaluating(model):
            for place, block in enumerate(blocks):

                def keep(module: nn.Module, args: Any, output: Any, place: int = place, last: Tensor = last) -> None:
                    found[place].append(hidden_of(output)[torch.arange(len(last), device=device), last].float())

                stack.callback(block.register_forward_hook(keep).remove)
            model(**inputs, use_cache=False)
        order += indices
    states = torch.stack([torch.cat(parts) for parts in found])
    return states[:, torch.argsort(torch.tensor(order)).to(device)]


@contextlib.contextmanager
def without_direction(model: nn.Module, direction: Tensor) -> Iterator[None]:
    """Inside, the residual stream behind every block has no component along a direction, (width,)."""
    unit = direction / direction.norm().clamp_min(1e-12)

    def project(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = hidden_of(output)
        along = unit.to(hidden)
        return with_hidden(output, hidden - (hidden @ along)[..., None] * along)

    with contextlib.ExitStack() as stack:
        for block in decoder_blocks(model):
            stack.callback(block.module.register_forward_hook(project).remove)
        yield


def lens_hits(model: Any, states: Tensor, tokens: Sequence[int]) -> np.ndarray:
    """Logit lens: whether the answer's first token ranks first behind each block, (blocks, items) booleans.

    Args:
        model: whose last norm and head read the states.
        states: (blocks, items, width).
        tokens: first token of each answer, (items,).
    """
    base = getattr(model, model.base_model_prefix, model)
    inner = getattr(base, "decoder", base)
    norm = next((getattr(inner, name) for name in _NORMS if hasattr(inner, name)), nn.Identity())
    head = model.get_output_embeddings()
    kind = next(head.parameters()).dtype
    with torch.no_grad():
        first = torch.stack([head(norm(layer.to(kind))).argmax(-1) for layer in states])
    return (first.cpu() == torch.tensor(list(tokens))).numpy()


def ridge_classes(x: np.ndarray, labels: Sequence[str], asked: np.ndarray, ridge: float = 1.0) -> list[str]:
    """Classes of some states by ridge regression on one-hot labels; features are standardised.

    Args:
        x: (n, d).
        labels: (n,).
        asked: (m, d).
        ridge: weight of the penalty, as a share of n.
    """
    classes = sorted(set(labels))
    target = np.array([[label == name for name in classes] for label in labels], float)
    centre, scale = x.mean(0), x.std(0) + 1e-6
    a, b = (x - centre) / scale, (asked - centre) / scale
    mean = target.mean(0)
    dual = np.linalg.solve(a @ a.T + ridge * len(x) * np.eye(len(x)), target - mean)  # n is small, d may be large
    return [classes[i] for i in np.argmax(b @ (a.T @ dual) + mean, axis=1)]


def probe_hits(
    trained: np.ndarray, answers: Sequence[tuple[str, str]], tested: np.ndarray, asked: Sequence[tuple[str, str]]
) -> np.ndarray:
    """Whether linear probes, one a relation, read the answer of each fact; (facts,), NaN where none can.

    A relation can be probed if kept facts have at least two answers to it; a fact if its answer is among them.

    Args:
        trained: states of kept facts, (n, d).
        answers: relation and answer of each.
        tested: states of forgotten facts, (facts, d).
        asked: relation and answer of each.
    """
    found = np.full(len(asked), np.nan)
    for relation in {name for name, _ in asked}:
        rows = [i for i, (name, _) in enumerate(answers) if name == relation]
        classes = {answers[i][1] for i in rows}
        facts = [i for i, (name, answer) in enumerate(asked) if name == relation and answer in classes]
        if len(classes) < 2 or len(classes) == len(rows) or not facts:
            continue  # answers that each occur once cannot be learned as classes
        read = ridge_classes(trained[rows], [answers[i][1] for i in rows], tested[facts])
        found[facts] = [name == asked[i][1] for name, i in zip(read, facts, strict=True)]
    return found


def some_layers(count: int, most: int) -> list[int]:
    """At most so many of the layers, evenly chosen, the last among them."""
    return sorted({int(i) for i in np.linspace(count - 1, 0, min(count, most)).round()})
