"""FactWorld: a tiny Llama that knows real facts about countries in many forms, and its gold model, which never saw what
is to be forgotten. One testbed for all studies of the family, trained once a seed and kept as stages.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transfuse.data.country_facts import Fact, FactTable, geonames_facts, json_facts
from transfuse.data.fact_forms import Item, ask
from transfuse.methods.unlearning.answer_scores import AnswerScores, score_answers
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, encode_answer
from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer
from transfuse.studies.unlearning.fact_pretraining import WorldSettings, pretrain, vocabulary
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams


@dataclass(frozen=True)
class FactWorld:
    """What all arms of a seed share.

    Attributes:
        table: the facts of all countries, those of `holdout` among them.
        forget: subjects to forget.
        retain: all other subjects that the base knows.
        holdout: subjects that no model was taught.
        tokenizer: one word a token.
        states: "base" and "gold" -> weights.
    """

    table: FactTable
    forget: tuple[str, ...]
    retain: tuple[str, ...]
    holdout: tuple[str, ...]
    tokenizer: Any
    states: Mapping[str, Mapping[str, torch.Tensor]]
    settings: WorldSettings
    streams: Streams

    @property
    def neighbours(self) -> tuple[str, ...]:
        """Retained subjects of the same continent or region as one to forget."""
        near = set(self.table.neighbours(self.forget))
        return tuple(s for s in self.retain if s in near)

    def model(self, which: str = "base") -> nn.Module:
        """A fresh copy of "base" or "gold", in evaluation mode."""
        return self.load(self.states[which])

    def load(self, state: Mapping[str, torch.Tensor]) -> nn.Module:
        """A model of these weights, in evaluation mode."""
        model = tiny_llama(self.tokenizer, self.settings.width, self.settings.layers)
        found = model.load_state_dict(dict(state), strict=False)  # the head is tied to the embedding
        assert not found.unexpected_keys and set(found.missing_keys) <= {"lm_head.weight"}, found
        return model.eval()

    def identity(self) -> dict[str, Any]:
        """What base and gold were made from, for stages that build on them."""
        init, order = self.streams.init.integer(), self.streams.order.integer()
        return {**vars(self.settings), "forget": sorted(self.forget), "init": init, "order": order}

    def facts(self, subjects: Sequence[str]) -> list[Fact]:
        return self.table.of(subjects)

    def ask(self, subjects: Sequence[str], form: str, name: str = "ask", wording: int | None = 0) -> list[Item]:
        """Items of a form about all facts of some subjects; the same for every arm of a seed."""
        return ask(self.table, self.facts(subjects), form, self.streams.split.child(name, form).numpy(), wording)

    def encode(self, items: Sequence[Item]) -> list[EncodedAnswer]:
        return [encode_answer(self.tokenizer, item.prompt, item.answer) for item in items]

    def score(self, model: nn.Module, items: Sequence[Item]) -> AnswerScores:
        """One pass of a model over items."""
        tokenizer = self.tokenizer
        return score_answers(model, self.encode(items), tokenizer.pad_token_id, eos=tokenizer.eos_token_id)

    def accuracy(self, model: nn.Module, items: Sequence[Item]) -> float:
        """Share of items whose answer greedy decoding would write."""
        return self.share_known(model, self.encode(items))

    def share_known(self, model: nn.Module, encoded: Sequence[EncodedAnswer]) -> float:
        """The same of encoded items, for those who ask often."""
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return float(score_answers(model, encoded, pad, eos=eos).exact().mean())


def make_world(settings: WorldSettings, streams: Streams, stage: Stages) -> FactWorld:
    """Countries of one seed, and its base and gold model, from the stage cache where they lie there."""
    s = settings
    table = (geonames_facts if s.source == "geonames" else json_facts)(s.subjects + s.holdout)
    order = [table.subjects[i] for i in streams.split.child("countries").numpy().permutation(len(table.subjects))]
    holdout, forget = tuple(order[: s.holdout]), tuple(order[s.holdout : s.holdout + s.forget])
    retain = tuple(order[s.holdout + s.forget :])
    tokenizer = word_tokenizer(vocabulary(table))
    states = {}
    for which, taught in (("base", forget + retain), ("gold", retain)):
        make = functools.partial(pretrain, table, taught, tokenizer, s, streams)
        inputs = {**vars(s), "taught": sorted(taught), "init": streams.init.integer(), "order": streams.order.integer()}
        states[which] = stage("fact_world", make, inputs=inputs)
    return FactWorld(table, forget, retain, holdout, tokenizer, states, s, streams)
