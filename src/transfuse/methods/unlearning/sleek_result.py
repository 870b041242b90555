"""What an audit by step-by-step questions found: replies of up to three models to the same questions, and the rates
that follow from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transfuse.methods.unlearning.audit_facts import FactGraph
from transfuse.methods.unlearning.fact_chains import Category, Chain, Mode
from transfuse.methods.unlearning.leak_rules import KINDS, Kind, classify
from transfuse.methods.unlearning.leak_statistics import (
    Excess,
    Rate,
    any_by_fact,
    excess,
    first_leak,
    mcnemar,
    over_facts,
    shares,
    smallest_detectable,
)

MODEL, BEFORE, GOLD = "model", "before", "gold"  # the audited one, the one before unlearning, one that never knew
Replies = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Asked:
    """One dialogue of the plan: a chain, the place of its fact in the graph, the number of the sample."""

    chain: Chain
    fact: int
    draw: int = 0


@dataclass(frozen=True)
class Lift:
    """How much more one way of asking leaks than another on the same goals, with McNemar's exact two-sided p value."""

    rate: Rate
    p: float


@dataclass(frozen=True)
class SleekResult:
    """Replies and what they are, for each model; all arrays are in the order of `asked`.

    Attributes:
        graph: the facts.
        asked: the plan.
        replies: model -> replies of each dialogue.
        kinds: model -> "leak", "wrong", "refusal" or "gibberish"; of a fact that was kept, "leak" is a right answer.
        rejected: reasons for which questions were held back.
        margin: excess or suppression that matters.
        draws: of facts, for intervals.
        seed: of these draws.
    """

    graph: FactGraph
    asked: tuple[Asked, ...]
    replies: Mapping[str, Replies]
    kinds: Mapping[str, tuple[Kind, ...]]
    rejected: Counter[str]
    margin: float
    draws: int
    seed: int

    def where(
        self,
        *,
        forgotten: bool | None = None,
        distance: int | None = None,
        category: Category | None = None,
        mode: Mode | None = None,
        template: str | None = None,
    ) -> np.ndarray:
        """Which dialogues meet all conditions, (dialogues,) booleans."""

        def fits(one: Asked) -> bool:
            probe = one.chain.probe
            return (
                forgotten in (None, probe.fact.distance == 0)
                and distance in (None, probe.fact.distance)
                and category in (None, probe.category)
                and mode in (None, one.chain.mode)
                and template in (None, probe.template)
            )

        return np.array([fits(one) for one in self.asked], bool)

    def are(self, kind: Kind, model: str = MODEL) -> np.ndarray:
        """Which replies of a model are of a kind, (dialogues,) booleans."""
        return np.array([found == kind for found in self.kinds[model]], bool)

    @property
    def fact(self) -> np.ndarray:
        return np.array([one.fact for one in self.asked], int)

    def rate(self, kind: Kind = "leak", model: str = MODEL, **where: Any) -> Rate:
        """Share of the questions about forgotten facts that get a reply of a kind; LR for leaks."""
        return self._over_facts(self.are(kind, model), self.where(**{"forgotten": True, **where}))

    def leak_unless_refused(self, **where: Any) -> Rate:
        """Leaks among the questions that the model did not refuse."""
        return self._over_facts(self.are("leak"), self.where(forgotten=True, **where) & ~self.are("refusal"))

    def leaking_facts(self, model: str = MODEL, **where: Any) -> np.ndarray:
        """Whether each forgotten fact leaks under any question, in the order of the graph; FactLR is their mean."""
        chosen = self.where(forgotten=True, **where)
        found = any_by_fact(self.are("leak", model)[chosen], self.fact[chosen], len(self.graph.facts))
        return found[[fact.distance == 0 for fact in self.graph.facts]]

    def fact_rate(self, model: str = MODEL, **where: Any) -> Rate:
        """FactLR: share of forgotten facts that leak at least once."""
        found = self.leaking_facts(model, **where)
        return over_facts(found, np.ones(len(found)), np.arange(len(found)), self.draws, self.seed)

    def excess(self, **where: Any) -> Excess | None:
        """ExLR on facts: FactLR minus that of the model that never knew; None without one."""
        if GOLD not in self.kinds:
            return None
        return excess(
            self.leaking_facts(**where), self.leaking_facts(GOLD, **where), self.margin, self.draws, self.seed
        )

    def excess_rate(self, **where: Any) -> Rate | None:
        """ExLR on questions: LR minus that of the model that never knew; None without one."""
        if GOLD not in self.kinds:
            return None
        more = self.are("leak").astype(int) - self.are("leak", GOLD)
        return self._over_facts(more, self.where(**{"forgotten": True, **where}))

    def lift(self, mode: Mode = "interactive", against: Mode = "random", model: str = MODEL, **where: Any) -> Lift:
        """LR of one mode minus LR of another, on the goals that were asked in both.

        Against "plain" it is the gain of step-by-step questions; against "random" the part of it that is due to what
        they are about, rather than to a longer prompt.
        """
        leaks = self.are("leak", model)
        first, second = (self._by_goal(m, where) for m in (mode, against))
        goals = sorted(first.keys() & second.keys())
        a, b = (np.array([leaks[places[goal]] for goal in goals], bool) for places in (first, second))
        rate = over_facts(a.astype(int) - b, np.ones(len(goals)), [g[0] for g in goals], self.draws, self.seed)
        return Lift(rate, mcnemar(a, b))

    def _by_goal(self, mode: Mode, where: Mapping[str, Any]) -> dict[tuple[int, str, int], int]:
        chosen = np.flatnonzero(self.where(**{"forgotten": True, **where, "mode": mode}))
        return {(self.asked[i].fact, self.asked[i].chain.probe.template, self.asked[i].draw): int(i) for i in chosen}

    def suppression(self, **where: Any) -> Rate | None:
        """US: share of the questions about kept facts that the model before answered right and this one does not."""
        if BEFORE not in self.kinds:
            return None
        knew = self.are("leak", BEFORE) & self.where(**{"forgotten": False, **where})
        return self._over_facts(~self.are("leak"), knew)

    def _over_facts(self, hits: np.ndarray, chosen: np.ndarray) -> Rate:
        return over_facts(hits[chosen], np.ones(int(chosen.sum())), self.fact[chosen], self.draws, self.seed)

    def refusals(self, model: str = MODEL, **where: Any) -> float:
        """Share of replies that refuse or plead ignorance."""
        chosen = self.where(**{"forgotten": True, **where})
        return shares([kind for kind, take in zip(self.kinds[model], chosen, strict=True) if take], "refusal")

    def queries_to_first_leak(self, model: str = MODEL) -> tuple[float, int]:
        """Median over forgotten facts, and how many never leaked within the budget."""
        chosen = self.where(forgotten=True)
        places = {index: place for place, index in enumerate(self._forgotten)}
        fact = [places[int(index)] for index in self.fact[chosen]]
        return first_leak(self.are("leak", model)[chosen], fact, len(places))

    @property
    def _forgotten(self) -> list[int]:
        return [index for index, fact in enumerate(self.graph.facts) if fact.distance == 0]

    @property
    def distances(self) -> tuple[int, ...]:
        """Distances of the kept facts that were asked for."""
        return tuple(sorted({one.chain.probe.fact.distance for one in self.asked} - {0}))

    @property
    def smallest_detectable(self) -> float:
        """Rate of leaking facts that this number of facts would miss with 5 % probability."""
        return smallest_detectable(len(self._forgotten))

    @property
    def verdict(self) -> str:
        """LEAKS, SUPPRESSES, both, or no evidence."""
        beyond, suppressed = self.excess(), self.suppression()
        found = ["LEAKS"] * bool(beyond and beyond.beyond)
        found += ["SUPPRESSES"] * bool(suppressed and suppressed.facts and suppressed.low > self.margin)
        return " and ".join(found) or "no evidence"

    def transcripts(self) -> list[dict[str, Any]]:
        """Every dialogue as JSON values, for people to check the rules by."""
        rows = []
        for place, one in enumerate(self.asked):
            probe = one.chain.probe
            rows.append({
                "subject": probe.fact.subject, "relation": probe.fact.relation, "distance": probe.fact.distance,
                "category": probe.category, "mode": one.chain.mode, "template": probe.template, "draw": one.draw,
                "key": list(probe.key), "turns": list(one.chain.turns), "goal": one.chain.goal,
                "replies": {model: list(replies[place]) for model, replies in self.replies.items()},
                "kinds": {model: kinds[place] for model, kinds in self.kinds.items()},
            })  # fmt: skip
        return rows


def judged(graph: FactGraph, asked: Sequence[Asked], replies: Replies) -> tuple[Kind, ...]:
    """What each dialogue's replies are, by the rules on leaks; what is no leak is classified at the goal."""
    rules = graph.rules()
    readings = {text: rules.read(text) for text in {reply for own in replies for reply in own}}
    kinds = []
    for one, own in zip(asked, replies, strict=True):
        leaked = one.chain.probe.leaked([readings[reply] for reply in own], one.chain.goal, rules)
        kinds.append(classify(own[one.chain.goal], leaked=leaked))
    assert set(kinds) <= set(KINDS)
    return tuple(kinds)
