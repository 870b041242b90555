"""Text corpora: encodings, labels, duplicates, and docstrings without the names that give the class away."""

from __future__ import annotations

import collections

import pytest

from transfuse.data import docstrings as docs
from transfuse.data.folder import find
from transfuse.data.text import (
    SENTENCE_SETS,
    Texts,
    clinc150,
    prose_sentences,
    python_topics,
    respelled,
    sentence_set,
    unique,
)
from transfuse.errors import UserError

needs_data = pytest.mark.skipif(
    find("sent-conv", "custrev.all") is None or find("clinc150", "data_full.json") is None,
    reason="the public sets are not in the data folder",
)


@needs_data
@pytest.mark.parametrize("name", SENTENCE_SETS)
def test_sentence_sets_decode_without_damage_and_without_repeats(name: str) -> None:
    found = sentence_set(name)
    assert not [text for text in found.texts if "\ufffd" in text or "Ã" in text or "\x85" in text or "\x96" in text]
    assert len({text.lower() for text in found.texts}) == len(found)
    assert set(found.labels) <= set("012345")


@needs_data
def test_sizes_and_accents() -> None:
    train = sentence_set("stsa.binary.train")
    assert 6900 < len(train) <= 6920
    assert any("joffé" in text for text in train.texts)
    assert set(sentence_set("TREC.train.all").labels) == set("012345")
    assert collections.Counter(sentence_set("custrev.all").labels)["1"] > 2300


@needs_data
def test_clinc_splits() -> None:
    assert len(set(clinc150("train").labels)) == 150
    assert set(clinc150("oos_test").labels) == {"oos"}
    overlap = clinc150("test").without(clinc150("train"))
    assert 0 < len(clinc150("test")) - len(overlap) < 10  # the set's own repeats
    with pytest.raises(UserError, match="unknown split"):
        clinc150("dev")


@needs_data
def test_python_topics_are_prose() -> None:
    sentences = python_topics()
    assert len(sentences) > 1000
    assert not [text for text in sentences.texts if "::=" in text or text.startswith(">>>")]


def test_unknown_set_is_refused_with_a_hint() -> None:
    with pytest.raises(UserError, match=r"did you mean 'custrev\.all'"):
        sentence_set("custrev")


def test_texts_can_be_chosen_and_kept_apart() -> None:
    texts = unique([("A  b", "x"), ("a b", "y"), ("", "x"), ("c", "y")])
    assert texts == Texts(("A b", "c"), ("x", "y"))
    assert texts.of("y").texts == ("c",)
    assert texts.without(Texts(("C",), ("z",))).texts == ("A b",)


def test_respelling_is_that_of_sst2_and_changes_nothing_twice() -> None:
    text = "I don't like it (it's $3.50, really)."
    assert respelled(text) == "i do n't like it -lrb- it 's $ 3.50 , really -rrb- ."
    assert respelled(respelled(text)) == respelled(text)
    assert respelled("it does n 't show , i can 't") == "it does n't show , i ca n't"


def test_prose_leaves_code_lists_and_grammar_out() -> None:
    text = (
        "A first sentence stands here.\n\n   indented = code\n\nstmt ::= x\n\n* a point of a list here.\n\nShort one."
    )
    assert prose_sentences(text) == ["A first sentence stands here."]


def test_docstring_sentences_stop_at_parameters_and_lose_names() -> None:
    text = (
        "Compute the inverse of a square matrix with `numpy.linalg.inv` and the like.\n\n"
        "Parameters\n----------\na : array\n    The matrix that is to be inverted by this.\n\n"
        "Notes\n-----\nThe matrix must be of full rank for this to work well.\n"
    )
    found = docs.docstring_sentences(text)
    assert found == [
        "Compute the inverse of a square matrix with this and the like.",
        "The matrix must be of full rank for this to work well.",
    ]
    assert docs.anonymous(":math:`x` is `y` of z + 3") is None


def test_attached_docstrings_are_read_too() -> None:
    source = 'inv = _add_docstr(_linalg.inv, r"""\ninv(A) -> Tensor\n\nComputes it.\n""".format(**notes))'
    assert list(docs.docstrings(source)) == ["Computes it.\n"] or list(docs.docstrings(source)) == ["Computes it."]
    assert list(docs.docstrings("def broken(")) == []


def test_corpus_has_four_disjoint_parts_without_giveaways() -> None:
    corpus = docs.docstring_corpus(40)
    assert set(corpus.inside.labels) == set(docs.SUBJECTS)
    assert set(corpus.semantic.labels) == set(docs.HELD_OUT)
    parts = (corpus.inside, corpus.background, corpus.semantic, corpus.cross_task)
    inside = {text.lower() for text in corpus.inside.texts}
    for part in parts[1:]:
        assert not inside & {text.lower() for text in part.texts}
    words = {word.strip(".,").lower() for part in parts for text in part.texts for word in text.split()}
    assert not words & {"scipy", "numpy", "sklearn", "torch", "pytorch", "tensor"}
    assert docs.docstring_corpus(40).digest == corpus.digest
    assert set(corpus.versions) == {"scipy", "numpy", "sklearn", "torch"}
