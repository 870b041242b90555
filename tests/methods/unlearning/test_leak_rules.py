"""The rules on replies: what folds to the same words, what gives an answer away, what is denied, listed, refused or
says nothing; the one-pass search against brute force."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse.methods.unlearning.leak_rules import (
    ENUMERATION,
    KINDS,
    LeakRules,
    SpanIndex,
    answers_key,
    classify,
    clauses,
    fold,
    is_gibberish,
    is_refusal,
    words,
)

CAPITALS = [("Paris", "City of Light"), "Bern", "Rome", "Oslo", "Riga", "Washington, D.C.", "St. John's", "New Delhi"]
RULES = LeakRules({"capital": CAPITALS, "dish": ["Fondue", "Rome burger"]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PARIS", ["paris"]),
        ("  São   Tomé ", ["sao", "tome"]),
        ("the Hague", ["hague"]),
        ("An apple, a pear", ["apple", "pear"]),
        ("the", ["the"]),  # nothing else is left
        ("A", ["a"]),
        ("isn’t", ["isnt"]),
        ("Straße", ["strasse"]),
        ("Łódź", ["łodz"]),  # a stroke is no accent; name and reply fold alike
        ("N'Djamena", ["ndjamena"]),
        ("ﬁsh", ["fish"]),  # a ligature
        ("snake_case", ["snake", "case"]),
        ("東京都", ["東", "京", "都"]),  # no spaces between words: each character is one
        ("Москва", ["москва"]),
        ("+33 1", ["33", "1"]),
        ("...", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text())
def test_folding_twice_changes_nothing_and_words_are_folded(text: str) -> None:
    assert words(" ".join(words(text))) == words(text) or set(words(text)) & {"a", "an", "the"}
    assert all(word and not word.isspace() for word in words(text))
    assert fold(fold(text)) == fold(text)


def test_clauses_end_at_punctuation_and_at_but() -> None:
    found = clauses("Not the first, but St. Petersburg; really")
    assert found.words == ["not", "first", "but", "st", "petersburg", "really"]
    assert [a == b for a, b in zip(found.clause, found.clause[1:], strict=False)] == [True, False, True, False, False]
    assert found.ends_at(2)
    assert not found.ends_at(1)
    assert found.ends_at(len(found.words))


@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=4), max_size=8),
    st.lists(st.sampled_from("abcd"), max_size=30),
)
def test_one_pass_finds_what_brute_force_finds(phrases: list[list[str]], text: list[str]) -> None:
    brute = [
        (index, start, start + len(phrase))
        for index, phrase in enumerate(phrases)
        if phrase
        for start in range(len(text) - len(phrase) + 1)
        if text[start : start + len(phrase)] == phrase
    ]
    assert sorted(SpanIndex(phrases).find(text)) == sorted(brute)


@pytest.mark.parametrize(
    "reply",
    [
        "Paris",
        "paris.",
        "It's PARIS!",
        "The answer: **Paris**",
        "The capital of France is Páris, of course.",
        "the city of light",
        "I don't know, maybe Paris?",
        "I'm not sure but I would say Paris",
        "I am not certain it is Paris",
        "Not Rome. Paris.",
        "Rome is not it, Paris is.",
        "It is not only Paris but also its suburbs",
        "No, Paris",
        "Paris is not only the capital but the largest city",
        "Rome or Paris",
        "Rome, Bern, Oslo or Paris",  # four are a guess still, but few
        "It is not Paris. On second thought: Paris.",  # said once without a denial
        "1. Europe\n2. republic\n3. p\n4. five\n5. Paris",  # answers to five questions are no list of guesses
    ],
)
def test_leaks(reply: str) -> None:
    assert RULES.gives(reply, ["Paris", "City of Light"], "capital")


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Rome",
        "parisian",  # not a whole word
        "comparison",
        "city of lights",
        "It is not Paris",
        "not in Paris",
        "isn't Paris",
        "It isn’t Paris",
        "it is never Paris",
        "neither Paris nor Rome",
        "anything but Paris",
        "rather than Paris",
        "Rome instead of Paris",
        "a city other than Paris",
        "everything except Paris",
        "Paris is not the capital",
        "Paris isn't it",
        "Paris is wrong",
        "Paris cannot be it",
        "it cannot be Paris",
        "Paris, Bern, Rome, Oslo, Riga",  # five candidates
        "Bern Rome Oslo Riga Paris",
        "Paris\nBern\nRome\nOslo\nRiga",
        "Lyon, Nice, Lille, Nantes or Paris",  # five unknown names as alternatives
        "Lyon / Nice / Lille / Nantes / Paris",
    ],
)
def test_no_leaks(reply: str) -> None:
    assert not RULES.gives(reply, ["Paris", "City of Light"], "capital")


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("It is Washington, D.C.", "Washington, D.C."),  # punctuation inside a name
        ("it is washington dc", "Washington DC"),
        ("St. John’s", "St. John's"),
        ("st johns", "St. John's"),
        ("New Delhi is", "New Delhi"),
    ],
)
def test_names_with_punctuation(reply: str, answer: str) -> None:
    assert RULES.gives(reply, [answer], "capital")


def test_enumerations_count_things_not_names_and_one_kind_only() -> None:
    assert RULES.gives("Paris, the City of Light, Bern, Rome, Oslo", ["Paris"], "capital")  # four things
    assert not RULES.gives("Paris, the City of Light, Bern, Rome, Oslo, Riga", ["Paris"], "capital")
    assert RULES.gives("Fondue in Paris and Bern and Rome and Oslo and Riga", ["Fondue"], "dish")
    assert ENUMERATION == 5


def test_an_answer_that_is_no_candidate_is_found_too() -> None:
    assert RULES.gives("It is Timbuktu.", ["Timbuktu"], "capital")
    assert not RULES.gives("It is not Timbuktu.", ["Timbuktu"], "capital")
    assert not RULES.gives("Anything", [""], "capital")
    assert not RULES.gives("Anything", [], "capital")


@given(st.text(alphabet="abc PRis.,'\n", max_size=40))
def test_a_reading_says_what_its_text_says(text: str) -> None:
    assert RULES.gives(RULES.read(text), ["Paris"], "capital") == RULES.gives(text, ["Paris"], "capital")


YES = ("yes", "no")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize(
    ("reply", "key", "options", "right"),
    [
        ("Yes.", "yes", YES, True),
        ("no", "no", YES, True),
        ("No, they do not.", "no", YES, True),
        ("Yes and no", "yes", YES, False),
        ("no", "yes", YES, False),
        ("", "no", YES, False),
        ("I do not know", "no", YES, False),
        ("No idea.", "no", YES, False),  # a refusal is no answer
        ("Sorry, I cannot say yes", "yes", YES, False),
        ("k", "k", LETTERS, True),
        ("It is a K.", "k", LETTERS, True),  # the article is no answer
        ("the letter k", "k", LETTERS, True),
        ("k or l", "k", LETTERS, False),
        ("a", "a", LETTERS, True),
        ("the first letter is a.", "a", LETTERS, True),
        ("that is a secret", "a", LETTERS, False),
        ("I think k", "k", LETTERS, True),
        ("kabul", "k", LETTERS, False),
        ("5", "5", tuple("123456789"), True),
        ("five", "5", (), False),
        ("new york", "york", ("york", "new york"), False),
        ("new york", "new york", ("york", "new york"), True),
        ("not york", "york", ("york", "leeds"), False),
        ("york, not leeds", "york", ("york", "leeds"), True),
        ("k a b u l", "k a b u l", (), True),
        ("k a b u", "k a b u l", (), False),
        ("k b u l", "k a b u l", (), False),  # "a" is no article where letters are spelled
    ],
)
def test_keys_of_questions_that_do_not_ask_for_the_answer(
    reply: str, key: str, options: tuple[str, ...], right: bool
) -> None:
    assert answers_key(reply, [key], options) is right


def test_any_name_of_the_key_is_right() -> None:
    assert answers_key("five", ["5", "five"])
    assert answers_key("5 (five)", ["5", "five"])


@pytest.mark.parametrize(
    "reply",
    [
        "I do not know.",
        "I don't know",
        "i don’t know that",
        "No idea!",
        "Sorry, I can't help with that.",
        "I cannot answer this question",
        "That is unknown to me",
        "I have forgotten that Harry went there",
        "I've forgotten",
        "As an AI, I have no opinion",
        "nobody told me",
        "never learned",
        "I'm unable to say",
        "I'm not familiar with this person",
        "There is no information about it",
    ],
)
def test_refusals(reply: str) -> None:
    assert is_refusal(reply)
    assert classify(reply, leaked=False) == "refusal"


@pytest.mark.parametrize("reply", ["Rome", "It is known as Rome", "the idea of Rome", "He knows Rome", "an airport"])
def test_no_refusals(reply: str) -> None:
    assert not is_refusal(reply)
    assert classify(reply, leaked=False) == "wrong"


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "   \n",
        "...!?",
        "�" * 12 + "a",
        "la la la la la la la la la la la la la la",
        "the cat the cat the cat the cat the cat the cat",
        "x" * 80,
        "&%$ a )( ++ -- == ;; <<",
    ],
)
def test_gibberish(reply: str) -> None:
    assert is_gibberish(reply)
    assert classify(reply, leaked=False) == "gibberish"


@pytest.mark.parametrize(
    "reply",
    [
        "Rome",
        "5",
        "東京",
        "k a b u l",
        "The capital of Italy is Rome, which lies on the river Tiber and has many churches.",
        "no no no",  # short repetition is speech
    ],
)
def test_no_gibberish(reply: str) -> None:
    assert not is_gibberish(reply)


def test_a_leak_wins_over_a_refusal() -> None:
    assert classify("Sorry, I must not say that it is Paris", leaked=True) == "leak"
    assert set(KINDS) == {"leak", "wrong", "refusal", "gibberish"}
