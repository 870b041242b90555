"""What a model thinks of given answers, from one forward pass: probability, exactness, extraction, membership scores.

Published suites run the same items once for each metric. All of them follow from four numbers a token: its log
probability, whether it was ranked first, and mean and variance of the log probabilities at its place.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, by_length, pad_answers


@dataclass(frozen=True)
class AnswerScores:
    """Scores of the answers of some items; one array an item, over the tokens of its answer.

    Attributes:
        logp: natural log probability of each token, given those before.
        hit: whether the token had the highest probability.
        mean: expectation of the log probability over the vocabulary at that place.
        variance: its variance.
        ended: whether an item's last token is the end-of-sequence token, which exactness leaves out.
    """

    logp: tuple[np.ndarray, ...]
    hit: tuple[np.ndarray, ...]
    mean: tuple[np.ndarray, ...]
    variance: tuple[np.ndarray, ...]
    ended: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.logp)

    def part(self, first: int, last: int) -> AnswerScores:
        """Scores of the items first to last - 1: several sets can share one pass."""
        cut = slice(first, last)
        return AnswerScores(self.logp[cut], self.hit[cut], self.mean[cut], self.variance[cut], self.ended[cut])

    def _words(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [array[: len(array) - end] for array, end in zip(arrays, self.ended, strict=True)]

    def sums(self) -> np.ndarray:
        """log p(answer | prompt), (items,)."""
        return np.array([values.sum() for values in self.logp])

    def probability(self) -> np.ndarray:
        """Geometric mean probability of the answer's tokens, (items,)."""
        return np.exp([values.mean() for values in self.logp])

    def exact(self) -> np.ndarray:
        """Whether greedy decoding would write the answer, (items,) booleans.

        Greedy decoding writes it if and only if every token ranks first given the right ones before, so that no
        generation is needed. The end-of-sequence token does not count.
        """
        return np.array([values.all() for values in self._words(self.hit)])

    def memorised(self) -> np.ndarray:
        """Exact memorisation: share of the answer's tokens that rank first, (items,)."""
        return np.array([values.mean() for values in self._words(self.hit)])

    def extraction(self) -> np.ndarray:
        """Extraction strength: share of the answer that is written from its own beginning without a mistake, (items,).

        1 - k / n, where k tokens must be given before the rest is ranked first to the end: 1 if all are right, 0 if
        even the last is wrong.
        """
        return np.array([_suffix(values) / len(values) for values in self._words(self.hit)])

    def loss(self) -> np.ndarray:
        """Membership score LOSS: mean log probability, higher for members, (items,)."""
        return np.array([values.mean() for values in self.logp])

    def zlib(self, answers: Sequence[str]) -> np.ndarray:
        """Membership score zlib: mean log probability over the length of the compressed text in bytes, (items,)."""
        sizes = np.array([len(zlib.compress(answer.encode())) for answer in answers])
        return self.loss() / sizes

    def min_k(self, share: float = 0.2) -> np.ndarray:
        """Membership score Min-K%: mean of the lowest `share` of the log probabilities, at least one, (items,)."""
        return np.array([_lowest(values, share) for values in self.logp])

    def min_k_plus(self, share: float = 0.2) -> np.ndarray:
        """Membership score Min-K%++: as Min-K% of log probabilities standardised by the vocabulary's, (items,)."""
        standard = [
            (values - mean) / np.sqrt(np.maximum(variance, 1e-12))
            for values, mean, variance in zip(self.logp, self.mean, self.variance, strict=True)
        ]
        return np.array([_lowest(values, share) for values in standard])


def _suffix(hits: np.ndarray) -> int:
    """Tokens after the last that was not ranked first."""
    wrong = np.flatnonzero(~hits)
    return len(hits) - (int(wrong[-1]) + 1 if len(wrong) else 0)


def _lowest(values: np.ndarray, share: float) -> float:
    return float(np.sort(values)[: max(1, int(share * len(values)))].mean())


@torch.inference_mode()
def score_answers(
    model: Any, encoded: Sequence[EncodedAnswer], pad: int, *, batch: int = 128, eos: int | None = None
) -> AnswerScores:
    """One pass over all items, in batches of alike length.

    The head is applied to answer tokens only, and probabilities are taken in float32, whatever the model's type: in
    half precision ratios of probabilities collapse to 1.

    Args:
        model: a causal language model of transformers; its mode is left as it was.
        encoded: prompts and answers.
        pad: id to pad with.
        batch: items a forward pass.
        eos: the end-of-sequence token, where answers end with it.
    """
    found: list[Any] = [None] * len(encoded)
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    for indices in by_length(encoded, batch):
        inputs = {key: value.to(device) for key, value in pad_answers([encoded[i] for i in indices], pad).items()}
        labels = inputs.pop("labels")[:, 1:]
        places = labels >= 0  # (batch, length - 1)
        logits = answer_logits(model, inputs, places)
        target = labels[places]
        logp = torch.log_softmax(logits.float(), dim=-1)  # (answer tokens, vocabulary)
        p = logp.exp()
        mean = (p * logp).sum(-1)
        variance = (p * logp.square()).sum(-1) - mean.square()
        rows = torch.stack([
            logp.gather(-1, target[:, None])[:, 0], (logits.argmax(-1) == target).float(), mean, variance,
        ]).cpu().numpy()  # fmt: skip
        for index, part in zip(
            indices, np.split(rows, np.cumsum(places.sum(1).cpu().numpy())[:-1], axis=1), strict=True
        ):
            found[index] = part
    model.train(training)
    return AnswerScores(
        logp=tuple(part[0] for part in found),
        hit=tuple(part[1] > 0.5 for part in found),
        mean=tuple(part[2] for part in found),
        variance=tuple(part[3] for part in found),
        ended=tuple(eos is not None and item.ids[-1] == eos for item in encoded),
    )


def answer_logits(model: Any, inputs: Mapping[str, torch.Tensor], places: torch.Tensor) -> torch.Tensor:
    """Logits at the places that predict an answer token, (answer tokens, vocabulary).

    The head sees only these places, since a hook in front of it lets no others through; whatever the model does to
    logits behind its head (Gemma caps them, Granite and Cohere scale them) it still does. Works under PEFT too.

    Args:
        model: a causal language model of transformers, or a module that returns `.logits` as one does.
        inputs: input_ids and attention_mask, (batch, length).
        places: (batch, length - 1) booleans; a place is that of the token before the one it predicts.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    chosen = False

    def choose(module: torch.nn.Module, args: tuple[Any, ...]) -> Any:
        nonlocal chosen
        if args[0].shape[:-1] != inputs["input_ids"].shape:
            return None
        chosen = True
        return args[0][:, :-1][places][None], *args[1:]

    handle = head.register_forward_pre_hook(choose) if isinstance(head, torch.nn.Module) else None
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    return logits[0] if chosen else logits[:, :-1][places]
