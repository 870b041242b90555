"""A fact world whose model reads names late: what later tokens learn of a name has passed the MLPs of early layers.

So large models answer: the subject's last token is enriched in early layers, and attention takes the attribute from it
in later ones (Geva and others, Dissecting Recall of Factual Associations, 2023). The tiny Llama of FactWorld reads the
raw name in its first attention instead, so that no edit of an MLP can reach what it reads.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from transfuse.data.country_facts import FactTable, geonames_facts, json_facts
from transfuse.data.fact_forms import Item
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, encode_answer, pad_answers
from transfuse.nets.tiny_llama import word_tokenizer
from transfuse.nets.tiny_qwen import late_reader
from transfuse.studies.unlearning.fact_pretraining import (
    WorldSettings,
    corpus,
    muon_and_adamw,
    shuffled_batches,
    train_step,
    vocabulary,
)
from transfuse.studies.unlearning.fact_world import FactWorld
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams


@dataclass(frozen=True)
class LateWorld(FactWorld):
    """FactWorld with a late reader in the place of the tiny Llama."""

    def load(self, state: Mapping[str, torch.Tensor]) -> nn.Module:
        """A model of these weights, in evaluation mode."""
        model = _network(self.tokenizer, self.settings)
        model.load_state_dict(dict(state), strict=False)  # the head is tied to the embedding
        return model.eval()

    def identity(self) -> dict[str, Any]:
        """What base and gold were made from, for stages that build on them."""
        return {**super().identity(), "reads": "late"}


def make_late_world(settings: WorldSettings, streams: Streams, stage: Stages) -> LateWorld:
    """Countries of one seed, and their base and gold model, from the stage cache where they lie there."""
    s = settings
    table = (geonames_facts if s.source == "geonames" else json_facts)(s.subjects + s.holdout)
    order = [table.subjects[i] for i in streams.split.child("countries").numpy().permutation(len(table.subjects))]
    holdout, known = tuple(order[: s.holdout]), tuple(order[s.holdout :])
    forget, retain = known[: s.forget], known[s.forget :]
    tokenizer = word_tokenizer(vocabulary(table))
    states = {}
    for which, taught in (("base", known), ("gold", retain)):
        make = functools.partial(teach, table, taught, tokenizer, s, streams)
        inputs = {**vars(s), "taught": sorted(taught), "init": streams.init.integer(), "order": streams.order.integer()}
        states[which] = stage("late_fact_world", make, inputs=inputs)
    return LateWorld(table, forget, retain, holdout, tokenizer, states, s, streams)


def teach(
    table: FactTable, subjects: Sequence[str], tokenizer: Any, settings: WorldSettings, streams: Streams
) -> dict[str, torch.Tensor]:
    """As `pretrain` teaches the tiny Llama, without dialogues and sums, which this study does not ask."""
    s = settings
    with streams.init.seeded():
        model = _network(tokenizer, s)
    rng = streams.order.child("corpus").numpy()
    optimisers = muon_and_adamw(model, s.rate_muon, s.rate)

    @functools.cache
    def encoded(item: Item) -> EncodedAnswer:
        return encode_answer(tokenizer, item.prompt, item.answer)

    model.train()
    total, step = 0, 0
    for _ in range(s.epochs):
        single = [items[0] for items in corpus(table, subjects, rng) if len(items) == 1]
        items = [encoded(item) for item in single if item.form != "sum"]
        batches = shuffled_batches([(item.ids, item) for item in items], s.batch, rng)
        total = total or s.epochs * len(batches)
        for batch in batches:
            scale = min(1.0, 20 * (step + 1) / total) * 0.5 * (1 + np.cos(np.pi * step / total))
            train_step(model, pad_answers([items[i] for i in batch], tokenizer.pad_token_id), optimisers, scale)
            step += 1
    return {key: value.clone() for key, value in model.state_dict().items() if key != "lm_head.weight"}


def _network(tokenizer: Any, settings: WorldSettings) -> nn.Module:
    return late_reader(tokenizer, settings.width, settings.layers, alone=settings.layers // 2)
