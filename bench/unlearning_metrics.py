"""All metrics of unlearning from one pass against a pass for each, as published suites make them.

    python bench/unlearning_metrics.py [--json] [--repeats 3]

The published way is written here as OpenUnlearning's evaluation works: for each of probability, exact memorisation,
extraction strength, LOSS, zlib and Min-K one forward pass over the items in the order of the file, for Min-K++ two,
with logits and log probabilities of the whole vocabulary at every place; extraction strength compares a slice for each
start, Min-K++ reduces whole distributions a second time. Items are questions with answers of many lengths. Outputs are
checked to 1e-5 (relative where they are above 1), but for extraction strength where even the last token is wrong: 0
here, 1 / n there. Min-K++ is checked against float64, since its published difference of squares cancels. Times are
medians of the CPU time of alternating repetitions on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from transfuse.methods.unlearning.answer_scores import AnswerScores, score_answers
from transfuse.methods.unlearning.answer_tokens import IGNORED, EncodedAnswer, pad_answers

BATCH, EOS, PAD = 32, 2, 0


def medians(repeats: int, **candidates: Callable[[], object]) -> dict[str, float]:
    """Median CPU seconds of each candidate on one thread, in alternation after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, function in candidates.items():
            start = time.process_time()
            function()
            if repeat:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def make(items: int, vocabulary: int) -> tuple[LlamaForCausalLM, list[EncodedAnswer], list[str]]:
    """A model of random weights and random items, some answers being what it would write itself."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=True, pad_token_id=PAD, bos_token_id=1, eos_token_id=EOS,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(4)  # predictions as uneven as those of a model that was taught something
    rng = np.random.default_rng(0)
    made = []
    for number in range(items):
        prompt = rng.integers(3, vocabulary, int(rng.integers(8, 20))).tolist()
        answer = rng.integers(3, vocabulary, int(rng.integers(2, 40))).tolist()
        if number % 3 == 0:
            written = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8, eos_token_id=None)
            answer[-min(8, len(answer)) :] = written[0, len(prompt) :].tolist()[: len(answer)]
        made.append(EncodedAnswer((*prompt, *answer, EOS), len(prompt)))
    return model, made, [" ".join(map(str, item.ids[item.start :])) for item in made]


def batches(items: Sequence[EncodedAnswer]) -> Iterator[dict[str, Tensor]]:
    """Items in the order of the file, padded to the longest of a batch; each metric makes them anew."""
    for first in range(0, len(items), BATCH):
        yield pad_answers(items[first : first + BATCH], PAD)


@torch.no_grad()
def losses(model: Any, items: Sequence[EncodedAnswer]) -> np.ndarray:
    """Mean loss of each answer with its end: the pass of probability, LOSS and zlib."""
    found: list[float] = []
    for batch in batches(items):
        logits = model(**batch).logits[..., :-1, :].contiguous()
        labels = batch["labels"][..., 1:].contiguous()
        loss = torch.nn.functional.cross_entropy(
            logits.transpose(-1, -2), labels, ignore_index=IGNORED, reduction="none"
        )
        found += (loss.sum(-1) / (labels != IGNORED).sum(-1)).tolist()
    return np.array(found)


@torch.no_grad()
def distributions(model: Any, items: Sequence[EncodedAnswer]) -> Iterator[tuple[Tensor, Tensor]]:
    """Log probabilities over the vocabulary at each answer, without its end, and the tokens there."""
    for batch in batches(items):
        logp = torch.log_softmax(model(**batch).logits, dim=-1)[:, :-1]
        for row in range(len(logp)):
            at = (batch["labels"][row] != IGNORED).nonzero()[:-1, 0]
            yield logp[row, at[0] - 1 : at[-1]], batch["labels"][row, at]


def chosen(model: Any, items: Sequence[EncodedAnswer]) -> list[np.ndarray]:
    return [logp.gather(-1, tokens[:, None])[:, 0].numpy() for logp, tokens in distributions(model, items)]


def extraction(model: Any, items: Sequence[EncodedAnswer]) -> np.ndarray:
    found = []
    for logp, tokens in distributions(model, items):
        written, n = logp.argmax(-1), len(tokens)
        k = 0
        for k in range(n):
            if torch.equal(written[k:], tokens[k:]):
                break
        found.append(1 - k / n)
    return np.array(found)


def lowest(values: np.ndarray) -> float:
    return float(np.mean(sorted(values)[: max(1, int(len(values) * 0.2))]))


def min_k_plus(model: Any, items: Sequence[EncodedAnswer], wide: bool) -> np.ndarray:
    """Two passes: one for the distributions, one for the tokens' own log probabilities."""
    found = []
    for (logp, _), own in zip(distributions(model, items), chosen(model, items), strict=True):
        logp = logp.double() if wide else logp
        mean = (logp.exp() * logp).sum(-1)
        variance = (logp.exp() * logp.square()).sum(-1) - mean.square()
        found.append(lowest((own - mean.numpy()) / variance.clamp(min=1e-6).sqrt().numpy()))
    return np.array(found)


def published(
    model: Any, items: Sequence[EncodedAnswer], texts: Sequence[str], wide: bool = False
) -> dict[str, np.ndarray]:
    """Eight passes."""
    sizes = np.array([len(zlib.compress(text.encode())) for text in texts])
    return {
        "probability": np.exp(-losses(model, items)),
        "memorised": np.array([float((p.argmax(-1) == t).float().mean()) for p, t in distributions(model, items)]),
        "extraction": extraction(model, items),
        "loss": -losses(model, items),
        "zlib": -losses(model, items) / sizes,
        "min_k": np.array([lowest(values) for values in chosen(model, items)]),
        "min_k_plus": min_k_plus(model, items, wide),
    }


def without_end(scores: AnswerScores) -> AnswerScores:
    """The published Min-K scores leave the end-of-sequence token out."""
    parts = [
        tuple(values[:-1] for values in arrays) for arrays in (scores.logp, scores.hit, scores.mean, scores.variance)
    ]
    return AnswerScores(*parts, ended=(False,) * len(scores))  # type: ignore[arg-type]


def ours(model: Any, items: Sequence[EncodedAnswer], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """One pass."""
    scores = score_answers(model, items, PAD, batch=BATCH, eos=EOS)
    words = without_end(scores)
    return {
        "probability": scores.probability(), "memorised": scores.memorised(), "extraction": scores.extraction(),
        "loss": scores.loss(), "zlib": scores.zlib(texts), "min_k": words.min_k(), "min_k_plus": words.min_k_plus(),
    }  # fmt: skip


def check(items: Sequence[EncodedAnswer], own: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Largest difference of any metric of any item, relative above 1, but for extraction strength's published fault."""
    lengths = np.array([len(item.ids) - item.start - 1 for item in items])
    none = own["extraction"] == 0
    assert np.allclose(theirs["extraction"][none], 1 / lengths[none]), "the last token is right somewhere"
    theirs["extraction"][none] = 0.0
    gaps = {name: np.abs(own[name] - theirs[name]) / np.maximum(1.0, np.abs(theirs[name])) for name in own}
    largest = max(float(gap.max()) for gap in gaps.values())
    assert largest < 1e-5, largest
    return largest


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    for vocabulary in (2048, 32000):
        data = make(96, vocabulary)
        largest = check(data[1], ours(*data), published(*data, wide=True))
        seconds = medians(arguments.repeats, ours=lambda d=data: ours(*d), published=lambda d=data: published(*d))
        rows[f"7 metrics of 96 items, vocabulary {vocabulary}"] = {**seconds, "difference": largest}
    if arguments.json:
        print(json.dumps({name: {**row, "ratio": row["published"] / row["ours"]} for name, row in rows.items()}))
        return
    print(f"{'what':<45}{'ours ms':>9}{'published ms':>14}{'published/ours':>16}{'difference':>12}")
    for name, row in rows.items():
        ratio = row["published"] / row["ours"]
        print(f"{name:<45}{1e3 * row['ours']:9.1f}{1e3 * row['published']:14.1f}{ratio:16.1f}{row['difference']:12.1e}")


if __name__ == "__main__":
    main()
