"""The models of one seed, what they answer on the ladder, and what filters make of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from transfuse.methods.unlearning import grad_diff, npo
from transfuse.methods.unlearning.concepts import Concepts
from transfuse.methods.unlearning.context_ladder import LADDER
from transfuse.methods.unlearning.horn_rules import NOT
from transfuse.methods.unlearning.ladder_replies import LadderReplies
from transfuse.methods.unlearning.ununlearning import Config, ContextLadder, default_filters
from transfuse.studies.unlearning.attribute_lessons import WORDING, nonce_names
from transfuse.studies.unlearning.attribute_world import AttributeWorld, stripped
from transfuse.study.design import Measurement
from transfuse.study.stage import Stages

TOLERANCE = 0.05  # share of answers beyond the gold model's that may be left where a method is stopped
PROCEDURES: Mapping[str, tuple[Any, Any]] = {
    "npo": (npo.unlearn_npo, npo.Config),
    "grad_diff": (grad_diff.unlearn_grad_diff, grad_diff.Config),
}
TOLD = tuple(level for level in LADDER if level != "none")


@dataclass(frozen=True)
class Unlearning:
    """How an approximate method unlearns."""

    rate: float = 3e-4  # bench/ununlearning_tuning.py
    steps: int = 60  # at most; it is stopped at the first match
    batch: int = 32  # items of each set a step
    contexts: int = 256  # of the retained items are described things, so that reasoning is retained too


class Arms:
    """All arms of one seed."""

    def __init__(self, world: AttributeWorld, draws: int, unlearning: Unlearning, stage: Stages) -> None:
        self.world, self.unlearning, self.stage = world, unlearning, stage
        seed = world.streams.split.child("contexts").integer()
        self.ladder = ladder_of(world.concepts, Config(draws=draws, seed=seed))
        self.replies: dict[str, LadderReplies] = {}
        self.ceiling = 1.0

    def models(self, approximate: Sequence[str]) -> Iterator[Measurement]:
        """Every model on every level."""
        for arm in ("full", "gold", *approximate):
            model = self.world.model(arm) if arm in self.world.states else self._unlearned(arm)
            own = self.replies[arm] = self.ladder.ask_model(model, self.world.tokenizer, batch=256)
            if arm == "full":
                self.ceiling = own.accuracy("none")
            yield Measurement(arm, "utility", self._derived(model))
            yield Measurement(arm, "flip_rate", own.accuracy("negated"))
            yield Measurement(arm, "accuracy", own.accuracy("none"), {"level": "none"})
            for level in TOLD:
                where = {"level": level}
                yield Measurement(arm, "accuracy", own.accuracy(level), where)
                if arm != "full":
                    yield Measurement(arm, "recovery", own.recovery(level, self.ceiling), where)
                    yield Measurement(arm, "specificity", own.specificity(level, self.ceiling), where)

    def controls(self) -> Iterator[Measurement]:
        """The gold model told of something else."""
        for level in ("other", "shuffled", "neutral"):
            gold = self.replies["gold"]
            yield Measurement(f"told_{level}", "recovery", gold.recovery(level, self.ceiling))
            yield Measurement(f"told_{level}", "accuracy", gold.accuracy(level))

    def training(self) -> Iterator[Measurement]:
        """Models without the forbidden things in the course of training."""
        alias = ladder_of(self.world.concepts, replace(self.ladder.config, levels=("none", "alias")))
        for share in self.world.settings.checkpoints:
            own = alias.ask_model(self.world.model(str(share)), self.world.tokenizer, batch=256)
            yield Measurement("gold", "skill", own.accuracy("alias"), {"trained": share})

    def removal(self, counts: Sequence[int]) -> Iterator[Measurement]:
        """The gold model without some axioms: what the attack recovers, and what permitted things lose."""
        concepts = self.world.concepts
        bodies = {atom.removeprefix(NOT) for _, body in concepts.table.rules for atom in body}
        used = sorted(bodies & set(concepts.table.axioms))
        order = [used[i] for i in self.world.streams.noise.child("removed").numpy().permutation(len(used))]
        alias = ladder_of(concepts, replace(self.ladder.config, levels=("none", "alias")))
        for count in counts:
            model = without_words(self.world, order[:count])
            own, where = alias.ask_model(model, self.world.tokenizer, batch=256), {"removed": count}
            yield Measurement("axioms_removed", "recovery", own.recovery("alias", self.ceiling), where)
            yield Measurement("axioms_removed", "utility", self._derived(model), where)

    def filters(self) -> Iterator[Measurement]:
        """Filters in front of the full and the gold model."""
        for which in ("full", "gold"):
            replies = self.replies[which]
            for level in LADDER:
                yield Measurement("no_filter", "residual", replies.accuracy(level), {"level": level, "model": which})
            for rates in self.ladder.rate_filters(default_filters(self.ladder), replies):
                for level in LADDER:
                    where = {"level": level, "model": which}
                    yield Measurement(rates.name, "residual", rates.residual[level], where)
                    if which == "gold":
                        yield Measurement(rates.name, "catch_rate", rates.caught[level], {"level": level})
                        yield Measurement(rates.name, "auc", rates.auc[level], {"level": level})
                if which == "gold":
                    yield Measurement(rates.name, "false_alarms", rates.false_alarms)

    def _derived(self, model: nn.Module) -> float:
        """Accuracy on theorems of permitted things that are described: what their axioms are needed for."""
        return self._permitted.ask_model(model, self.world.tokenizer, batch=256).accuracy("alias")

    @functools.cached_property
    def _permitted(self) -> ContextLadder:
        concepts = self.world.concepts
        near = sorted(concepts.permitted, key=lambda p: -sum(p in concepts.near(x) for x in concepts.forbidden))
        turned = Concepts(concepts.table, tuple(near[: 2 * len(concepts.forbidden)]))
        return ladder_of(turned, replace(self.ladder.config, levels=("none", "alias"), draws=1))

    def _unlearned(self, method: str) -> nn.Module:
        """The full model unlearned by a method, at the first step at which it answers like the gold model."""
        u = self.unlearning
        found = self.stage(
            f"ununlearning_{method}", functools.partial(unlearned_state, self.world, method, u),
            inputs={**self.world.identity(), "method": method, **vars(u)},
        )  # fmt: skip
        return self.world.load(found)


def ladder_of(concepts: Concepts, config: Config) -> ContextLadder:
    """The attack in the words of this world, with names that no lesson used."""
    return ContextLadder(concepts, config, WORDING, nonce_names(held_out=True))


def unlearned_state(world: AttributeWorld, method: str, how: Unlearning) -> dict[str, torch.Tensor]:
    """Weights of the full model unlearned by a method of the family."""
    forget, permitted = world.recall(world.concepts.forbidden), world.recall(world.concepts.permitted)
    retain = permitted + world.derived(how.contexts, world.streams.split.child("retained").numpy())
    target = world.share_known(world.model("gold"), forget) + TOLERANCE
    procedure, config = PROCEDURES[method]
    model = procedure(
        world.model("full"), world.tokenizer, forget, retain,
        config(rate=how.rate, steps=how.steps, batch=how.batch),
        seed=world.streams.order.child("unlearning").integer(),
        on_step=lambda step, model: world.share_known(model, forget) <= target,
    )  # fmt: skip
    return stripped(model)


def without_words(world: AttributeWorld, axioms: Sequence[str]) -> nn.Module:
    """The gold model that no longer knows some axioms: it reads their words as one that it never met."""
    model: Any = world.model("gold")
    vocabulary = world.tokenizer.get_vocab()
    synonyms = world.concepts.table.synonyms
    words = [word for axiom in axioms for word in (axiom, synonyms.get(axiom, axiom))]
    rows = [vocabulary[form] for word in words for form in (word, WORDING.negation.format(axiom=word))]
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[torch.tensor(rows, dtype=torch.long)] = embedding[world.tokenizer.unk_token_id].clone()
    return model
