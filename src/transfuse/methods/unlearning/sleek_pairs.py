"""Sleek for those who have questions with answers instead of a graph of facts.

What a pair says of its subject and relation is used: with both, all templates can be filled in; with a subject, other
pairs about it lead up to the goal; with neither, the question is asked as it stands, in its paraphrases and other
forms, and with an instruction to reason. Pairs to keep serve as warm-up and as a test of what else is gone.

>>> forget = [QARow("What is the capital of France?", "Paris", subject="France", paraphrases=("France is run from?",))]
>>> keep = [QARow("Which river runs through France?", "Loire", subject="France")]
>>> audit = pairs_audit(forget, keep)
>>> [one.chain.turns for one in audit.asked if one.chain.mode == "interactive"][0][:2]
('Which river runs through France?', 'What is the capital of France?')
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transfuse.audit import AuditReport
from transfuse.errors import UserError
from transfuse.methods.unlearning.audit_facts import AuditFact
from transfuse.methods.unlearning.batched_dialogues import BatchedDialogues
from transfuse.methods.unlearning.fact_chains import Category, Probe
from transfuse.methods.unlearning.leak_rules import words
from transfuse.methods.unlearning.qa_file import QARow
from transfuse.methods.unlearning.respondents import Message
from transfuse.methods.unlearning.sleek import Config, SleekAudit
from transfuse.methods.unlearning.sleek_report import report
from transfuse.methods.unlearning.sleek_result import BEFORE, GOLD, MODEL

_TRUTHS = (("yes", "no"), ("true", "false"))


def pairs_audit(forget: Sequence[QARow], retain: Sequence[QARow], config: Config | None = None) -> SleekAudit:
    """The audit whose facts are pairs of question and answer.

    Args:
        forget: what was to be forgotten.
        retain: what was to be kept; a question that is to be forgotten too is left out.
        config: how much to ask.

    Raises:
        UserError: nothing to forget, an answer without a word, or two answers to one question.
    """
    if not forget:
        raise UserError("no pair that was to be forgotten", "at least one")
    rows = [*((row, 0) for row in forget), *((row, 1) for row in retain)]
    answers: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    for row, _ in rows:
        answers.setdefault((row.subject, row.relation), set()).add(tuple(words(row.answer)))
    facts: dict[tuple[str, str], AuditFact] = {}
    probes: list[Probe] = []
    for row, distance in rows:
        # A relation needs its subject, and one answer, to be filled into templates.
        named = bool(row.subject and row.relation) and len(answers[row.subject, row.relation]) == 1
        own = _fact(row, distance, named)
        fact = facts.setdefault((own.subject, own.kind), own)
        if words(fact.object) != words(own.object):
            raise UserError(f"two answers to {row.prompt[:80]!r}", "one answer a question", "leave one of them out")
        if fact.distance == distance:
            probes += _probes(fact, row)
    return SleekAudit(list(facts.values()), config=config, probes=probes)


def _fact(row: QARow, distance: int, named: bool) -> AuditFact:
    if not words(row.answer):
        raise UserError(f"the answer {row.answer[:60]!r} to {row.prompt[:60]!r}", "an answer with a word in it")
    relation = row.relation if named else ""
    return AuditFact(row.subject or row.prompt, relation, row.answer, (), distance, question=row.prompt)


def _probes(fact: AuditFact, row: QARow) -> Iterator[Probe]:
    """What else a pair brings to ask for its fact with."""
    for number, goal in enumerate((row.prompt, *row.paraphrases)):  # what repeats another is left out
        yield Probe(fact, "direct", f"paraphrase/{number}", goal, fact.names, fact.kind, fact.names, (fact,))
    for name, (goal, answer) in row.forms.items():
        if not words(answer, articles=True):
            continue
        asked_for = words(answer) in (words(row.answer), words(row.subject))
        category: Category = "indirect" if asked_for else "implied"  # another answer only follows from the fact
        options = next((pair for pair in _TRUTHS if answer.strip(" .").lower() in pair), ())
        hidden = (answer,) if asked_for else fact.names
        yield Probe(fact, category, f"form/{name}", goal, (answer,), fact.kind, hidden, (fact,), options)


def as_they_are(tokenizer: Any, messages: list[Message]) -> str:
    """Messages without roles: what `encode_answer` trains models on that have no chat template."""
    parts = [message["content"] + ("\n" if message["role"] == "assistant" else " ") for message in messages]
    return "".join(parts).rstrip(" ")


def audit_pairs(
    model: Any,
    tokenizer: Any,
    forget: Sequence[QARow],
    retain: Sequence[QARow],
    *,
    gold: Any = None,
    before: Any = None,
    config: Config | None = None,
    chat: bool | None = None,
    max_new_tokens: int = 32,
    batch: int = 64,
    subject: str = "model",
) -> AuditReport:
    """Ask a transformers model step by step for the answers of pairs, and report what came back and what is gone.

    Args:
        model: the unlearned causal language model.
        tokenizer: of all models.
        forget: what was to be forgotten, see `read_qa`.
        retain: what was to be kept.
        gold: a model that never knew the answers; without it leaks cannot be told from guesses.
        before: the model before unlearning; without it lost knowledge is not counted.
        config: how much to ask.
        chat: whether to ask in the tokenizer's chat template; None does where there is one. Say False of a model that
            was taught the questions without it.
        max_new_tokens: of a reply.
        batch: dialogues at a time.
        subject: what the report calls the model.
    """
    template = bool(getattr(tokenizer, "chat_template", None))
    if chat and not template:
        raise UserError("chat=True and a tokenizer without a chat template", fix="leave chat out for a base model")
    how: dict[str, Any] = {}
    if chat is False or not template:
        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = None
        how = {"render": as_they_are, "stop": ("\n",)}
    audit = pairs_audit(forget, retain, config)
    models: Mapping[str, Any] = {MODEL: model, BEFORE: before, GOLD: gold}
    replies = {
        name: audit.ask_all(BatchedDialogues(one, tokenizer, max_new_tokens=max_new_tokens, batch=batch, **how))
        for name, one in models.items()
        if one is not None
    }
    given = {"pairs to forget": len(forget), "pairs to keep": len(retain), "max_new_tokens": max_new_tokens}
    return report(audit.judge(replies), subject, given | asdict(audit.config))
