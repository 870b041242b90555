"""Tiny Llamas that know the properties of real things, and gold models that never read the forbidden names.

All models of a seed share first weights, and can reason from axioms that they are told in their context.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from transfuse.data.attribute_table import AttributeTable
from transfuse.data.country_attributes import country_attributes
from transfuse.data.zoo import zoo_attributes
from transfuse.errors import UserError
from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer
from transfuse.studies.unlearning.attribute_lessons import Part, episode, nonce_names, questions, recalled, vocabulary
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
    width: int = 64  # 0.3 million parameters
    layers: int = 4  # reading a word's "not", finding the axiom, joining two, joining again
    steps: int = 700  # for time; in-context ability is measured
    batch: int = 32  # half of it episodes
    rate: float = 1e-2  # AdamW, for embeddings and norms
    rate_muon: float = 2e-2  # Muon, for matrices
    checkpoints: tuple[float, ...] = (0.25, 0.5)  # of the training, at which weights are kept


@dataclass(frozen=True)
class AttributeWorld:
    """What all arms of a seed share.

    Attributes:
        table: the objects of this seed.
        forbidden: names that the gold model never read.
        permitted: all others.
        states: "full", "gold" and checkpoints of gold such as "gold at 0.25" -> weights.
    """

    table: AttributeTable
    forbidden: tuple[str, ...]
    permitted: tuple[str, ...]
    tokenizer: Any
    states: Mapping[str, Mapping[str, torch.Tensor]]
    settings: WorldSettings
    streams: Streams

    def model(self, which: str) -> nn.Module:
        """A fresh copy, in evaluation mode."""
        model = tiny_llama(self.tokenizer, self.settings.width, self.settings.layers)
        model.load_state_dict(dict(self.states[which]), strict=False)  # the head is tied to the embedding
        return model.eval()

    def nearest(self, count: int) -> tuple[str, ...]:
        """Permitted things, those first that share most properties with a forbidden one."""
        objects = self.table.objects
        distance = {p: min(len(objects[p] ^ objects[f]) for f in self.forbidden) for p in self.permitted}
        return tuple(sorted(self.permitted, key=lambda name: (distance[name], name))[:count])


def make_world(settings: WorldSettings, streams: Streams, stage: Stages) -> AttributeWorld:
    """Objects of one seed, and its full and gold model, from the stage cache where they lie there."""
    s = settings
    table, forbidden, permitted = draw_objects(s, streams)
    tokenizer = word_tokenizer(vocabulary(table))
    states: dict[str, dict[str, torch.Tensor]] = {}
    for which, taught in (("full", permitted + forbidden), ("gold", permitted)):
        make = functools.partial(teach, table, taught, tokenizer, s, streams)
        inputs = {**vars(s), "taught": sorted(taught), "init": streams.init.integer(), "order": streams.order.integer()}
        for key, value in stage("attribute_world", make, inputs=inputs).items():
            share, _, name = key.partition("/")
            states.setdefault(which if share == "1.0" else f"{which} at {share}", {})[name] = value
    return AttributeWorld(table, forbidden, permitted, tokenizer, states, s, streams)


def draw_objects(
    settings: WorldSettings, streams: Streams
) -> tuple[AttributeTable, tuple[str, ...], tuple[str, ...]]:
    """The objects of a seed: table, forbidden names, permitted names."""
    if settings.source not in _SOURCES:
        raise UserError(f"source {settings.source!r}", " or ".join(_SOURCES))
    whole = _SOURCES[settings.source]()
    names = list(whole.objects)
    order = streams.split.child("objects").numpy().permutation(len(names))
    table = whole.only([names[i] for i in order[: settings.objects]])
    forbidden = table.unique()[: settings.forbidden]
    return table, forbidden, tuple(name for name in table.objects if name not in set(forbidden))


def teach(
    table: AttributeTable, taught: Sequence[str], tokenizer: Any, settings: WorldSettings, streams: Streams
) -> dict[str, torch.Tensor]:
    """Weights after each checkpoint and at the end, as "share/name". The loss counts answers only."""
    s = settings
    with streams.init.seeded():
        model = tiny_llama(tokenizer, s.width, s.layers)
    optimisers = muon_and_adamw(model, s.rate_muon, s.rate)
    lessons = batches(table, taught, tokenizer, s, streams.order.child("lessons").numpy())
    kept = {max(1, round(share * s.steps)): share for share in (*s.checkpoints, 1.0)}
    found: dict[str, torch.Tensor] = {}
    model.train()
    for step in range(s.steps):
        scale = min(1.0, 20 * (step + 1) / s.steps) * 0.5 * (1 + np.cos(np.pi * step / s.steps))
        train_step(model, next(lessons), optimisers, scale)
        if share := kept.get(step + 1):
            weights = model.state_dict().items()
            found |= {f"{share}/{key}": value.clone() for key, value in weights if key != "lm_head.weight"}
    return found


def batches(
    table: AttributeTable, taught: Sequence[str], tokenizer: Any, settings: WorldSettings, rng: np.random.Generator
) -> Iterator[dict[str, torch.Tensor]]:
    """Without end: half a batch of questions about the things `taught`, half of episodes."""
    names, asked = nonce_names(held_out=False), questions(table, taught)
    recall = _forever(asked, rng)
    while True:
        half = settings.batch // 2
        sequences = [next(recall) for _ in range(half)]
        sequences += [episode(table, names, rng) for _ in range(settings.batch - half)]
        yield padded(sequences, tokenizer)


def _forever(asked: Sequence[tuple[str, str, bool]], rng: np.random.Generator) -> Iterator[list[Part]]:
    while True:
        yield from recalled(asked, rng)


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
