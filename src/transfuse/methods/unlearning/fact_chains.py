"""Questions that approach a fact step by step, made from a graph of facts by templates and guarded by rules.

A probe is a goal question with its key. It is *direct* (names subject and relation), *indirect* (the same fact without
that phrasing: turned round, through a description, through a bridge) or *implied* (a task whose right completion needs
the fact). A chain puts sub-questions before the goal: warm-up about what was kept, then narrowing. No question holds
the answer, at most one hop leads through a forgotten fact, and the key is unique.

>>> from transfuse.methods.unlearning.audit_facts import AuditFact, FactGraph
>>> graph = FactGraph([
...     AuditFact("France", "capital", "Paris"), AuditFact("France", "continent", "Europe", distance=1),
...     AuditFact("Peru", "capital", "Lima", distance=2), AuditFact("Peru", "continent", "America", distance=2),
... ])
>>> probe = make_probes(graph, graph.forgotten[0], categories=("direct",), count=1).probes[0]
>>> make_chain(graph, probe, "interactive", warm_up=1, narrow=1).turns[:3]
('What is the continent of France?', 'What kind of thing is the capital of France?', 'What is the capital of France?')
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from transfuse.methods.unlearning.audit_facts import SUBJECTS, AuditFact, FactGraph
from transfuse.methods.unlearning.leak_rules import LeakRules, Reading, answers_key, words
from transfuse.methods.unlearning.probe_phrases import ENGLISH, Phrases

Category = Literal["direct", "indirect", "implied"]
Mode = Literal["plain", "instruction", "one_shot", "interactive", "random"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
MODES: tuple[Mode, ...] = get_args(Mode)
SIMILAR = 0.8  # token-set Jaccard from which two questions are the same
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True)
class Probe:
    """A goal question.

    Attributes:
        fact: what it is about.
        category: direct, indirect or implied.
        template: what made it, such as "direct/0".
        goal: the question.
        key: names of the right answer.
        kind: what kind of thing the answer is, for the rule on enumerations.
        hidden: names that no question may hold.
        uses: the facts that an answer needs, one a hop.
        options: the answers of an implied question, where they can be listed.
        answers: how many answers the graph knows; the key is unique if it is one.
    """

    fact: AuditFact
    category: Category
    template: str
    goal: str
    key: tuple[str, ...]
    kind: str
    hidden: tuple[str, ...]
    uses: tuple[AuditFact, ...]
    options: tuple[str, ...] = ()
    answers: int = 1

    def leaked(self, replies: Sequence[str | Reading], goal: int, rules: LeakRules) -> bool:
        """Whether replies give the key away: in any turn, or for an implied question right at the goal."""
        if self.category == "implied":
            reply = replies[goal]
            return answers_key(reply if isinstance(reply, str) else reply.text, self.key, self.options)
        return any(rules.gives(reply, self.key, self.kind) for reply in replies)


@dataclass(frozen=True)
class Probes:
    """Probes of one fact or of many, and why others were rejected."""

    probes: tuple[Probe, ...]
    rejected: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Chain:
    """The user's turns of one dialogue; the goal stands in turn `goal`."""

    probe: Probe
    mode: Mode
    turns: tuple[str, ...]
    goal: int


def holds(text: str, names: Sequence[str]) -> bool:
    """Whether a name stands in a text as whole words, both folded.

    >>> holds("Greater PARÍS area", ["Paris"]), holds("comparison", ["Paris"])
    (True, False)
    """
    found = f" {' '.join(words(text, articles=True))} ", f" {' '.join(words(text))} "
    return any(f" {' '.join(words(name))} " in form for name in names for form in found)


def violations(probe: Probe, texts: Sequence[str] | None = None) -> list[str]:
    """Which guards a probe breaks, or further texts of its chain."""
    found = []
    if any(holds(text, probe.hidden) for text in (texts if texts is not None else (probe.goal,))):
        found.append("holds the answer")
    if len({fact for fact in probe.uses if fact.distance == 0}) > 1:
        found.append("two hops through forgotten facts")
    if probe.answers != 1:
        found.append("more than one right answer")
    return found


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of the words of two texts."""
    a, b = set(words(first)), set(words(second))
    return len(a & b) / max(1, len(a | b))


def make_probes(
    graph: FactGraph,
    fact: AuditFact,
    *,
    phrases: Phrases = ENGLISH,
    categories: Sequence[Category] = CATEGORIES,
    count: int = 4,
    seed: int = 0,
    more: Sequence[Probe] = (),
) -> Probes:
    """Up to `count` probes a category about one fact, guarded and without near repetitions; the same for every call.

    Args:
        graph: all facts.
        fact: what to ask for.
        phrases: the wording.
        categories: which to make.
        count: of each category.
        seed: of the draws of other subjects.
        more: proposals of others, which come after the first template of their category.
    """
    rng = draw_for(seed, fact)
    kept: list[Probe] = []
    rejected: Counter[str] = Counter()
    for category in categories:
        made = list(_templates(graph, fact, category, phrases, rng))
        own = [probe for probe in more if probe.category == category]
        room = count
        for probe in [*made[:1], *own, *made[1:]]:
            reasons = violations(probe)
            if not reasons and any(similarity(probe.goal, other.goal) >= SIMILAR for other in kept):
                reasons = ["repeats another"]
            if reasons:
                rejected.update(reasons)
            elif room:
                kept.append(probe)
                room -= 1
    return Probes(tuple(kept), rejected)


def draw_for(seed: int, fact: AuditFact, name: str = "") -> np.random.Generator:
    """A generator of the fact's own, so that other facts of a file do not change its questions."""
    digest = hashlib.sha256(f"{seed}/{fact.subject}/{fact.kind}/{name}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def _templates(
    graph: FactGraph, fact: AuditFact, category: Category, phrases: Phrases, rng: np.random.Generator
) -> Iterator[Probe]:
    """Candidates of one category, taking turns between kinds, so that a small number holds many kinds."""
    kinds = {"direct": [_direct], "indirect": [_reverse, _described, _bridge], "implied": [_of_object, _compare, _odd]}
    chosen = kinds[category] if fact.relation or category == "direct" else []  # else there is no noun to fill in
    makers = [list(make(graph, fact, phrases, rng)) for make in chosen]
    for rank in range(max(map(len, makers), default=0)):
        yield from (made[rank] for made in makers if rank < len(made))


def _direct(graph: FactGraph, fact: AuditFact, phrases: Phrases, rng: np.random.Generator) -> Iterator[Probe]:
    for number, template in enumerate(phrases.direct if fact.relation else phrases.direct[:1]):
        goal = fact.question if fact.question and number == 0 else _filled(template, fact)
        yield Probe(fact, "direct", f"direct/{number}", goal, fact.names, fact.kind, fact.names, (fact,))


def _reverse(graph: FactGraph, fact: AuditFact, phrases: Phrases, rng: np.random.Generator) -> Iterator[Probe]:
    key, owners = (fact.subject,), len(graph.subjects_with(fact.relation, fact.object))
    for number, template in enumerate(phrases.reverse):
        goal = _filled(template, fact)
        yield Probe(fact, "indirect", f"reverse/{number}", goal, key, SUBJECTS, key, (fact,), answers=owners)


def _described(graph: FactGraph, fact: AuditFact, phrases: Phrases, rng: np.random.Generator) -> Iterator[Probe]:
    others = [other for other in graph.of(fact.subject) if other.relation not in ("", fact.relation)]
    others.sort(key=lambda other: (other.distance == 0, len(graph.subjects_with(other.relation, other.object))))
    for number, template in enumerate(phrases.described):
        for other in others[:1]:
            goal = _filled(template, fact, relation2=other.relation, object2=other.object)
            owners = len(graph.subjects_with(other.relation, other.object))
            names, uses = fact.names, (other, fact)
            yield Probe(
                fact, "indirect", f"described/{number}", goal, names, fact.relation, names, uses, answers=owners
            )


def _bridge(graph: FactGraph, fact: AuditFact, phrases: Phrases, rng: np.random.Generator) -> Iterator[Probe]:
    onward = [other for other in graph.of(fact.object) if other.relation and other.subject != fact.subject]
    for number, template in enumerate(phrases.bridge):
        for other in onward:
            goal = _filled(template, fact, relation2=other.relation)
            hidden, uses = (*fact.names, *other.names), (fact, other)
            yield Probe(fact, "indirect", f"bridge/{number}", goal, other.names, other.relation, hidden, uses)


def _of_object(graph: FactGraph, fact: AuditFact, phrases: Phrases, rng: np.random.Generator) -> Iterator[Probe]:
    """First letter, number of letters, spelling."""
    plain = "".join(words(fact.object, articles=True))

    def probe(template: str, name: str, key: tuple[str, ...], options: tuple[str, ...] = ()) -> Probe:
        goal = _filled(template, fact)
        return Probe(fact, "implied", name, goal, key, "", fact.names, (fact,), options)

    if plain[0] in _LETTERS:
        for number, template in enumerate(phrases.initial):
            yield probe(template, f"initial/{number}", (plain[0],), _LETTERS)
        for number, template in enumerate(phrases.spell):
            yield probe(template, f"spell/{number}", (" ".join(plain[:8]),))
    if plain.isalpha():
        for number, template in enumerate(phrases.length):
            size = len(plain)
            word = (_NUMBERS[size - 1],) if size <= len(_NUMBERS) else ()
            numbers = tuple(str(n) for n in range(1, 41)) + _NUMBERS
            yield probe(template, f"length/{number}", (str(size), *word), numbers)


def _compare(graph: FactGraph, fact: AuditFact, phrases: Phrases, rng: np.random.Generator) -> Iterator[Probe]:
    """Same first letter as another's, whose fact was kept: yes as often as no, where the graph allows."""
    others = [other for other in graph.same_kind(fact.relation) if other.distance and other.subject != fact.subject]
    first = _initial(fact.object)
    groups = [[o for o in others if (_initial(o.object) == first) is same] for same in (False, True)]
    for number, template in enumerate(phrases.compare):
        same = bool(rng.integers(2))
        same = same if groups[same] else not same
        if groups[same]:
            other = groups[same][int(rng.integers(len(groups[same])))]
            goal, key = _filled(template, fact, other=other.subject), ("yes" if same else "no",)
            name, uses = f"compare/{number}", (fact, other)
            yield Probe(fact, "implied", name, goal, key, "", fact.names, uses, ("yes", "no"))


def _odd(graph: FactGraph, fact: AuditFact, phrases: Phrases, rng: np.random.Generator) -> Iterator[Probe]:
    """The fact's subject between two others that share an object, or beside one that shares its own."""
    others = [other for other in graph.same_kind(fact.relation) if other.distance and other.subject != fact.subject]
    shared = [o for o in others if words(o.object) == words(fact.object)]
    different = [o for o in others if words(o.object) != words(fact.object)]
    for number, template in enumerate(phrases.odd):
        if shared and different and rng.integers(2):
            pair = shared[int(rng.integers(len(shared)))], different[int(rng.integers(len(different)))]
            odd = pair[1].subject
        else:
            pairs = [
                (a, b) for i, a in enumerate(different) for b in different[:i] if words(a.object) == words(b.object)
            ]
            if not pairs:
                continue
            pair, odd = pairs[int(rng.integers(len(pairs)))], fact.subject
        names = [fact.subject, pair[0].subject, pair[1].subject]
        first, second, third = (names[i] for i in rng.permutation(3))
        goal = _filled(template, fact, first=first, second=second, third=third)
        uses = (fact, *pair)
        yield Probe(fact, "implied", f"odd/{number}", goal, (odd,), "", fact.names, uses, tuple(names))


def _initial(name: str) -> str:
    return "".join(words(name, articles=True))[:1]


def _filled(template: str, fact: AuditFact, **names: str) -> str:
    known = {"relation": fact.relation, "subject": fact.subject, "object": fact.object, **names}
    for name, value in known.items():
        template = template.replace("{" + name + "}", value)  # names may hold braces themselves
    return template


def make_chain(
    graph: FactGraph,
    probe: Probe,
    mode: Mode,
    *,
    phrases: Phrases = ENGLISH,
    warm_up: int = 2,
    narrow: int = 2,
    seed: int = 0,
) -> Chain | None:
    """A probe's goal as one dialogue; None where the mode has no chain for it.

    Args:
        graph: all facts.
        probe: the goal.
        mode: the goal alone ("plain") or with an instruction to reason, all sub-questions in one message ("one_shot"),
            one a turn ("interactive"), or as many of the same sort about another subject ("random").
        phrases: the wording.
        warm_up: questions about other facts of the subject, those that were kept first. Where the subject may not be
            named, about its neighbours.
        narrow: questions that narrow the answer down.
        seed: of the draws.
    """
    alone = {"plain": probe.goal, "instruction": phrases.instruction.replace("{goal}", probe.goal)}
    if mode in alone:
        return Chain(probe, mode, (alone[mode],), 0) if alone[mode] else None
    about = _walk(graph, probe, warm_up, phrases, seed)
    numbers = _narrowing(graph, probe, narrow, phrases, seed)
    steps = _worded(about, phrases) + [_narrowed(graph, probe, probe.fact, n, phrases, seed) for n in numbers]
    if mode == "random" and steps:
        steps = _elsewhere(graph, probe, about, numbers, phrases, seed)
    if not steps or (mode == "one_shot" and not phrases.together):
        return None
    if mode == "one_shot":
        lines = "\n".join(f"{number}. {line}" for number, line in enumerate((*steps, probe.goal), 1))
        return Chain(probe, mode, (phrases.together.replace("{steps}", lines),), 0)
    turns = (*steps, probe.goal, *((phrases.verify,) if phrases.verify else ()))
    return Chain(probe, mode, turns, len(steps))


def _walk(graph: FactGraph, probe: Probe, count: int, phrases: Phrases, seed: int) -> list[AuditFact]:
    """The facts to warm up with, of relations that differ: about the subject, kept ones first; else of neighbours."""
    fact = probe.fact
    own = [f for f in graph.of(fact.subject) if f != fact and f not in probe.uses]
    near = [f for name in fact.neighbours for f in graph.of(name) if f.distance and f not in probe.uses]
    rng = draw_for(seed, fact, "walk")  # of the fact alone, so that all goals of a fact begin with the same turns
    order = [own[i] for i in rng.permutation(len(own))] + [near[i] for i in rng.permutation(len(near))]
    order.sort(key=lambda f: 2 if f.subject != fact.subject else int(f.distance == 0))
    chosen: dict[str, AuditFact] = {}
    for other in order:
        if len(chosen) < count and other.kind not in chosen and _speakable(other, probe, phrases):
            chosen[other.kind] = other
    return list(chosen.values())


def _speakable(fact: AuditFact, probe: Probe, phrases: Phrases) -> bool:
    """Whether neither a question about a fact nor its answer holds what is hidden or asked for."""
    names = (*probe.hidden, *(probe.key if probe.category != "implied" else ()))
    return not any(holds(text, names) for text in (*_worded([fact], phrases), *fact.names))


def _worded(facts: Sequence[AuditFact], phrases: Phrases) -> list[str]:
    return [fact.question or _filled(template, fact) for fact in facts for template in phrases.warm_up[:1]]


def _narrowing(graph: FactGraph, probe: Probe, count: int, phrases: Phrases, seed: int) -> list[int]:
    """Which templates narrow a probe's answer down: those that neither hold it nor ask for the goal itself."""
    numbers = []
    for number in range(len(phrases.narrow) if probe.fact.relation else 0):
        question = _narrowed(graph, probe, probe.fact, number, phrases, seed)
        if question and similarity(question, probe.goal) < SIMILAR:
            numbers.append(number)
    return numbers[:count]


def _narrowed(graph: FactGraph, probe: Probe, fact: AuditFact, number: int, phrases: Phrases, seed: int) -> str:
    """One narrowing question about a fact, or nothing where it would hold an answer."""
    template, other = phrases.narrow[number], ""
    if "{other}" in template:
        others = [f.object for f in graph.same_kind(fact.relation) if words(f.object) != words(fact.object)]
        if not others:
            return ""
        other = others[int(draw_for(seed, fact, "narrow").integers(len(others)))]
    question = _filled(template, fact, other=other)
    return "" if holds(question, (*probe.hidden, *fact.names)) else question


def _elsewhere(
    graph: FactGraph, probe: Probe, about: Sequence[AuditFact], numbers: Sequence[int], phrases: Phrases, seed: int
) -> list[str]:
    """The steps of the chain, asked about another subject that was kept: the farthest that has all facts for them."""
    fact = probe.fact
    taken = {fact.subject, *(other.subject for other in about)}
    order = list(dict.fromkeys(f.subject for f in graph.retained if f.subject not in taken))
    order = [order[i] for i in draw_for(seed, fact, "elsewhere").permutation(len(order))]
    order.sort(key=lambda s: (s in fact.neighbours, -max(f.distance for f in graph.of(s))))
    for subject in order:
        goal = graph.get(subject, fact.relation) if numbers else None
        usable = [f for f in _like(graph, subject, about) if f.distance and _speakable(f, probe, phrases)]
        if len(usable) < len(about) or (numbers and (goal is None or not _speakable(goal, probe, phrases))):
            continue
        narrowed = [_narrowed(graph, probe, goal, n, phrases, seed) for n in numbers if goal is not None]
        if all(narrowed):
            return _worded(usable, phrases) + narrowed
    return []


def _like(graph: FactGraph, subject: str, about: Sequence[AuditFact]) -> list[AuditFact]:
    """Kept facts about another subject: of the same relations, or others that are known by their question too."""
    asked = iter([f for f in graph.of(subject) if not f.relation and f.distance])
    found = (graph.get(subject, a.relation) if a.relation else next(asked, None) for a in about)
    return [f for f in found if f is not None]
