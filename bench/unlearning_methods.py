"""One step of NPO and of its KL-regularised form against the published way, which holds a second model.

    python bench/unlearning_methods.py [--json] [--repeats 7]

The published step runs the model on forget and on retain items apart, the first model on the forget items (and on the
retain items for the divergence) once more, and takes logits at every place. Ours keeps what the first model says, reads
both sets in one pass, and takes logits at answer tokens only. Losses and gradients are checked to agree. Times are
medians of alternating repetitions in one process; they depend on the machine, their ratios hardly.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from transfuse.methods.unlearning import grad_kl, npo
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, pad_answers
from transfuse.methods.unlearning.gradient_objective import Objective

BATCH, BETA = 16, 0.1


class Padding:
    """All that the objectives need of a tokenizer."""

    pad_token_id = 0
    eos_token_id = 1


def make_model(vocabulary: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def make_items(count: int, vocabulary: int, seed: int) -> list[EncodedAnswer]:
    """TOFU's lengths: questions of about 15 words, answers of about 30."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for _ in range(count):
        start, answer = (int(torch.randint(low, high, (1,), generator=generator)) for low, high in ((12, 20), (20, 45)))
        ids = torch.randint(2, vocabulary, (start + answer,), generator=generator)
        items.append(EncodedAnswer(tuple(ids.tolist()), start))
    return items


def all_logits(model: nn.Module, items: list[EncodedAnswer]) -> tuple[Tensor, Tensor]:
    batch = pad_answers(items, 0)
    labels = batch.pop("labels")[:, 1:]
    return model(**batch, use_cache=False).logits[:, :-1].float(), labels


def sequence_logp(model: nn.Module, items: list[EncodedAnswer]) -> Tensor:
    """Sum over labelled tokens from cross-entropy over every place, as published."""
    logits, labels = all_logits(model, items)
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return -losses.sum(1)


def published_npo(
    model: nn.Module, first: nn.Module, forget: list[EncodedAnswer], retain: list[EncodedAnswer]
) -> Tensor:
    now = sequence_logp(model, forget)
    with torch.no_grad():
        before = sequence_logp(first, forget)
    loss = -2 / BETA * nn.functional.logsigmoid(-BETA * (now - before)).mean()
    return loss + model(**pad_answers(retain, 0), use_cache=False).loss


def published_kl(
    model: nn.Module, first: nn.Module, forget: list[EncodedAnswer], retain: list[EncodedAnswer]
) -> Tensor:
    """Gradient ascent with a divergence, masked as it should be."""
    loss = -model(**pad_answers(forget, 0), use_cache=False).loss
    logits, labels = all_logits(model, retain)
    with torch.no_grad():
        reference, _ = all_logits(first, retain)
    p, q = torch.log_softmax(reference, -1), torch.log_softmax(logits, -1)
    divergence = (p.exp() * (p - q)).sum(-1)
    return loss + divergence[labels >= 0].mean()


def medians(repeats: int, **candidates: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each candidate, in alternation after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, function in candidates.items():
            start = time.perf_counter()
            function()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(name: str, vocabulary: int, repeats: int) -> dict[str, float]:
    """Seconds a step of both ways, their ratio, and how far their gradients are apart."""
    first = make_model(vocabulary)
    model = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    forget, retain = make_items(BATCH, vocabulary, 1), make_items(BATCH, vocabulary, 2)
    tokenizer = Padding()
    objective: Objective
    if name == "npo":
        objective = npo.NPO(npo.Config(beta=BETA), tokenizer, forget, retain)
    else:
        objective = Objective(grad_kl.Config(), tokenizer, forget, retain)
    objective.keep_reference(first)
    published = published_npo if name == "npo" else published_kl

    def step(loss: Callable[[], Tensor]) -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        loss().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    def ours() -> list[Tensor]:
        return step(lambda: objective.loss(model, range(BATCH), range(BATCH)))

    def theirs() -> list[Tensor]:
        return step(lambda: published(model, first, forget, retain))

    gap = max(float((a - b).abs().max()) for a, b in zip(ours(), theirs(), strict=True))
    assert gap < 1e-4, f"{name}: gradients differ by {gap}"
    times = medians(repeats, ours=ours, published=theirs)
    return {**times, "ratio": times["published"] / times["ours"], "gap": gap}


def main() -> None:
    """Both methods at a small and at a large vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {
        f"{name}, vocabulary {size}": compare(name, size, arguments.repeats)
        for name in ("npo", "grad_kl")
        for size in (2_000, 32_000)
    }
    if arguments.json:
        print(json.dumps(found))
        return
    for name, row in found.items():
        print(f"{name}: {row['ratio']:.2f}x ({1e3 * row['ours']:.0f} ms against {1e3 * row['published']:.0f} ms)")


if __name__ == "__main__":
    main()
