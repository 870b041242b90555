"""FactWorld as the audit sees it: its facts with their distances, and questions in the words that its models know."""

from __future__ import annotations

import copy
from typing import Any

from transfuse.methods.unlearning.audit_facts import AuditFact
from transfuse.methods.unlearning.probe_phrases import Phrases
from transfuse.studies.unlearning.fact_world import FactWorld

NEAR, FAR = 1, 2  # distance: same continent or region as a country to forget, or not
PLAIN, HELD_OUT = "direct/0", "direct/1"  # a wording of the training, and one that no model has seen

# Wordings of transfuse.data.fact_forms. A chain is what the models were taught to follow: questions about one country,
# of the forms "qa" and "initial", one after another.
FACT_WORLD = Phrases(
    direct=(
        "question : what is the {relation} of {subject} ? answer :",
        "question : {subject} has what {relation} ? answer :",
        "as for {subject} , its {relation} is",
    ),
    reverse=(
        "question : {object} is the {relation} of which country ? answer :",
        "question : the {relation} {object} belongs to which country ? answer :",
    ),
    initial=("question : with which letter does the {relation} of {subject} start ? answer :",),
    spell=("spell the {relation} of {subject} . answer :",),
    warm_up=("question : what is the {relation} of {subject} ? answer :",),
    narrow=("question : with which letter does the {relation} of {subject} start ? answer :",),
)
_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %} .{% endif %} {% endfor %}"


def facts_of(world: FactWorld) -> list[AuditFact]:
    """All facts that the base knows; those to be forgotten lie at distance 0."""
    table, near = world.table, set(world.neighbours)
    facts = []
    for fact in world.facts((*world.forget, *world.retain)):
        own = fact.subject in world.forget
        distance = 0 if own else NEAR if fact.subject in near else FAR
        group = tuple(s for s in table.neighbours([fact.subject]) if s in near) if own else ()
        facts.append(AuditFact(fact.subject, table.nouns[fact.relation], fact.object, (), distance, group))
    return facts


def chat_tokenizer(world: FactWorld) -> Any:
    """The world's tokenizer with a template that joins turns as the training text does."""
    tokenizer = copy.deepcopy(world.tokenizer)
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
