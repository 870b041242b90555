"""What a model writes when it is asked: greedy answers, how much of the right one is in them, and how many refuse.

>>> refusals(["I'm not sure about that.", "Paris"])
array([ True, False])

A model that refuses everything forgets everything: report the refusal rate beside every forget number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from transfuse.errors import MissingExtraError, UserError
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, by_length
from transfuse.methods.unlearning.idk_dpo import REFUSALS

# Beside the refusals that are trained. In lower case; found anywhere in an answer, at the borders of words.
REFUSING = (
    *REFUSALS,
    "don't know", "do not know", "not sure", "not certain", "not aware", "not familiar", "no information on",
    "no information about", "no knowledge of", "no record of", "don't have", "do not have", "can't answer",
    "cannot answer", "can't provide", "cannot provide", "can't help", "cannot help", "unable to answer",
    "unable to provide", "not able to", "unfortunately", "i'm sorry", "i am sorry", "i apologize", "not been informed",
    "never heard of",
)  # fmt: skip


def refusals(texts: Sequence[str], phrases: Sequence[str] = REFUSING) -> np.ndarray:
    """Whether each text refuses to answer, by phrases that it holds; (texts,) booleans.

    Phrases find what refusals of their kind look like; read some answers before you trust the rate.
    """
    if not phrases or not all(phrase.strip() for phrase in phrases):
        raise UserError("no phrase, or an empty one", "what a refusal says")
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(re.escape(phrase.lower()) for phrase in phrases) + r")(?!\w)")
    return np.array([bool(pattern.search(text.lower().replace("\u2019", "'"))) for text in texts], dtype=bool)


def rouge_recall(texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """ROUGE-L recall with stemming: share of the right answer's words that a text holds in their order, (texts,).

    Raises:
        MissingExtraError: rouge-score is not installed. Its stemmer and tokenisation are those of published numbers.
        UserError: not one answer a text.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingExtraError("ROUGE", "unlearning", error.name or "rouge-score") from None
    if len(texts) != len(answers):
        raise UserError(f"{len(texts)} texts and {len(answers)} answers", "one answer a text")
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return np.array([scorer.score(a, t)["rougeL"].recall for t, a in zip(texts, answers, strict=True)])


@torch.inference_mode()
def write_answers(
    model: Any, tokenizer: Any, encoded: Sequence[EncodedAnswer], *, tokens: int = 64, batch: int = 64
) -> list[str]:
    """What a model writes after each prompt, by greedy decoding.

    Models of transformers write with their own `generate`, whatever their generation settings say about sampling.
    Others, such as `ContrastedModel`, are asked for one token after another.

    Args:
        model: a causal language model of transformers, or a module that returns `.logits` as one does.
        tokenizer: its tokenizer.
        encoded: questions; only what stands before the answer is read.
        tokens: most tokens to write.
        batch: questions at once, of alike length.
    """
    found = [""] * len(encoded)
    prompts = [EncodedAnswer(item.ids[: item.start], item.start) for item in encoded]
    if any(not prompt.ids for prompt in prompts):
        raise UserError("a question without a token in front of its answer", "a prompt, or a beginning-of-sequence")
    training = model.training
    model.eval()
    write = _generate if hasattr(model, "generate") else _step_by_step
    try:
        for indices in by_length(prompts, batch):
            rows = write(model, tokenizer, [prompts[i].ids for i in indices], tokens)
            for index, ids in zip(indices, rows, strict=True):
                ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
                found[index] = tokenizer.decode(ids, skip_special_tokens=True).strip()
    finally:
        model.train(training)
    return found


def _pad(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def _generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    from transformers import GenerationConfig

    length, device = max(map(len, prompts)), next(model.parameters()).device
    ids = torch.tensor([[_pad(tokenizer)] * (length - len(row)) + list(row) for row in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts], device=device)
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, max_new_tokens=tokens,
        pad_token_id=_pad(tokenizer),
    )  # fmt: skip
    return model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)[:, length:].tolist()


def _step_by_step(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Greedy decoding by whole passes over right-padded rows, which any causal model can read."""
    device = next(model.parameters()).device
    rows = [list(row) for row in prompts]
    going = set(range(len(rows)))
    for _ in range(tokens):
        if not going:
            break
        chosen = sorted(going)
        length = max(len(rows[i]) for i in chosen)
        ids = torch.tensor([rows[i] + [_pad(tokenizer)] * (length - len(rows[i])) for i in chosen], device=device)
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (length - len(rows[i])) for i in chosen], device=device)
        last = torch.tensor([len(rows[i]) - 1 for i in chosen], device=device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for i, token in zip(chosen, logits[torch.arange(len(chosen), device=device), last].argmax(-1), strict=True):
            rows[i].append(int(token))
            if int(token) == tokenizer.eos_token_id:
                going.discard(i)
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
