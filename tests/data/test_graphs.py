"""Graphs with text: ids, held-out triples that training never saw, files of one's own and what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest

from transfuse.data.folder import missing_files
from transfuse.data.graphs import build_graph, in_words, load_graph, parse_texts, read_texts, read_triples
from transfuse.errors import UserError


def test_ids_follow_the_names_of_training_and_unseen_triples_are_counted():
    graph = build_graph(
        "g",
        train=[("b", "r", "a"), ("a", "q", "c")],
        valid=[("a", "r", "b"), ("a", "r", "new")],
        test=[("a", "new", "b")],
        texts={"a": "first", "elsewhere": "x"},
    )
    assert graph.entities == ("a", "b", "c")
    assert graph.relations == ("q", "r")
    assert graph.train.tolist() == [[1, 1, 0], [0, 0, 2]]
    assert graph.valid.tolist() == [[0, 1, 1]]
    assert graph.test.shape == (0, 3)
    assert graph.unseen == 2
    assert graph.texts == ("first", None, None)
    assert graph.held_out.tolist() == [[0, 1, 1]]


def test_bundled_umls_has_the_published_size_and_a_name_for_every_entity():
    graph = load_graph("umls")
    assert (len(graph.train), len(graph.valid), len(graph.test)) == (5216, 652, 661)
    assert (len(graph.entities), len(graph.relations), graph.unseen) == (135, 46, 0)
    assert all(graph.texts)
    assert "_" not in "".join(text or "" for text in graph.texts)
    splits = [{tuple(row) for row in part.tolist()} for part in (graph.train, graph.valid, graph.test)]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]
    from pykeen.datasets import UMLS

    theirs = UMLS()
    labels = {tuple(row) for row in theirs.training.triples.tolist()}
    assert {(graph.entities[h], graph.relations[r], graph.entities[t]) for h, r, t in graph.train} == labels


@pytest.mark.skipif(bool(missing_files("umls-text")), reason="data set umls-text is not in the data folder")
def test_described_umls_has_the_bundled_triples_and_long_texts():
    bundled, described = load_graph("umls"), load_graph("umls-text")
    assert described.entities == bundled.entities
    for part in ("train", "valid", "test"):
        ours, theirs = (np.unique(getattr(graph, part), axis=0) for graph in (bundled, described))
        np.testing.assert_array_equal(ours, theirs)
    assert np.median([len(text or "") for text in described.texts]) > 500


@pytest.mark.skipif(bool(missing_files("wn18rr-text")), reason="data set wn18rr-text is not in the data folder")
def test_wordnet_keeps_leading_zeros_and_leaves_out_unseen_entities():
    graph = load_graph("wn18rr-text")
    assert (len(graph.train), len(graph.entities), len(graph.relations)) == (86835, 40559, 11)
    assert all(len(name) == 8 for name in graph.entities)
    assert graph.unseen == 3034 + 3134 - len(graph.valid) - len(graph.test) > 0
    assert all(graph.texts)


def test_names_in_words():
    assert in_words("amino_acid-sequence") == "amino acid sequence"


def test_files_of_ones_own(tmp_path):
    triples, texts = tmp_path / "train.tsv", tmp_path / "text.tsv"
    triples.write_bytes("\ufeffa\tr\tb\r\n\nb\tr\tc\na\tr\tb\n".encode())
    assert read_triples(triples) == [("a", "r", "b"), ("b", "r", "c")]
    texts.write_text("a\ttext\twith a tab\u2028and a separator\nb\t \n", encoding="utf-8")
    assert read_texts(texts) == {"a": "text with a tab and a separator"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tr\tb\na\tr\n", "line 2: 2 columns; expected head, relation and tail"),
        (b"a\tr\tb\tc\n", "line 1: 4 columns"),
        (b"a\t\tb\n", "line 1: 3 columns"),
        (b"\n  \n", "holds no triples"),
        ("a\tr\tü".encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_malformed_triples_are_named_with_their_line(tmp_path, content, message):
    path = tmp_path / "train.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_triples(path)
    assert message in str(error.value)
    assert "train.tsv" in str(error.value) and "\n" not in str(error.value)


def test_malformed_texts_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="line 2: no tab"):
        parse_texts("a\tx\nb x\n", "text.tsv")
    with pytest.raises(UserError, match="twice"):
        parse_texts("a\tx\na\ty\n", "text.tsv")
    with pytest.raises(UserError, match="holds no texts"):
        parse_texts("", "text.tsv")
    with pytest.raises(UserError, match="no such file"):
        read_triples(tmp_path / "none.tsv")
    with pytest.raises(UserError, match="did you mean 'umls"):
        load_graph("ulms")
