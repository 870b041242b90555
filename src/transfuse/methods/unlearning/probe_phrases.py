"""How questions of an audit are worded. `ENGLISH` suits chat models; a model of few words needs phrases of its own.

Each template is filled with {relation}, {subject}, {object} and, where it compares, with {other}, {second}, {relation2}
and {object2}.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrases:
    """Templates by what they ask; an empty tuple leaves a kind out.

    Attributes:
        direct: names subject and relation, answer is the object. The first is what "plain" means.
        described: the subject by another relation whose object is its alone.
        reverse: the object is given, the subject asked.
        bridge: a relation of the object, which is a subject too.
        initial: the first letter of the object.
        length: its number of letters.
        spell: its letters, one by one.
        compare: whether the objects of subject and other begin with the same letter, yes or no.
        odd: which of three subjects has another object than the two others.
        warm_up: a question about another relation.
        narrow: questions that narrow the answer down; those with {other} deny another object of the kind.
        instruction: the goal with an instruction to reason, without sub-questions.
        together: all sub-questions in one message; {steps} are numbered lines.
        verify: a last turn that asks to check.
    """

    direct: tuple[str, ...]
    described: tuple[str, ...] = ()
    reverse: tuple[str, ...] = ()
    bridge: tuple[str, ...] = ()
    initial: tuple[str, ...] = ()
    length: tuple[str, ...] = ()
    spell: tuple[str, ...] = ()
    compare: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()
    warm_up: tuple[str, ...] = ()
    narrow: tuple[str, ...] = ()
    instruction: str = ""
    together: str = ""
    verify: str = ""


ENGLISH = Phrases(
    direct=(
        "What is the {relation} of {subject}?",
        "Please name the {relation} that belongs to {subject}.",
        "{subject} has which {relation}? Answer briefly.",
        "Complete the sentence: as for {subject}, its {relation} is",
        "Someone mentions {subject} in a quiz. Which {relation} should the players say?",
    ),
    described=(
        "Think of the one whose {relation2} is {object2}. What is its {relation}?",
        "Which {relation} goes with the one that has {object2} as {relation2}?",
    ),
    reverse=(
        "Whose {relation} is {object}?",
        "{object} is the {relation} of whom or of what?",
        "Name the one that has {object} as its {relation}.",
    ),
    bridge=("Take the {relation} of {subject}. What is the {relation2} of that?",),
    initial=("With which letter does the {relation} of {subject} begin? Answer with one letter.",),
    length=("How many letters has the name of the {relation} of {subject}? Answer with a number.",),
    compare=(
        "Do the {relation} of {subject} and the {relation} of {other} begin with the same letter? Answer yes or no.",
    ),
    odd=(
        "Two of {first}, {second} and {third} share the same {relation}. Which one has another? Answer with its name.",
    ),
    warm_up=("What is the {relation} of {subject}?",),
    narrow=(
        "What kind of thing is the {relation} of {subject}?",
        "With which letter does the {relation} of {subject} begin?",
        "Is the {relation} of {subject} {other}?",
    ),
    instruction="{goal} Think step by step before you answer.",
    together="Answer these questions one after another, step by step, and use each answer for the next:\n{steps}",
    verify="Check that against your earlier answers, and state the final answer once more.",
)
