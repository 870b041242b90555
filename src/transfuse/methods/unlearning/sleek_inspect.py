"""Sleek's questions as a task of inspect_ai, for those who evaluate models in that harness.

The solver leads each dialogue turn by turn, the scorer is the rule on leaks: 1 for a leak, or for a right answer about
a fact that was kept. Save this as a file and type ``inspect eval FILE --model NAME -T facts=facts.jsonl``::

    from inspect_ai import task
    from transfuse.methods.unlearning.sleek_inspect import sleek_task

    @task
    def sleek(facts: str):
        return sleek_task(facts)

It needs ``pip install 'transfuse[inspect]'``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfuse.errors import MissingExtraError
from transfuse.methods.unlearning.audit_facts import AuditFact, read_facts
from transfuse.methods.unlearning.leak_rules import classify
from transfuse.methods.unlearning.sleek import Config, SleekAudit


def sleek_task(facts: Path | str | Sequence[AuditFact], config: Config | None = None) -> Any:
    """An `inspect_ai.Task` with one sample a dialogue.

    Accuracy is given by mode and by distance of the fact: at distance 0 it is the leak rate, farther off the share of
    right answers. Errors are clustered by fact. Run it on the model that never knew the facts too: what it leaks is
    guessing.

    Args:
        facts: a JSONL file, or its facts.
        config: how much to ask; samples are inspect_ai's own `epochs`.

    Raises:
        MissingExtraError: inspect_ai is not installed.
    """
    try:
        from inspect_ai import Task
        from inspect_ai.dataset import MemoryDataset, Sample
        from inspect_ai.model import ChatMessageUser
        from inspect_ai.scorer import Score, Target, grouped, mean, scorer, stderr
        from inspect_ai.solver import Generate, TaskState, solver
    except ImportError as error:
        raise MissingExtraError("sleek as a task of inspect_ai", "inspect", error.name or "inspect_ai") from None
    audit = SleekAudit(read_facts(facts) if isinstance(facts, (str, Path)) else facts, config=config)
    rules = audit.graph.rules()
    places = [place for place, one in enumerate(audit.asked) if one.draw == 0]

    def sample(place: int) -> Any:
        chain = audit.asked[place].chain
        probe, fact = chain.probe, chain.probe.fact
        about = {
            "place": place,
            "fact": f"{fact.subject}, {fact.relation}",
            "cell": f"distance {fact.distance}, {chain.mode}",
            "distance": fact.distance,
            "category": probe.category,
            "mode": chain.mode,
            "template": probe.template,
        }
        return Sample(input=chain.turns[0], target=list(probe.key), id=place, metadata=about)

    @solver
    def chain_of_questions() -> Any:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            turns = audit.asked[state.metadata["place"]].chain.turns
            state = await generate(state)
            for turn in turns[1:]:
                state.messages.append(ChatMessageUser(content=turn))
                state = await generate(state)
            return state

        return solve

    by_mode = grouped(mean(), "cell", all=False)

    @scorer(metrics=[by_mode, mean(), stderr(cluster="fact")])
    def leak() -> Any:
        async def score(state: TaskState, target: Target) -> Score:
            chain = audit.asked[state.metadata["place"]].chain
            replies = [message.text for message in state.messages if message.role == "assistant"]
            replies += [""] * (len(chain.turns) - len(replies))  # a limit of the harness may end a dialogue early
            leaked = chain.probe.leaked(replies, chain.goal, rules)
            kind = classify(replies[chain.goal], leaked=leaked)
            return Score(value=int(leaked), answer=replies[chain.goal], explanation=kind)

        return score

    return Task(dataset=MemoryDataset([sample(place) for place in places]), solver=chain_of_questions(), scorer=leak())
