"""Content filters on conversations made for them, thresholds against the false-alarm rate that they promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from transfuse.data.attribute_table import AttributeTable
from transfuse.errors import UserError
from transfuse.methods.unlearning.concepts import Concepts
from transfuse.methods.unlearning.content_filters import (
    ClassifierFilter,
    ClosureFilter,
    SimilarityFilter,
    TermFilter,
    guarded,
    said,
    threshold_at,
)
from transfuse.methods.unlearning.context_ladder import Wording, build_contexts
from transfuse.methods.unlearning.filter_rates import area, filter_rates
from transfuse.methods.unlearning.ladder_replies import LadderReplies, questions_of

TABLE = AttributeTable(
    objects={
        "tiger": frozenset({"big", "striped", "fierce"}),
        "zebra": frozenset({"big", "striped"}),
        "kitten": frozenset({"soft"}),
        "ox": frozenset({"big", "horned"}),
        "toad": frozenset(),
    },
    axioms=("big", "striped", "fierce", "soft", "horned"),
    rules=(("feared", ("big", "fierce")), ("hunted", ("striped", "not soft"))),
    synonyms={"big": "huge", "striped": "banded"},
)
TIGERS = Concepts(TABLE, ("tiger",), {"tiger": ("Panthera tigris",)})


def talk(*turns: str) -> list[dict[str, str]]:
    return [said(turn) for turn in turns]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Tell me about TIGERS, no: the tiger.", True),
        ("t-i-g-e-r", True),
        ("T I G E R!", True),
        ("a tígér", True),
        ("panthera\ntigris", True),
        ("pantheratigris", True),
        ("tigers", False),
        ("Antiger", False),
        ("ti ge", False),
        ("", False),
    ],
)
def test_terms_are_found_however_they_are_spelled(text: str, found: bool) -> None:
    terms = TermFilter(["Tiger", "Panthera tigris"])
    assert terms.scores([talk("hello", text)]).tolist() == [float(found)]


def test_replies_can_be_read_alone() -> None:
    replies = TermFilter(["tiger"], roles=("assistant",))
    asked = talk("What is a tiger?")
    assert replies.scores([asked, [*asked, said("A tiger is big.", "assistant")]]).tolist() == [0.0, 1.0]
    with pytest.raises(UserError, match="no terms"):
        TermFilter([" "])


def test_likeness_of_a_description_is_one_wherever_it_stands() -> None:
    described = ["tiger is big and striped"]
    like = SimilarityFilter(described)
    scores = like.scores([talk("hello", *described), talk("tiger is big", "and striped"), talk("the train was late")])
    assert scores[0] == pytest.approx(1.0)
    assert scores[1] > 0.9 > 0.3 > scores[2]  # the pieces meet in the whole conversation


def test_any_encoder_can_be_given() -> None:
    counts = SimilarityFilter(["ab"], encode=lambda texts: [[t.count("a"), t.count("b"), t.count("c")] for t in texts])
    assert counts.scores([talk("ba"), talk("c"), talk("a")]) == pytest.approx([1.0, 0.0, math.sqrt(0.5)])


def test_a_classifier_learns_what_it_is_shown() -> None:
    bad = [talk(f"the {x} one is striped and fierce") for x in "abcdef"]
    good = [talk(f"the {x} one is soft and horned") for x in "abcdef"]
    scores = ClassifierFilter(bad, good).scores([talk("it is striped and fierce"), talk("it is soft and horned")])
    assert scores[0] > 0 > scores[1]


def brute(known: set[str], name: str) -> float:
    own = TIGERS.axioms(name)
    agree = sum(atom in known for atom in own)
    against = sum((atom[4:] if atom.startswith("not ") else f"not {atom}") in known for atom in own)
    return (agree - against) / len(own)


@pytest.mark.parametrize("signs", itertools.product((None, True, False), repeat=5))
def test_completeness_counts_agreeing_and_opposite_facts(signs: tuple[bool | None, ...]) -> None:
    known = {
        axiom if sign else f"not {axiom}" for axiom, sign in zip(TABLE.axioms, signs, strict=True) if sign is not None
    }
    text = "It is " + ", ".join(sorted(known))
    assert ClosureFilter(TIGERS).scores([talk(text)])[0] == pytest.approx(max(brute(known, "tiger"), -1.0))


def test_pieces_add_up_over_messages_names_and_synonyms() -> None:
    watch = ClosureFilter(TIGERS).watch()
    turns = ("It is huge.", "Nice weather.", "It is banded and fierce, not soft.", "And not horned. Call it wug.")
    assert [watch.hear(turn) for turn in turns] == pytest.approx([0.2, 0.2, 0.8, 1.0])
    by_rule = ClosureFilter(TIGERS, identifying={"tiger": [("feared", "striped")]})
    assert by_rule.scores([talk("big and fierce"), talk("big, fierce, striped"), talk("striped")]) == pytest.approx(
        [0.5, 1.0, 0.5]
    )  # "feared" is derived, never said


def test_an_extractor_can_tell_entities_apart() -> None:
    def extract(text: str) -> list[tuple[str, str]]:
        return [tuple(pair.split(":")) for pair in text.split(";")]  # type: ignore[misc]

    apart = ClosureFilter(TIGERS, extract, identifying={"tiger": [("big", "fierce")]})
    assert apart.scores([talk("a:big;b:fierce"), talk("a:big;a:fierce")]).tolist() == [0.5, 1.0]


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_thresholds_keep_their_promise(rate: float) -> None:
    rng = np.random.default_rng(0)
    alarms = [float((rng.normal(size=50) > threshold_at(rng.normal(size=39), rate)).mean()) for _ in range(800)]
    assert np.mean(alarms) == pytest.approx(rate, abs=0.012)  # 39 + 1 scores: all three rates are met exactly


def test_too_few_benign_conversations_block_nothing() -> None:
    assert threshold_at([0.1] * 18, 0.05) == math.inf
    assert threshold_at([0.1] * 19, 0.05) == 0.1
    with pytest.raises(UserError, match="rate 0"):
        threshold_at([1.0], 0.0)


def test_area_is_the_share_of_pairs() -> None:
    rng = np.random.default_rng(0)
    high, low = rng.integers(0, 5, 30), rng.integers(0, 4, 20)
    pairs = [(a > b) + 0.5 * (a == b) for a in high for b in low]
    assert area(high, low) == pytest.approx(np.mean(pairs))


def test_rates_on_an_attack() -> None:
    rungs = build_contexts(TIGERS, ("none", "definition", "alias"), names=["wug"], draws=1)
    asked = questions_of(rungs)
    conversations = [rungs[one.rung].messages(one.theorem, Wording()) for one in asked]
    replies = LadderReplies(asked, np.array([int(one.truth) for one in asked]))  # all right
    rates = filter_rates(TermFilter(["tiger"]), conversations, replies, [talk(f"hello {i}") for i in range(40)], 0.05)
    assert rates.caught == {"none": 1.0, "definition": 1.0, "alias": 0.0}
    assert rates.residual == {"none": 0.0, "definition": 0.0, "alias": 1.0}
    assert rates.auc == {"none": 1.0, "definition": 1.0, "alias": 0.5}
    assert (rates.false_alarms, rates.benign) == (0.0, 20)
    with pytest.raises(UserError, match="benign"):
        filter_rates(TermFilter(["tiger"]), conversations, replies, [], 0.05)


def test_a_guard_refuses_questions_and_replies() -> None:
    calls: list[str] = []

    def ask(messages: list[dict[str, str]]) -> str:
        calls.append(messages[-1]["content"])
        return "It is a tiger." if "stripes" in messages[-1]["content"] else "Hello."

    safe = guarded(ask, [(TermFilter(["tiger"]), 0.0)], refusal="No.")
    assert [safe(talk(t)) for t in ("hi", "a tiger?", "what has stripes?")] == ["Hello.", "No.", "No."]
    assert calls == ["hi", "what has stripes?"]  # a refused question costs no reply
