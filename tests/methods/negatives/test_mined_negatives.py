"""The audit of mined negatives: readers, the bound, planted false negatives, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from transfuse.cli import main
from transfuse.errors import UserError
from transfuse.hosts.sentence_encoder import tfidf_encoder
from transfuse.methods.negatives.false_negative_bound import (
    exceedance,
    false_negative_bound,
    ratios,
    survival_counts,
    thresholds_of,
)
from transfuse.methods.negatives.mined_negatives import (
    MinedNegative,
    audit,
    audit_mined_negatives,
    false_alarms,
    near_duplicates,
    similarities,
)
from transfuse.methods.negatives.mined_pairs import read_candidates, read_judged, read_mined, read_positives

WORDS = [f"w{i}" for i in range(400)]


def _case(rng, share_false: float, queries: int = 80, per_query: int = 5):
    """Queries of eight words; positives share four of them, true negatives one, random candidates none or one."""

    def with_shared(query, shared):
        return " ".join([*rng.choice(query.split(), shared, replace=False), *rng.choice(WORDS, 8 - shared)])

    names = [" ".join(rng.choice(WORDS, 8, replace=False)) for _ in range(queries)]
    positives = {name: [with_shared(name, 4), with_shared(name, 4)] for name in names}
    mined = [
        MinedNegative(name, with_shared(name, 4 if rng.random() < share_false else 1), rank + 1)
        for name in names
        for rank in range(per_query)
    ]
    corpus = [" ".join(rng.choice(WORDS, 8)) for _ in range(300)]
    return mined, positives, corpus


def _bag(texts):
    """Words as 0 and 1, unit length."""
    place = {word: i for i, word in enumerate(WORDS)}
    vectors = np.zeros((len(texts), len(WORDS)), np.float32)
    for row, text in enumerate(texts):
        vectors[row, [place[word] for word in text.split()]] = 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_survival_counts_equal_brute_force():
    rng = np.random.default_rng(0)
    values, query = rng.normal(size=200), rng.integers(0, 7, 200)
    at = np.sort(rng.normal(size=9))
    got = survival_counts(values, query, at, 7)
    for q in range(7):
        np.testing.assert_array_equal(got[q], [(values[query == q] >= t).sum() for t in at])


def test_ratios_equal_brute_force():
    rng = np.random.default_rng(1)
    negative, positive = rng.normal(size=300), rng.normal(1.5, 1, size=100)
    at = thresholds_of(positive)
    brute = [min(1.0, (negative >= t).mean() / (positive >= t).mean()) for t in at]
    got = ratios(
        *(survival_counts(x, np.zeros(len(x), int), at, 1)[0] for x in (negative, positive)), *np.array([300, 100])
    )
    np.testing.assert_allclose(got, brute)


def test_the_bound_covers_the_share_and_is_close_where_true_negatives_stay_low():
    """Positives N(2, 1), true negatives N(-2, 1): hardly any true negative is as high as a positive."""
    covered, off = 0, []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        false = rng.random(3000) < 0.1
        negative = np.where(false, rng.normal(2, 1, 3000), rng.normal(-2, 1, 3000))
        at = np.repeat(np.arange(300), 10), np.repeat(np.arange(300), 3)
        bound = false_negative_bound(negative, at[0], rng.normal(2, 1, 900), at[1], draws=200, seed=seed)
        covered += bound.low <= 0.1 <= bound.high
        off.append(bound.value - 0.1)
    assert covered >= 52  # of 60 at 95 %: fewer has probability 0.01
    assert abs(np.mean(off)) < 0.004


def test_a_single_query_has_no_bound():
    with pytest.raises(UserError, match="a single query"):
        false_negative_bound(np.ones(3), np.zeros(3, int), np.ones(3), np.zeros(3, int))


def test_exceedance_is_the_share_at_or_below():
    np.testing.assert_allclose(exceedance(np.array([-1.0, 2.0, 9.0]), np.array([1.0, 2.0, 3.0, 4.0])), [0, 0.5, 1])


def test_planted_false_negatives_are_found_and_clean_ones_are_not():
    rng = np.random.default_rng(3)
    dirty = audit_mined_negatives(*_case(rng, 0.3), _bag, draws=200)
    clean = audit_mined_negatives(*_case(rng, 0.0), _bag, draws=200)
    bound = {name: next(f for f in r.findings if f.name == "unlabelled positives at most")
             for name, r in {"dirty": dirty, "clean": clean}.items()}  # fmt: skip
    assert bound["dirty"].verdict == "finding" and bound["dirty"].value == pytest.approx(0.3, abs=0.06)
    assert bound["clean"].verdict == "ok" and clean.exit_code == 0
    assert dirty.false_alarm_rate == clean.false_alarm_rate == 0


def test_permuted_negatives_and_random_candidates_are_controls():
    rng = np.random.default_rng(4)
    report = audit_mined_negatives(*_case(rng, 0.5), _bag, draws=100)
    values = {finding.name: finding.value for finding in report.findings}
    assert values["the same bound, negatives of other queries"] < 0.02
    assert values["the same bound, random candidates"] < 0.02
    assert {"the same bound, ranks up to 3", "the same bound, ranks above 3"} <= set(values)


def test_false_alarms_count_random_sets_that_are_flagged():
    mined, positives, corpus = _case(np.random.default_rng(5), 0.0)
    assert false_alarms(similarities(mined, positives, corpus, _bag), 0.05, 0) == 0
    everything = [text for texts in positives.values() for text in texts]  # of other queries: far from any query
    assert false_alarms(similarities(mined, positives, everything, _bag), 0.05, 0) == 0
    same = {name: ["w1 w2"] for name in positives}  # positives that say nothing of the query
    assert false_alarms(similarities(mined, same, corpus, _bag), 0.05, 0) == 1


def test_near_duplicates_of_a_positive():
    positives = {"q": ["one two three four five six seven eight nine ten eleven twelve"]}
    texts = [
        "One two three four five six seven eight nine ten eleven  twelve",
        "one two three",
        "other words stand here",
    ]
    texts.append(positives["q"][0] + " thirteen")
    assert near_duplicates([MinedNegative("q", text, 1) for text in texts], positives).tolist() == [
        True,
        False,
        False,
        True,
    ]


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "rows",
    [
        [{"query": "q", "answer": "p", "negative": "a"}, {"query": "q", "answer": "p", "negative": "b"}],
        [{"anchor": "q", "positive": "p", "negative_1": "a", "negative_2": "b", "scores": [0.3, 0.2]}],
        [{"query": "q", "answer": "p", "label": 1}, {"query": "q", "answer": "a", "label": 0},
         {"query": "q", "answer": "b", "label": 0}],
        [{"query": "q", "answer": ["p", "a", "b"], "labels": [1, 0, 0]}],
        [{"query": "q", "negative": 1}, {"query": "q", "negative": "d2"}],
    ],
)  # fmt: skip
def test_every_layout_of_the_miner_is_read(tmp_path, rows):
    corpus = read_candidates(_write(tmp_path / "c.jsonl", [{"id": 1, "text": "a"}, {"id": "d2", "text": "b"}]))
    mined = read_mined(_write(tmp_path / "p.jsonl", rows), corpus)
    assert [(one.query, one.text, one.rank) for one in mined] == [("q", "a", 1), ("q", "b", 2)]


def test_rank_and_retriever_columns_are_taken(tmp_path):
    (tmp_path / "p.csv").write_text("query,negative,rank,retriever\nq,a,7,bm25\nq,b,2,dense\n")
    corpus = read_candidates(_write(tmp_path / "c.jsonl", [{"text": "a"}]))
    mined = read_mined(tmp_path / "p.csv", corpus)
    assert [(one.rank, one.retriever) for one in mined] == [(7, "bm25"), (2, "dense")]


def test_bad_files_are_named_in_one_line(tmp_path):
    corpus = read_candidates(_write(tmp_path / "c.jsonl", [{"text": "a"}]))
    with pytest.raises(UserError, match=r"row 1 .* has query"):
        read_mined(_write(tmp_path / "p.jsonl", [{"query": "q"}]), corpus)
    with pytest.raises(UserError, match="rank 'first'"):
        read_mined(_write(tmp_path / "p.jsonl", [{"query": "q", "negative": "a", "rank": "first"}]), corpus)
    with pytest.raises(UserError, match="2 documents, 1 labels"):
        read_mined(_write(tmp_path / "p.jsonl", [{"query": "q", "answer": ["p", "a"], "labels": [1]}]), corpus)
    with pytest.raises(UserError, match="relevant is 'maybe'"):
        read_judged(_write(tmp_path / "j.jsonl", [{"relevant": "maybe"}]))
    with pytest.raises(UserError, match="a column 'positive'"):
        read_positives(_write(tmp_path / "k.jsonl", [{"query": "q"}]), corpus)
    with pytest.raises(UserError, match="no known positive, such as 'q'"):
        audit_mined_negatives([MinedNegative("q", "a", 1)], {"other": ["p"]}, ["a"], tfidf_encoder())


@pytest.fixture
def files(tmp_path):
    animals, tools = ["a cat sleeps", "a dog barks", "a cow eats grass"], ["a hammer hits", "a saw cuts wood"]
    rows = [{"query": f"which animal {i}", "positive": text} for i, text in enumerate(animals)]
    mined = [{"query": row["query"], "positive": row["positive"], "negative": text} for row in rows for text in tools]
    mined.append({"query": "which animal 0", "positive": "a cat sleeps", "negative": "A cat  sleeps"})
    _write(tmp_path / "pairs.jsonl", mined)
    _write(tmp_path / "positives.jsonl", rows)
    _write(tmp_path / "corpus.jsonl", [{"text": text} for text in [*animals, *tools]])
    _write(tmp_path / "judged.jsonl", [{"relevant": 0}] * 90 + [{"relevant": 1}] * 30)
    return tmp_path


def test_the_command_reports_and_writes_the_cleaned_pairs(files, monkeypatch, capsys):
    monkeypatch.setenv("TRANSFUSE_CACHE", str(files / "cache"))
    given = ["audit", "negatives", "--pairs", str(files / "pairs.jsonl"), "--positives", str(files / "positives.jsonl"),
             "--candidates", str(files / "corpus.jsonl")]  # fmt: skip
    more = ["--judged", str(files / "judged.jsonl"), "--cleaned", str(files / "clean.jsonl"), "--json"]
    assert main([*given, *more]) == 1
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)["findings"]}
    assert found["known positives among the negatives"]["value"] == pytest.approx(1 / 7)
    assert found["false negatives by judgement"]["verdict"] == "finding"
    cleaned = [json.loads(line) for line in (files / "clean.jsonl").read_text().splitlines()]
    assert len(cleaned) == 6 and all(0 <= row["suspicion"] <= 1 for row in cleaned)
    assert main(["audit"]) == 0 and "\nnegatives " in capsys.readouterr().out


def test_a_sample_is_written_judged_and_read_back(files, monkeypatch, capsys):
    monkeypatch.setenv("TRANSFUSE_CACHE", str(files / "cache"))
    given = ["audit", "negatives", "--pairs", str(files / "pairs.jsonl"), "--positives", str(files / "positives.jsonl"),
             "--candidates", str(files / "corpus.jsonl"), "--model", "tfidf"]  # fmt: skip
    sample = files / "sample.csv"
    main([*given, "--to-judge", str(sample)])
    assert main([*given, "--judged", str(sample)]) == 2 and "not been judged yet" in capsys.readouterr().err
    lines = sample.read_text().splitlines()
    sample.write_text("\n".join([lines[0], *(line + "0" for line in lines[1:])]) + "\n")
    main([*given, "--judged", str(sample), "--json"])
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)["findings"]}
    assert found["false negatives by judgement"]["value"] == 0


def test_above_positives_equals_brute_force():
    similar = similarities(*_case(np.random.default_rng(6), 0.5, queries=10), _bag)
    expected = [
        value > max(similar.positive[similar.positive_query == query])
        for value, query in zip(similar.negative, similar.negative_query, strict=True)
    ]
    assert similar.above_positives.tolist() == expected


def test_bad_numbers_are_refused(files):
    with pytest.raises(UserError, match="tolerated 2"):
        audit(pairs=files / "p", positives=files / "k", candidates=files / "c", tolerated=2.0)
