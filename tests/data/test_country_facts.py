"""Facts about countries and the forms that ask for them."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from transfuse.data.country_facts import Fact, FactTable, fold, geonames_facts, json_facts
from transfuse.data.fact_forms import FORMS, HELD_OUT, WORDINGS, ask, balanced, can_ask, dialogue
from transfuse.errors import UserError

TABLE = geonames_facts(46)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_real_facts() -> None:
    assert {TABLE.facts[c]["capital"] for c in ("france", "germany", "japan")} == {"paris", "berlin", "tokyo"}
    assert TABLE.facts["france"] == {
        "capital": "paris", "city": "marseille", "code": "33", "currency": "euro", "language": "french",
        "continent": "europe",
    }  # fmt: skip


def test_every_country_has_every_fact_and_repeats_its_name_in_none() -> None:
    assert len(TABLE.subjects) == 46 == len(set(TABLE.subjects))
    for subject, own in TABLE.facts.items():
        assert tuple(own) == TABLE.relations and all(own.values())
        assert not any(set(subject.split()) & set(value.split()) for value in own.values())
        assert all(value == fold(value) for value in (subject, *own.values()))


def test_unique_objects_belong_to_one_country() -> None:
    for relation in TABLE.unique:
        assert max(Counter(own[relation] for own in TABLE.facts.values()).values()) == 1
        assert len(TABLE.objects(relation)) == 46


def test_neighbours_share_the_group_and_are_others() -> None:
    found = TABLE.neighbours(["france"])
    assert "germany" in found and "france" not in found and "japan" not in found
    both = [subject for subject in TABLE.subjects if subject in ("japan", "france")]
    assert [fact.subject for fact in TABLE.of(["japan", "france"])] == [s for s in both for _ in TABLE.relations]


def test_too_many_countries_are_refused() -> None:
    with pytest.raises(UserError, match="at most"):
        geonames_facts(500)


def test_names_are_folded() -> None:
    assert fold("Côte d'Ivoire") == "cote divoire" and fold("Saint-Denis (Réunion)") == "saint denis reunion"


def test_facts_of_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """First item before a comma; a country without all facts is left out."""
    files = {
        "capital-city": ("city", ["Ayton", "Beeton", "Ceeton"]), "calling-code": ("calling_code", [1, 2, 3]),
        "national-dish": ("dish", ["soup, bread", "stew", None]), "region-in-world": ("location", ["north"] * 3),
        "government-type": ("government", ["republic"] * 3), "religion": ("religion", ["none"] * 3),
    }  # fmt: skip
    texts = {
        f"country-by-{name}.json": json.dumps(
            [{"country": c, key: v} for c, v in zip(("Aland", "Bland", "Cland"), values, strict=True)]
        )
        for name, (key, values) in files.items()
    }
    monkeypatch.setattr("transfuse.data.country_facts.read_text", lambda data_set, name: texts[name])
    table = json_facts(2)
    assert table.subjects == ("aland", "bland") and table.facts["aland"]["dish"] == "soup"
    with pytest.raises(UserError, match="at most 2"):
        json_facts(3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wording", range(WORDINGS))
def test_every_form_names_what_it_asks_about_and_not_its_answer(form: str, wording: int) -> None:
    facts = TABLE.of(TABLE.subjects)
    items = ask(TABLE, facts, form, rng(), wording)
    assert [item.fact for item in items] == [fact for fact in facts if can_ask(TABLE, fact, form)] != []
    for item in items:
        fact, padded = item.fact, f" {item.prompt} "
        expected = {
            "reverse": fact.subject, "two_hop": TABLE.facts[fact.subject][TABLE.group], "initial": fact.object[0],
            "letters": " ".join(fact.object.replace(" ", "")[:8]),
        }  # fmt: skip
        if form != "true_false":
            assert item.answer == expected.get(form, fact.object)
        if form in ("reverse", "two_hop"):
            assert f" {fact.object} " in padded and f" {fact.subject} " not in padded
        else:
            assert f" {fact.subject} " in padded
        if form in ("cloze", "qa", "reverse"):
            assert f" {item.answer} " not in padded, "the answer can be read off"
        assert item.prompt == item.prompt.strip() and item.text == f"{item.prompt} {item.answer} ."


def test_choices_hold_the_answer_once_and_shuffle_it() -> None:
    items = ask(TABLE, TABLE.of(TABLE.subjects), "choice", rng())
    assert all(item.options.count(item.answer) == 1 and len(set(item.options)) == len(item.options) for item in items)
    assert all(set(item.options) <= set(TABLE.objects(item.fact.relation)) for item in items)
    places = Counter(item.options.index(item.answer) for item in items if len(item.options) == 4)
    assert min(places[i] for i in range(4)) > 0.15 * sum(places.values())


def test_statements_are_balanced_and_true_where_they_say_so() -> None:
    items = ask(TABLE, TABLE.of(TABLE.subjects), "true_false", rng(), 0)
    assert abs(sum(item.answer == "true" for item in items) - len(items) / 2) <= 0.5
    for item in items:
        assert (f"is {item.fact.object} ." in item.prompt) == (item.answer == "true")
    assert {balanced(5, rng(s)).sum() for s in range(20)} == {2, 3}


def test_the_last_wording_is_never_drawn() -> None:
    facts = TABLE.of(TABLE.subjects)
    for form in ("cloze", "qa"):
        drawn = {item.prompt for seed in range(4) for item in ask(TABLE, facts, form, rng(seed))}
        held = {item.prompt for item in ask(TABLE, facts, form, rng(), HELD_OUT)}
        assert not drawn & held


def test_dialogues_are_about_one_subject_and_ask_nothing_twice() -> None:
    turns = dialogue(TABLE, "france", rng(), 4)
    assert len(turns) == 4 and {item.fact.subject for item in turns} == {"france"}
    assert len({item.fact for item in turns}) == 4


def test_an_unknown_form_is_refused_with_a_hint() -> None:
    with pytest.raises(UserError, match="did you mean 'choice'"):
        ask(TABLE, [], "choise", rng())


def test_two_letters_are_no_word() -> None:
    table = FactTable({"a": {"code": "33", "group": "x"}}, {"code": "code", "group": "group"}, ("code",), "group")
    assert not can_ask(table, Fact("a", "code", "33"), "letters") and can_ask(table, Fact("a", "code", "33"), "reverse")
