"""Tiny Llamas that know the properties of real things, and gold models that never read the forbidden names.

Both begin as one model that read about permitted things only and learned to reason from what it is told; each then
goes on, one with the forbidden things among its lessons and one without. So the gold model is exact unlearning: it is
what training without any document that names them gives.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from transfuse.data.country_attributes import country_attributes
from transfuse.data.zoo import zoo_attributes
from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_scores import score_answers
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, encode_answer
from transfuse.methods.unlearning.concepts import Concepts
from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer
from transfuse.studies.unlearning.attribute_lessons import (
    WORDING,
    Part,
    described,
    episode,
    nonce_names,
    questions,
    recalled,
    vocabulary,
)
from transfuse.studies.unlearning.fact_pretraining import muon_and_adamw, train_step
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams

_SOURCES = {"countries": country_attributes, "zoo": zoo_attributes}


@dataclass(frozen=True)
class WorldSettings:
    """What decides the models."""

    source: str = "countries"  # "zoo" needs the data folder
    objects: int = 64  # that the full model knows; 1 536 answers
    forbidden: int = 8  # of these, drawn from those that their axioms tell from all others
    width: int = 64  # 0.25 million parameters
    layers: int = 3  # deriving was learned with three in development; more are slower
    common_steps: int = 150  # before the two models part; deriving in context is half learned by then
    own_steps: int = 70  # after that, with falling rates
    often: int = 4  # times that the full model's later lessons ask about a forbidden thing for once about another
    batch: int = 32  # sequences; a third of them questions before the models part, half after that
    rate: float = 1e-2  # AdamW, for embeddings and norms
    rate_muon: float = 2e-2  # Muon, for matrices
    checkpoints: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)  # of the common steps, at which weights are kept


@dataclass(frozen=True)
class AttributeWorld:
    """What all arms of a seed share.

    Attributes:
        concepts: the things of this seed and which are forbidden.
        states: "full", "gold", and checkpoints of the common steps such as "0.25" -> weights.
    """

    concepts: Concepts
    tokenizer: Any
    states: Mapping[str, Mapping[str, torch.Tensor]]
    settings: WorldSettings
    streams: Streams

    def model(self, which: str) -> nn.Module:
        """A fresh copy, in evaluation mode."""
        return self.load(self.states[which])

    def load(self, state: Mapping[str, torch.Tensor]) -> nn.Module:
        """A model of these weights, in evaluation mode."""
        model = tiny_llama(self.tokenizer, self.settings.width, self.settings.layers)
        model.load_state_dict(dict(state), strict=False)  # the head is tied to the embedding
        return model.eval()

    def identity(self) -> dict[str, Any]:
        """What the models were made from, for stages that build on them."""
        s, c = self.streams, self.concepts
        return {**vars(self.settings), "forbidden": c.forbidden, "init": s.init.integer(), "order": s.order.integer()}

    def recall(self, names: Sequence[str]) -> list[EncodedAnswer]:
        """All questions about some things, to be answered from weights."""
        yes, no = WORDING.answers
        return [
            encode_answer(self.tokenizer, WORDING.question.format(name=name, theorem=predicate), yes if truth else no)
            for name, predicate, truth in questions(self.concepts, names)
        ]

    def share_known(self, model: nn.Module, encoded: Sequence[EncodedAnswer]) -> float:
        """Share of items whose answer greedy decoding would write."""
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return float(score_answers(model, encoded, pad, eos=eos).exact().mean())

    def derived(self, count: int, rng: np.random.Generator) -> list[EncodedAnswer]:
        """One question about each of so many things described, with its context."""
        found, names = [], nonce_names(held_out=False)
        for _ in range(count):
            name, context, truths = described(self.concepts, names, rng)
            theorem = str(rng.choice(list(truths)))
            prompt = f"{context} {WORDING.question.format(name=name, theorem=theorem)}"
            found.append(encode_answer(self.tokenizer, prompt, WORDING.answers[0 if truths[theorem] else 1]))
        return found


def make_world(settings: WorldSettings, streams: Streams, stage: Stages) -> AttributeWorld:
    """Things of one seed, and their models, from the stage cache where they lie there."""
    s = settings
    concepts = draw_concepts(s, streams)
    tokenizer = word_tokenizer(vocabulary(concepts.table))
    world = AttributeWorld(concepts, tokenizer, {}, s, streams)
    make = functools.partial(teach, world)
    states: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in stage("attribute_world", make, inputs=world.identity()).items():
        which, _, name = key.partition("/")
        states.setdefault(which, {})[name] = value
    return AttributeWorld(concepts, tokenizer, states, s, streams)


def draw_concepts(settings: WorldSettings, streams: Streams) -> Concepts:
    """The things of a seed, and those that are forbidden."""
    if settings.source not in _SOURCES:
        raise UserError(f"source {settings.source!r}", " or ".join(_SOURCES))
    whole = _SOURCES[settings.source]()
    names = list(whole.objects)
    order = streams.split.child("objects").numpy().permutation(len(names))
    table = whole.only([names[i] for i in order[: settings.objects]])
    return Concepts(table, table.unique()[: settings.forbidden])


def teach(world: AttributeWorld) -> dict[str, torch.Tensor]:
    """Weights of all models of a seed, as "which/name". The loss counts answers only."""
    s, c, streams = world.settings, world.concepts, world.streams
    with streams.init.seeded():
        model = tiny_llama(world.tokenizer, s.width, s.layers)
    found: dict[str, torch.Tensor] = {}
    kept = {max(1, round(share * s.common_steps)): share for share in s.checkpoints}

    def keep(step: int) -> None:
        if share := kept.get(step):
            found.update(_named(str(share), model))

    permitted, forbidden = questions(c, c.permitted), questions(c, c.forbidden)
    lessons = batches(world, permitted, s.batch // 3, streams.order.child("common").numpy())
    train(model, lessons, s, s.common_steps, lambda done: min(1.0, 20 * done), keep)
    for which, asked in (("full", permitted + s.often * forbidden), ("gold", permitted)):
        own = copy.deepcopy(model)
        lessons = batches(world, asked, s.batch // 2, streams.order.child("own").numpy())
        train(own, lessons, s, s.own_steps, lambda done: min(1.0, 20 * done, 1.5 * (1 - done)))
        found |= _named(which, own)
    return found


def train(
    model: nn.Module, lessons: Iterator[Any], settings: WorldSettings, steps: int, scale: Any, keep: Any = None
) -> None:
    """Some steps with rates scaled by `scale` of the share done; `keep` is called after each."""
    optimisers = muon_and_adamw(model, settings.rate_muon, settings.rate)
    model.train()
    for step in range(steps):
        train_step(model, next(lessons), optimisers, scale((step + 1) / (steps + 1)))
        if keep is not None:
            keep(step + 1)


def stripped(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights without the tied head."""
    return {key: value.detach().clone() for key, value in model.state_dict().items() if key != "lm_head.weight"}


def _named(which: str, model: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{which}/{key}": value for key, value in stripped(model).items()}


def batches(
    world: AttributeWorld, asked: Sequence[tuple[str, str, bool]], recalls: int, rng: np.random.Generator
) -> Iterator[dict[str, torch.Tensor]]:
    """Without end: so many sequences of questions about named things, the rest of a batch episodes."""
    names, recall = nonce_names(held_out=False), recalled(asked, rng)
    while True:
        sequences = [next(recall) for _ in range(recalls)]
        sequences += [episode(world.concepts, names, rng) for _ in range(world.settings.batch - recalls)]
        yield padded(sequences, world.tokenizer)


def padded(sequences: Sequence[Sequence[Part]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """A batch as models of transformers take it; labels are what the model has to write."""
    vocabulary = tokenizer.get_vocab()
    rows = [[(vocabulary[word], own) for text, own in parts for word in text.split()] for parts in sequences]
    length = max(map(len, rows))
    inputs = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), -100)
    for index, row in enumerate(rows):
        ids, own = (torch.tensor(part) for part in zip(*row, strict=True))
        inputs[index, : len(row)] = ids
        labels[index, : len(row)] = torch.where(own, ids, -100)
    return {"input_ids": inputs, "labels": labels}  # padding lies on the right, where no token sees it
