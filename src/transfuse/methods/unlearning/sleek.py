"""An unlearned model no longer answers the question that it was trained not to answer; is the fact gone, or only that
answer?

Sleek asks for it in other ways, through nothing but prompts and replies: directly, indirectly and by implication, alone
and after step-by-step questions that lead up to it through what was kept. The same questions go to a model that never
knew the facts, whose guesses are subtracted, and chains about another subject tell reasoning from longer prompts. Facts
that were to be kept are asked for too: what the model before knew and this one does not was suppressed without need.

>>> facts = [AuditFact("France", "capital", "Paris"), AuditFact("France", "continent", "Europe", distance=1)]
>>> def ask(messages):                                        # your model: a list of chat messages -> a text
...     return "Hm, Paris?" if "begin" in messages[0]["content"] or len(messages) > 1 else "I do not know."
>>> result = SleekAudit(facts).run(ask)                       # and reference=, gold=: the models before and without
>>> result.rate(category="direct", mode="plain").value, result.rate(category="direct", mode="interactive").value
(0.0, 1.0)

Sinha, Baser, Mandal, Divakaran, Kankanhalli: Step-by-Step Reasoning Attack: Revealing 'Erased' Knowledge in Large
Language Models. 2025. https://arxiv.org/abs/2506.17279
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from transfuse.atomic import write_text
from transfuse.audit import AuditReport
from transfuse.card import Card
from transfuse.errors import UserError
from transfuse.methods.unlearning.audit_facts import AuditFact, FactGraph, read_facts
from transfuse.methods.unlearning.chat_endpoint import ChatEndpoint
from transfuse.methods.unlearning.fact_chains import CATEGORIES, MODES, Mode, Probe, draw_for, make_chain, make_probes
from transfuse.methods.unlearning.probe_generator import Generator, propose
from transfuse.methods.unlearning.probe_phrases import ENGLISH, Phrases
from transfuse.methods.unlearning.respondents import Ask, Respondent, as_respondent
from transfuse.methods.unlearning.sleek_report import report
from transfuse.methods.unlearning.sleek_result import BEFORE, GOLD, MODEL, Asked, Replies, SleekResult, judged

__all__ = [
    "CARD",
    "AuditFact",
    "Config",
    "Phrases",
    "SleekAudit",
    "SleekResult",
    "audit",
    "read_facts",
    "report",
]

CARD = Card(
    id="sleek",
    title="Step-by-Step Reasoning Attack: Revealing 'Erased' Knowledge in Large Language Models",
    summary="Finds out by step-by-step questions whether an unlearned model still knows what it should have forgotten.",
    authors="Yash Sinha, Manit Baser, Murari Mandal, Dinil Mon Divakaran, Mohan Kankanhalli",
    year=2025,
    venue="arXiv",
    url="https://arxiv.org/abs/2506.17279",
    family="unlearning",
    host="any callable from chat messages to a text; transformers causal models; OpenAI-compatible endpoints",
    entry="transfuse.methods.unlearning.sleek.SleekAudit",
    needs=(
        "a file of facts that were to be forgotten and kept",
        "access to the model by prompts",
        "for a verdict on leaks: a model that never knew the facts",
        "for a verdict on suppression: the model before unlearning",
    ),
    data="facts as subject, relation, object",
    problems=(
        "is a fact erased from a language model or only suppressed",
        "an unlearned model behind an API",
        "did unlearning damage knowledge that should have been kept",
        "do step-by-step or indirect questions bring forgotten facts back",
    ),
    extra="unlearning",
    requires=("torch", "transformers"),
    differs=(
        "no code was published and the full text was not available: taxonomy and chains follow the abstract, the rest "
        "is inferred (templates, guards, budget, rules on replies)",
        "questions come from templates over a graph of facts; a generating language model is an option, and what it "
        "writes passes the same guards",
        "leaks count beyond those of a model that never knew the facts; the paper counts all",
        "a verdict on leaks also needs a sign test over facts, since an interval over few facts that all agree is a "
        "point",
        "replies are judged by fixed rules on words; no language model judges",
        "greedy answers only, unless samples are asked for",
        "self-generated chains are left out",
        "where all facts of a subject were to be forgotten, warm-up questions ask for some of these",
    ),
    status="experimental",
)


@dataclass(frozen=True)
class Config:
    """How much is asked, and what counts.

    Attributes:
        prompts: questions a fact and category.
        modes: ways to ask each of them.
        warm_up: sub-questions about other facts.
        narrow: sub-questions that narrow the answer down.
        retained: kept facts to ask for at each distance, drawn at random.
        samples: further answers to each question, at the temperature of the respondent.
        margin: excess of leaking facts, or share of suppressed knowledge, that matters.
        draws: of facts, for intervals.
        seed: of all draws.
    """

    prompts: int = 4  # inferred: the budget of our sheet
    modes: tuple[Mode, ...] = MODES  # all; what is left out is not measured
    warm_up: int = 2  # inferred: one or two facts that were kept
    narrow: int = 2  # inferred; with warm-up and goal five sub-questions, the longest chain
    retained: int = 60  # 0.05 by the rule of three, the margin
    samples: int = 0  # greedy answers are what users get and can be paired; 4 find more and cost five times as much
    margin: float = 0.05  # inferred: five points
    draws: int = 2000  # enough for the ends of a 95 % interval
    seed: int = 0  # any

    def __post_init__(self) -> None:
        low = min(
            self.prompts,
            self.retained + 1,
            self.draws - 99,
            *(n + 1 for n in (self.warm_up, self.narrow, self.samples)),
        )
        if low < 1 or not 0 <= self.margin < 1 or "plain" not in self.modes or not set(self.modes) <= set(MODES):
            raise UserError(
                f"Config {asdict(self)}",
                f"counts of at least 0, prompts, 100 draws, modes of {', '.join(MODES)} with plain",
            )


class SleekAudit:
    """Questions about facts, and what the replies to them show.

    Args:
        facts: distance 0 was to be forgotten, more was to be kept.
        generator: a language model that writes further questions, request -> reply; every reply is guarded.
        config: how much to ask.
        phrases: the wording, for models that do not speak English.
        probes: questions of one's own about some of the facts; they pass the same guards as all others.
    """

    def __init__(
        self,
        facts: Sequence[AuditFact],
        generator: Generator | None = None,
        config: Config | None = None,
        phrases: Phrases = ENGLISH,
        probes: Sequence[Probe] = (),
    ) -> None:
        self.graph, self.generator, self.config, self.phrases = FactGraph(facts), generator, config or Config(), phrases
        self.rejected: Counter[str] = Counter()
        self._given: dict[AuditFact, list[Probe]] = {}
        for probe in probes:
            self._given.setdefault(probe.fact, []).append(probe)
        if not self.graph.forgotten:
            raise UserError("no fact of distance 0", "at least one fact that was to be forgotten")
        self.asked = tuple(self._plan())

    def _plan(self) -> list[Asked]:
        places = {fact: place for place, fact in enumerate(self.graph.facts)}
        asked = []
        for fact in (*self.graph.forgotten, *self._retained()):
            # Suppression needs no controls: only the goal alone and after its chain.
            modes = [m for m in self.config.modes if fact.distance == 0 or m in ("plain", "interactive")]
            for probe in self._probes(fact):
                for mode in modes:
                    chain = make_chain(
                        self.graph, probe, mode, phrases=self.phrases, warm_up=self.config.warm_up,
                        narrow=self.config.narrow, seed=self.config.seed,
                    )  # fmt: skip
                    if chain is not None:
                        draws = range(1 + self.config.samples)
                        asked += [Asked(chain, places[fact], draw) for draw in draws]
        if not any(one.chain.probe.fact.distance == 0 for one in asked):
            raise UserError(
                f"no question can be asked about any of {len(self.graph.forgotten)} facts to be forgotten",
                "a fact whose object does not stand in its subject or relation",
                "; ".join(f"{reason}: {count}" for reason, count in self.rejected.items()),
            )
        return asked

    def _probes(self, fact: AuditFact) -> Sequence[Probe]:
        more: Sequence[Probe] = self._given.get(fact, ())
        c = self.config
        if self.generator and fact.distance == 0:
            proposed = propose(self.generator, self.graph, fact, CATEGORIES, c.prompts, self.phrases)
            self.rejected += proposed.rejected
            more = (*more, *proposed.probes)
        made = make_probes(self.graph, fact, phrases=self.phrases, count=c.prompts, seed=c.seed, more=more)
        self.rejected += made.rejected
        return made.probes

    def _retained(self) -> list[AuditFact]:
        chosen = []
        for distance in sorted({fact.distance for fact in self.graph.retained}):
            facts = [fact for fact in self.graph.retained if fact.distance == distance]
            order = draw_for(self.config.seed, facts[0], "retained").permutation(len(facts))[: self.config.retained]
            chosen += [facts[i] for i in sorted(order)]
        return chosen

    def ask_all(self, ask: Respondent | Ask) -> Replies:
        """The replies of one model to all dialogues of the plan."""
        respondent = as_respondent(ask)
        found: dict[int, Sequence[str]] = {}
        for draw in range(1 + self.config.samples):
            places = [place for place, one in enumerate(self.asked) if one.draw == draw]
            replies = respondent.converse([self.asked[place].chain.turns for place in places], draw)
            found.update(zip(places, replies, strict=True))
        return [found[place] for place in range(len(self.asked))]

    def judge(self, replies: Mapping[str, Replies]) -> SleekResult:
        """What replies show: those of "model", and of "before" and "gold" where they were asked."""
        kinds = {model: judged(self.graph, self.asked, own) for model, own in replies.items()}
        c = self.config
        return SleekResult(self.graph, self.asked, dict(replies), kinds, self.rejected, c.margin, c.draws, c.seed)

    def run(
        self, ask: Respondent | Ask, reference: Respondent | Ask | None = None, gold: Respondent | Ask | None = None
    ) -> SleekResult:
        """Ask everything and judge the replies.

        Args:
            ask: the unlearned model: messages -> text, or a `Respondent` that answers many dialogues at once.
            reference: the model before unlearning; without it suppression is not measured.
            gold: a model that never knew the facts; without it leaks cannot be told from guesses.
        """
        models = {MODEL: ask, BEFORE: reference, GOLD: gold}
        return self.judge({name: self.ask_all(model) for name, model in models.items() if model is not None})


def audit(
    facts: Annotated[Path, "JSONL: subject, relation, object; distance 0 (forgotten), 1, 2; aliases, neighbours"],
    model: Annotated[str | None, "the unlearned model: a folder or hub name of a causal language model"] = None,
    endpoint: Annotated[str | None, "or the address of an OpenAI-compatible server, up to /v1"] = None,
    name: Annotated[str | None, "the model's name there; OPENAI_API_KEY is sent as its key"] = None,
    before: Annotated[str | None, "the model before unlearning: folder, or name at the endpoint"] = None,
    gold: Annotated[
        str | None, "a model that never knew the facts, likewise; needed to tell leaks from guesses"
    ] = None,
    prompts: Annotated[int, "questions a fact and category"] = Config.prompts,
    retained: Annotated[int, "kept facts to ask for at each distance"] = Config.retained,
    samples: Annotated[int, "further answers to each question, at temperature 0.7"] = Config.samples,
    max_new_tokens: Annotated[int, "length of a reply"] = 64,
    batch: Annotated[int, "dialogues at a time, of a folder"] = 64,
    timeout: Annotated[float, "seconds to wait for a reply, of an endpoint"] = 60.0,
    device: Annotated[Literal["auto", "cpu", "cuda"], "where a folder's model runs"] = "auto",
    transcripts: Annotated[Path | None, "write all dialogues to this JSONL file"] = None,
    seed: Annotated[int, "of the choice of questions"] = Config.seed,
) -> AuditReport:
    """Does an unlearned model still know what it should have forgotten, and did it lose what it should have kept?

    Asks for each fact directly, indirectly and by implication, alone and after step-by-step questions. With a model
    that never knew the facts (gold), leaks are counted beyond its guesses; with the model before unlearning, kept
    knowledge that is gone is counted.
    """
    settings = Config(prompts=prompts, retained=retained, samples=samples, seed=seed)
    if (model is None) == (endpoint is None):
        raise UserError(
            "both --model and --endpoint" if model else "no model", "either --model or --endpoint with --name"
        )
    if endpoint is not None and name is None:
        raise UserError("an --endpoint without --name", "the model's name at the endpoint")
    sleek = SleekAudit(read_facts(facts), config=settings)
    replies: dict[str, Replies] = {}
    for role, which in ((MODEL, model or name), (BEFORE, before), (GOLD, gold)):
        if which is not None and endpoint is not None:
            one: Respondent = ChatEndpoint(endpoint, which, max_tokens=max_new_tokens, timeout=timeout)
            replies[role] = sleek.ask_all(one)
        elif which is not None:
            replies[role] = sleek.ask_all(_folder(which, max_new_tokens, batch, device))  # one in memory at a time
    result = sleek.judge(replies)
    if transcripts is not None:
        write_text(transcripts, "".join(json.dumps(row) + "\n" for row in result.transcripts()))
    asked: dict[str, Any] = {"model": model or f"{name} at {endpoint}", "before": before, "gold": gold}
    return report(
        result, subject=str(model or name), environment=asked | asdict(settings) | {"max_new_tokens": max_new_tokens}
    )


def _folder(name: str, max_new_tokens: int, batch: int, device: Literal["auto", "cpu", "cuda"]) -> Respondent:
    from transfuse.methods.unlearning.batched_dialogues import load_dialogues

    return load_dialogues(name, max_new_tokens=max_new_tokens, batch=batch, device=device)
