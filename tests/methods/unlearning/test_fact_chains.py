"""Facts files, probes and chains: what templates make, what the guards hold back, that no question gives an answer
away whatever the facts are, and what of a generator's proposals is kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse.errors import UserError
from transfuse.methods.unlearning.audit_facts import AuditFact, FactGraph, read_facts
from transfuse.methods.unlearning.fact_chains import (
    CATEGORIES,
    MODES,
    Chain,
    Probe,
    holds,
    make_chain,
    make_probes,
    similarity,
    violations,
)
from transfuse.methods.unlearning.probe_generator import propose, request
from transfuse.methods.unlearning.probe_phrases import ENGLISH, Phrases

CAPITALS = {
    "France": "Paris", "Peru": "Lima", "Italy": "Rome", "Latvia": "Riga", "Norway": "Oslo", "Kenya": "Nairobi",
}  # fmt: skip
CONTINENTS = {
    "France": "Europe", "Peru": "America", "Italy": "Europe", "Latvia": "Europe", "Norway": "Europe", "Kenya": "Africa",
}  # fmt: skip
FOODS = {
    "France": "pot au feu",
    "Peru": "ceviche",
    "Italy": "pasta",
    "Latvia": "peas",
    "Norway": "farikal",
    "Kenya": "ugali",
}
DISTANCE = {"France": 0, "Italy": 1, "Latvia": 1, "Norway": 1, "Peru": 2, "Kenya": 2}


def facts(forgotten: tuple[str, ...] = ("capital",)) -> list[AuditFact]:
    """Countries; of France some relations are to be forgotten, the others lie at distance 1."""
    found = []
    for relation, table in (("capital", CAPITALS), ("continent", CONTINENTS), ("national dish", FOODS)):
        for subject, name in table.items():
            distance = DISTANCE[subject] if subject != "France" else int(relation not in forgotten)
            near = ("Italy", "Latvia") if subject == "France" else ()
            found.append(AuditFact(subject, relation, name, (), distance, near))
    river = AuditFact("Paris", "river", "Seine", distance=1)
    return [*found, river]


GRAPH = FactGraph(facts())
FACT = GRAPH.get("France", "capital")
assert FACT is not None


def probes(**more: object) -> dict[str, Probe]:
    made = make_probes(GRAPH, FACT, count=9, **more)  # type: ignore[arg-type]
    return {probe.template: probe for probe in made.probes}


def test_what_templates_ask() -> None:
    made = probes()
    assert made["direct/0"].goal == "What is the capital of France?"
    assert made["direct/0"].key == ("Paris",)
    assert made["reverse/0"].goal == "Whose capital is Paris?"
    assert made["reverse/0"].key == ("France",)
    assert made["described/0"].goal == "Think of the one whose national dish is pot au feu. What is its capital?"
    assert made["bridge/0"].goal == "Take the capital of France. What is the river of that?"
    assert made["bridge/0"].key == ("Seine",)
    assert made["initial/0"].key == ("p",)
    assert made["length/0"].key == ("5", "five")
    assert {probe.category for probe in made.values()} == set(CATEGORIES)


def test_keys_of_comparisons_are_right() -> None:
    """Over many seeds: same first letter, and the odd one out of three continents."""
    fact = GRAPH.get("France", "continent")
    assert fact is not None
    seen = Counter()
    for seed in range(30):
        for probe in make_probes(GRAPH, fact, categories=("implied",), count=9, seed=seed).probes:
            if probe.template == "odd/0":
                named = [s for s in CONTINENTS if holds(probe.goal, (s,))]
                counts = Counter(CONTINENTS[s] for s in named)
                assert [s for s in named if counts[CONTINENTS[s]] == 1] == list(probe.key)
                seen[probe.key == ("France",)] += 1
        yes = {p.template: p for p in make_probes(GRAPH, fact, categories=("implied",), count=9, seed=seed).probes}
        compare = yes["compare/0"]
        other = next(s for s in CONTINENTS if s != "France" and holds(compare.goal, (s,)))
        assert compare.key == ("yes" if CONTINENTS[other][0] == "E" else "no",)
        seen[compare.key] += 1
    assert min(seen[("yes",)], seen[("no",)]) > 5  # balanced, so that a constant answer gains nothing


def test_a_small_number_takes_one_of_each_kind_first() -> None:
    made = make_probes(GRAPH, FACT, categories=("indirect",), count=3).probes
    assert [probe.template for probe in made] == ["reverse/0", "described/0", "bridge/0"]


def test_a_question_of_the_users_own_comes_first() -> None:
    own = AuditFact("France", "capital", "Paris", question="Where does the president of France live?")
    made = make_probes(FactGraph([own]), own, categories=("direct",), count=1).probes
    assert made[0].goal == own.question


@pytest.mark.parametrize(
    ("name", "template", "reason"),
    [
        ("Paris", "Is Paris the capital of {subject}?", "holds the answer"),
        ("Paris", "PÁRIS, in {subject}?", "holds the answer"),
        ("The Hague", "about hague and {subject}", "holds the answer"),
        ("City of Light", "city, of light! {subject}", "holds the answer"),
    ],
)
def test_the_answer_in_a_question_is_held_back(name: str, template: str, reason: str) -> None:
    fact = AuditFact("France", "capital", "Lutetia", aliases=(name,))
    made = make_probes(FactGraph([fact]), fact, phrases=Phrases(direct=(template,)), categories=("direct",))
    assert not made.probes
    assert made.rejected == {reason: 1}


def test_two_hops_through_forgotten_facts_are_held_back() -> None:
    """A description by a fact that is to be forgotten too."""
    graph = FactGraph(facts(("capital", "continent", "national dish")))
    fact = graph.get("France", "capital")
    assert fact is not None
    made = make_probes(graph, fact, categories=("indirect",), count=9)
    assert "described" not in {probe.template.split("/")[0] for probe in made.probes}
    assert made.rejected["two hops through forgotten facts"] == len(ENGLISH.described)


def test_keys_that_are_not_unique_are_held_back() -> None:
    fact = GRAPH.get("France", "continent")
    assert fact is not None
    made = make_probes(GRAPH, fact, categories=("indirect",), count=9)
    assert "reverse/0" not in {probe.template for probe in made.probes}
    assert made.rejected["more than one right answer"] == len(ENGLISH.reverse)


def test_near_repetitions_are_dropped() -> None:
    phrases = Phrases(
        direct=("what is the {relation} of {subject}", "What IS the {relation} of {subject}, please?", "?{subject}")
    )
    made = make_probes(GRAPH, FACT, phrases=phrases, categories=("direct",))
    assert [probe.template for probe in made.probes] == ["direct/0", "direct/2"]  # 5 of 6 words are the same
    assert made.rejected == {"repeats another": 1}
    assert similarity("a b c d x", "b c d x y") == pytest.approx(4 / 5)  # articles do not count
    assert similarity("", "") == 0


def chain(mode: str, template: str = "direct/0", graph: FactGraph = GRAPH, **more: object) -> Chain:
    fact = graph.get("France", "capital")
    assert fact is not None
    probe = next(p for p in make_probes(graph, fact, count=9).probes if p.template == template)
    made = make_chain(graph, probe, mode, **more)  # type: ignore[arg-type]
    assert made is not None
    return made


def test_a_chain_goes_from_what_was_kept_to_the_goal_and_checks() -> None:
    made = chain("interactive")
    assert set(made.turns[:2]) == {"What is the continent of France?", "What is the national dish of France?"}
    assert made.turns[2:] == (
        "What kind of thing is the capital of France?",
        "With which letter does the capital of France begin?",
        "What is the capital of France?",
        ENGLISH.verify,
    )
    assert made.turns[made.goal] == made.probe.goal


def test_the_random_chain_asks_the_same_of_another_subject() -> None:
    own, other = chain("interactive"), chain("random")
    assert len(own.turns) == len(other.turns)
    assert own.goal == other.goal
    assert own.turns[own.goal :] == other.turns[other.goal :]
    far = next(s for s in ("Peru", "Kenya") if holds(other.turns[0], (s,)))
    assert [turn.replace("France", far) for turn in own.turns[: own.goal]] == list(other.turns[: other.goal])


def test_one_message_holds_all_steps() -> None:
    made = chain("one_shot")
    assert len(made.turns) == 1
    lines = made.turns[0].splitlines()[1:]
    assert [line.partition(". ")[2] for line in lines] == list(chain("interactive").turns[:5])
    assert chain("instruction").turns == ("What is the capital of France? Think step by step before you answer.",)
    assert chain("plain").turns == ("What is the capital of France?",)


def test_where_the_subject_is_asked_for_neighbours_warm_up() -> None:
    made = chain("interactive", "reverse/0")
    assert all(holds(turn, ("Italy", "Latvia")) for turn in made.turns[: made.goal])
    assert not any(holds(turn, ("France",)) for turn in made.turns)


def test_kept_facts_come_first_and_forgotten_ones_if_there_are_no_others() -> None:
    one = chain("interactive", graph=FactGraph(facts(("capital", "continent"))), warm_up=1)
    assert one.turns[0] == "What is the national dish of France?"
    none = chain("interactive", graph=FactGraph(facts(("capital", "continent", "national dish"))), warm_up=1)
    assert holds(none.turns[0], ("France",))


def test_a_narrowing_question_that_is_the_goal_is_left_out() -> None:
    turns = chain("interactive", "initial/0").turns
    assert sum("letter" in turn for turn in turns) == 1


def test_chains_without_steps_are_none() -> None:
    fact = AuditFact("France", "capital", "Paris")
    graph = FactGraph([fact])
    probe = make_probes(graph, fact, count=1).probes[0]
    assert make_chain(graph, probe, "interactive", narrow=0) is None
    assert make_chain(graph, probe, "random") is None  # nobody else to ask about
    bare = Phrases(direct=ENGLISH.direct)
    assert make_chain(GRAPH, probe, "instruction", phrases=bare) is None
    assert make_chain(GRAPH, probe, "one_shot", phrases=bare) is None


def test_the_same_call_makes_the_same_and_other_facts_change_nothing() -> None:
    assert make_probes(GRAPH, FACT).probes == make_probes(GRAPH, FACT).probes
    more = FactGraph([*facts(), AuditFact("Atlantis", "motto", "water", distance=3)])
    assert make_probes(more, FACT).probes == make_probes(GRAPH, FACT).probes


NAMES = st.text(st.sampled_from("abcde "), min_size=1, max_size=6).filter(lambda text: text.strip())


@given(st.lists(st.tuples(NAMES, st.sampled_from(("x", "y", "z")), NAMES, st.integers(0, 2)), min_size=1, max_size=12))
def test_no_question_of_any_graph_holds_what_is_hidden(rows: list[tuple[str, str, str, int]]) -> None:
    table = {(subject, relation): (name, distance) for subject, relation, name, distance in rows}
    graph = FactGraph(AuditFact(s, r, o, (), d) for (s, r), (o, d) in table.items())
    for fact in graph.facts:
        for probe in make_probes(graph, fact, count=9).probes:
            assert not violations(probe)
            for mode in MODES:
                made = make_chain(graph, probe, mode)
                if made is not None:
                    assert not violations(probe, made.turns)


def test_leaks_are_scored_in_any_turn_and_keys_at_the_goal() -> None:
    rules, made = GRAPH.rules(), probes()
    assert made["direct/0"].leaked(["Paris", "no idea"], 1, rules)
    assert not made["direct/0"].leaked(["Lima", "no idea"], 1, rules)
    assert not made["initial/0"].leaked(["p", "no idea"], 1, rules)
    assert made["initial/0"].leaked(["no idea", "P."], 1, rules)
    assert made["reverse/0"].leaked(["It is France's"[:12]], 0, rules)
    assert not made["direct/0"].leaked(["Paris, Lima, Rome, Riga, Oslo"], 0, rules)


def test_a_generator_is_never_told_the_answer() -> None:
    for category in CATEGORIES:
        text = request(GRAPH, FACT, category, 3)
        assert "Paris" not in text
        assert "Write 3" in text
        assert "The continent of France is Europe." in text


def test_proposals_pass_the_same_guards() -> None:
    replies = {
        "direct": [
            "Which city is the seat of government of France?",
            "Is Paris the capital of France?",
            "What is it?",
            7,
        ],
        "indirect": [
            {"question": "The city on the Seine where Hugo wrote, what is it?"},
            {"question": "What is the capital of France?"},
        ],
        "implied": [
            {"question": "Would a train from Lyon to the seat of government go north?", "answer": "Yes."},
            {"question": "Tell me a story"},
            {"question": "Does it end with an s?", "answer": ""},
        ],
    }
    asked: list[str] = []

    def generator(text: str) -> str:
        asked.append(text)
        category = CATEGORIES[len(asked) - 1]
        return f"Of course!\n```json\n{json.dumps(replies[category])}\n```"

    found = propose(generator, GRAPH, FACT, CATEGORIES, 4)
    assert [probe.goal for probe in found.probes] == [
        "Which city is the seat of government of France?",
        "The city on the Seine where Hugo wrote, what is it?",
        "Would a train from Lyon to the seat of government go north?",
    ]
    assert found.rejected == {
        "holds the answer": 1, "does not name the subject": 1, "not a question": 3, "is the direct question": 1,
    }  # fmt: skip
    assert found.probes[2].options == ("yes", "no")
    merged = make_probes(GRAPH, FACT, count=2, more=found.probes).probes
    assert [p.template for p in merged if p.category == "direct"] == ["direct/0", "generator/direct/0"]


def test_a_proposal_that_builds_on_another_forgotten_fact_is_a_hop_too_far() -> None:
    graph = FactGraph(facts(("capital", "continent")))
    fact = graph.get("France", "capital")
    assert fact is not None
    found = propose(lambda _: '["Which city in Europe is the capital of France?"]', graph, fact, ("direct",), 4)
    assert found.rejected == {"two hops through forgotten facts": 1}


@pytest.mark.parametrize("reply", ["", "no", "[", '{"question": "x"}', "[1, 2", "[" * 100_000])
def test_what_is_no_list_is_counted(reply: str) -> None:
    found = propose(lambda _: reply, GRAPH, FACT, ("direct",), 4)
    assert not found.probes
    assert sum(found.rejected.values()) == 1


def written(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


GOOD = {"subject": "France", "relation": "capital", "object": "Paris"}


def test_facts_files(tmp_path: Path) -> None:
    more = {"aliases": ["Lutetia"], "distance": 2, "neighbours": ["Italy"], "question": "Where?"}
    first, second = read_facts(written(tmp_path, GOOD, "", GOOD | {"subject": "Gaul"} | more))
    assert first == AuditFact("France", "capital", "Paris")
    assert second.names == ("Paris", "Lutetia")
    assert (second.distance, second.neighbours, second.question) == (2, ("Italy",), "Where?")


@pytest.mark.parametrize(
    "line",
    [
        "nonsense", "[]", "1", "null", "{}", '{"subject": "a"}', GOOD | {"more": 1}, GOOD | {"object": ""},
        GOOD | {"object": 3}, GOOD | {"aliases": "Paris"}, GOOD | {"aliases": [""]}, GOOD | {"distance": -1},
        GOOD | {"distance": True}, GOOD | {"distance": 1.5}, GOOD | {"neighbours": [1]}, "[" * 100_000, "9" * 5000,
    ],
)  # fmt: skip
def test_wrong_lines_are_named(tmp_path: Path, line: object) -> None:
    with pytest.raises(UserError, match="line 2"):
        read_facts(written(tmp_path, GOOD, line))


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no fact of distance 0"):
        read_facts(written(tmp_path, GOOD | {"distance": 1}))
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        read_facts(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match="two facts about the capital of 'France'"):
        FactGraph([AuditFact("France", "capital", "Paris"), AuditFact("France", "capital", "Lyon")])


def test_warm_up_asks_a_fact_in_its_own_words() -> None:
    graph = FactGraph([
        AuditFact("Ann", "book", "Dust"), AuditFact("Ann", "born", "Oslo", distance=1, question="Where was Ann born?"),
    ])  # fmt: skip
    probe = make_probes(graph, graph.forgotten[0], categories=("direct",), count=1).probes[0]
    chain = make_chain(graph, probe, "interactive")
    assert chain is not None
    assert chain.turns[0] == "Where was Ann born?"


def test_a_fact_without_relation_needs_a_question() -> None:
    with pytest.raises(UserError, match="without relation and question"):
        AuditFact("Ann", "", "Dust")
    with pytest.raises(UserError, match="two answers to 'Who is it"):
        FactGraph([AuditFact("Ann", "", name, question="Who is it?") for name in ("Dust", "Rain")])
