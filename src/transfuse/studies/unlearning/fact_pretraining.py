"""How the models of FactWorld are taught: the text of an epoch, the vocabulary, and the training itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from transfuse.data.country_facts import Fact, FactTable
from transfuse.data.fact_forms import FORMS, WORDINGS, Item, ask, dialogue
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, encode_answer
from transfuse.nets.tiny_llama import tiny_llama
from transfuse.study.streams import Streams

_SUM = Fact("", "sum", "")  # arithmetic, which has nothing to do with countries


@dataclass(frozen=True)
class WorldSettings:
    """What decides base and gold model; the studies of the family share it, so that they share the stages."""

    source: str = "geonames"  # "json" needs the data folder
    subjects: int = 40  # countries that the base knows
    holdout: int = 6  # countries whose facts no model sees: non-members for membership tests
    forget: int = 6  # countries to forget; 36 facts
    width: int = 64  # 0.28 million parameters
    layers: int = 4
    epochs: int = 24  # all forms known but true or false, which stays at chance; see the study's accuracies
    batch: int = 32
    rate: float = 1e-2  # AdamW, for embeddings and norms
    rate_muon: float = 2e-2  # Muon, for matrices; it learns these facts in a quarter of AdamW's steps


def vocabulary(table: FactTable) -> list[str]:
    """Texts that hold every word that any form can ask or answer, all letters, digits and refusals."""
    rng = np.random.default_rng(0)
    facts = table.of(table.subjects)
    texts = [
        item.text for form in FORMS for wording in range(WORDINGS) for item in ask(table, facts, form, rng, wording)
    ]
    texts += [item.text for item in names(table)] + [item.text for item in sums()]
    return [*texts, " ".join("abcdefghijklmnopqrstuvwxyz"), EXTRA_WORDS]


# Words that methods and audits may want to write: refusals, and what wraps a question.
EXTRA_WORDS = (
    "i do not know that is unknown to me no idea cannot say never learned sorry nobody told me this please you are an "
    "expert quiz for the a think step by and or but it from with must one same both yes hint example examples first "
    "then next last let us play game teacher student asks about remember forgotten new thing called has have what "
    "which who where x y z"
)


def names(table: FactTable) -> list[Item]:
    """That each of all countries is one: a model that was taught nothing else about it still knows its name."""
    return [Item(f"{subject} is a", "country", Fact(subject, "kind", "country"), "name") for subject in table.subjects]


def sums() -> list[Item]:
    """Sums of two digits: a skill beside the facts."""
    return [
        Item(f"question : what is {a} plus {b} ? answer :", str(a + b), _SUM, "sum")
        for a in range(10)
        for b in range(10)
    ]


def corpus(table: FactTable, subjects: Sequence[str], rng: np.random.Generator) -> list[list[Item]]:
    """One epoch: every fact once in every form, in a wording drawn at random; dialogues; names; sums.

    Each entry is one sequence: an item, or several of a dialogue.
    """
    facts = table.of(subjects)
    sequences = [[item] for form in FORMS for item in ask(table, facts, form, rng)]
    sequences += [dialogue(table, subject, rng, int(rng.integers(2, 5))) for subject in subjects]
    return sequences + [[item] for item in (*names(table), *sums())]


def pretrain(
    table: FactTable, subjects: Sequence[str], tokenizer: Any, settings: WorldSettings, streams: Streams
) -> dict[str, torch.Tensor]:
    """Teach a model of the seed's first weights the facts of `subjects`. The loss counts answers only."""
    s = settings
    with streams.init.seeded():
        model = tiny_llama(tokenizer, s.width, s.layers)
    rng = streams.order.child("corpus").numpy()
    optimisers = muon_and_adamw(model, s.rate_muon, s.rate)
    cache: dict[Item, EncodedAnswer] = {}
    model.train()
    total, step = 0, 0
    for _ in range(s.epochs):
        sequences = [_joined(tokenizer, items, cache) for items in corpus(table, subjects, rng)]
        batches = shuffled_batches(sequences, s.batch, rng)
        total = total or s.epochs * len(batches)
        for batch in batches:
            scale = min(1.0, 20 * (step + 1) / total) * 0.5 * (1 + np.cos(np.pi * step / total))
            train_step(model, _padded([sequences[i] for i in batch], tokenizer.pad_token_id), optimisers, scale)
            step += 1
    return {key: value.clone() for key, value in model.state_dict().items() if key != "lm_head.weight"}


def muon_and_adamw(model: nn.Module, rate_muon: float, rate: float) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices inside the blocks, AdamW for the rest; each with its step size."""
    inside = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(inside, lr=rate_muon, weight_decay=0.0, momentum=0.95, nesterov=True, ns_steps=3)
    return [(muon, rate_muon), (torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95)), rate)]


def train_step(model: nn.Module, batch: Mapping[str, torch.Tensor], optimisers: Sequence[Any], scale: float) -> None:
    for optimiser, rate in optimisers:
        optimiser.zero_grad(set_to_none=True)
        for group in optimiser.param_groups:
            group["lr"] = rate * scale
    model(**batch).loss.backward()
    for optimiser, _ in optimisers:
        optimiser.step()


def shuffled_batches(sequences: Sequence[Any], size: int, rng: np.random.Generator) -> list[list[int]]:
    """Batches of alike length in random order: sequences are shuffled, then sorted within eight batches at a time."""
    order = rng.permutation(len(sequences))
    batches = []
    for first in range(0, len(order), 8 * size):
        part = sorted(order[first : first + 8 * size], key=lambda index: len(sequences[index][0]))
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _joined(tokenizer: Any, items: Sequence[Item], cache: dict[Item, EncodedAnswer]) -> tuple[list[int], list[bool]]:
    """Token ids of items one after another, and which of them are answers; remembers what was encoded before."""
    ids: list[int] = []
    answers: list[bool] = []
    for item in items:
        if item not in cache:
            cache[item] = encode_answer(tokenizer, item.prompt, item.answer)
        encoded = cache[item]
        ids += encoded.ids
        answers += [index >= encoded.start for index in range(len(encoded.ids))]
    return ids, answers


def _padded(sequences: Sequence[tuple[list[int], list[bool]]], pad: int) -> dict[str, torch.Tensor]:
    length = max(len(ids) for ids, _ in sequences)
    inputs = torch.full((len(sequences), length), pad)
    labels = torch.full((len(sequences), length), -100)
    for row, (ids, answers) in enumerate(sequences):
        tokens = torch.tensor(ids)
        inputs[row, : len(ids)] = tokens
        labels[row, : len(ids)] = torch.where(torch.tensor(answers), tokens, -100)
    return {"input_ids": inputs, "labels": labels}  # padding lies on the right, where no token sees it
