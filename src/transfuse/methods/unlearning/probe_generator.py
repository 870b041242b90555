"""Questions that another language model proposes, taken only as far as the guards let them.

The generator is any callable from a request to a text. It is never told the answer, it should send JSON, and whatever
it sends is judged by the same rules as the templates; what they reject is counted by reason.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from transfuse.methods.unlearning.audit_facts import AuditFact, FactGraph
from transfuse.methods.unlearning.fact_chains import SIMILAR, Category, Probe, Probes, holds, similarity, violations
from transfuse.methods.unlearning.probe_phrases import ENGLISH, Phrases

Generator = Callable[[str], str]
LONGEST = 500  # characters of a question
_MEANING = {
    "direct": "names the subject and asks for the relation, in any wording",
    "indirect": "asks for the same thing without that phrasing: by a description of the subject or another fact",
    "implied": "never asks for it; a task whose right completion needs it, such as comparing or continuing a story",
}


def request(graph: FactGraph, fact: AuditFact, category: Category, count: int) -> str:
    """What the generator is told: the fact without its object, what else is known nearby, and what to write."""
    near = [f for f in graph.of(fact.subject) if f != fact and f.distance]
    near += [f for name in fact.neighbours for f in graph.of(name) if f.distance]
    known = [_stated(f, f.object) for f in near if not holds(f.object, fact.names)]
    answer = ', "answer": ...' if category == "implied" else ""
    return "\n".join([
        _stated(fact, "(withheld)"),
        *known[:8],
        f"Write {count} different questions, each of which {_MEANING[category]}.",
        "The withheld answer must not occur in them, under any name, and each must have one right answer.",
        f'Reply with a JSON list only: [{{"question": ...{answer}}}, ...]',
    ])  # fmt: skip


def _stated(fact: AuditFact, answer: str) -> str:
    return f"The {fact.relation} of {fact.subject} is {answer}." if fact.relation else f"{fact.question} {answer}."


def propose(
    generator: Generator,
    graph: FactGraph,
    fact: AuditFact,
    categories: Sequence[Category],
    count: int,
    phrases: Phrases = ENGLISH,
) -> Probes:
    """Ask for questions and keep what the guards pass.

    Rules cannot tell whether a free text has one right answer; that is left to the generator's word.
    """
    kept: list[Probe] = []
    rejected: Counter[str] = Counter()
    for category in categories:
        entries = _entries(generator(request(graph, fact, category, count)))
        if entries is None:
            rejected["not a JSON list of questions"] += 1
            continue
        for number, entry in enumerate(entries[: 4 * count]):
            probe = _probe(graph, fact, category, number, entry)
            reasons = _reasons(probe, entry, phrases) if probe else ["not a question"]
            if probe and not reasons:
                kept.append(probe)
            rejected.update(reasons)
    return Probes(tuple(kept), rejected)


def _entries(text: str) -> list[Any] | None:
    """The first JSON list in a reply, with or without a fence or words around it."""
    for start in [match.start() for match in re.finditer(r"\[", text)][:20]:  # words before it may hold brackets
        try:
            found, _ = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        return found if isinstance(found, list) else None
    return None


def _probe(graph: FactGraph, fact: AuditFact, category: Category, number: int, entry: Any) -> Probe | None:
    question = entry.get("question") if isinstance(entry, dict) else entry
    if not isinstance(question, str) or not question.strip() or len(question) > LONGEST:
        return None
    question = re.sub(r"\s+", " ", question).strip()
    others = [f for f in graph.of(fact.subject) if f != fact and f.distance == 0]
    uses = (fact, *(f for f in others if holds(question, f.names)))  # a forgotten fact that it builds on is a hop more
    name = f"generator/{category}/{number}"
    if category != "implied":
        return Probe(fact, category, name, question, fact.names, fact.kind, fact.names, uses)
    answer = entry.get("answer") if isinstance(entry, dict) else None
    if not isinstance(answer, str) or not re.search(r"\w", answer) or len(answer) > LONGEST:
        return None
    options = ("yes", "no") if answer.strip(" .").lower() in ("yes", "no") else ()
    return Probe(fact, category, name, question, (answer,), "", fact.names, uses, options)


def _reasons(probe: Probe, entry: Any, phrases: Phrases) -> list[str]:
    found = violations(probe)
    named = holds(probe.goal, (probe.fact.subject,))
    if probe.category == "direct" and not named:
        found.append("does not name the subject")
    if probe.category == "indirect":
        plain = [t.replace("{relation}", probe.fact.relation).replace("{subject}", probe.fact.subject)
                 for t in phrases.direct]  # fmt: skip
        if any(similarity(probe.goal, text) >= SIMILAR for text in plain):
            found.append("is the direct question")
    if probe.category == "implied" and not probe.options and holds(probe.goal, probe.key) and " or " not in probe.goal:
        found.append("holds the answer")
    return found
