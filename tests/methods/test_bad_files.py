"""Wrong files and options for `audit` and `apply` of the methods themselves: one line, exit 2, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transfuse.cli import main

ROUNDS = [{"round": i, "gsi": 1 + 0.01 * (i % 7), "clients": [i % 5, (i + 1) % 5]} for i in range(1, 31)]
TRIPLES = "".join(f"e{i}\tr{i % 2}\te{(i * 5 + 1) % 12}\n" for i in range(12))
TEXTS = "".join(f"e{i}\tword{i} kind{i % 3}\n" for i in range(12))
LABELLED = "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40))
LINES = "".join(f"held out text {i}\n" for i in range(40))


def rounds(**changes: object) -> str:
    """A history in which one round is wrong."""
    return json.dumps([*ROUNDS[:3], ROUNDS[3] | changes, *ROUNDS[4:]])


GOOD = {
    "rounds.json": json.dumps(ROUNDS),
    "train.tsv": TRIPLES,
    "text.tsv": TEXTS,
    "train.csv": LABELLED,
    "validation.csv": LABELLED,
    "lines.txt": LINES,
}
FEDGLAD = "audit fedglad --history {file}"
LABELS = "audit fedglad --history {rounds.json} --labels {file}"
TRAIN = "audit lemon --train {file} --text {text.tsv} --encoder tfidf"
TEXT = "audit lemon --train {train.tsv} --text {file} --encoder tfidf"
LEMON = "audit lemon --train {train.tsv} --text {text.tsv} --encoder tfidf --permutations 2"
DRAW = "apply lemon --train {train.tsv} --text {text.tsv} --encoder tfidf"
GNOME = "audit gnome_ood --train {train.csv} --validation {validation.csv} --test {lines.txt} --suspects {lines.txt}"
FIT = "audit gnome_ood --train {file} --validation {validation.csv} --test {lines.txt} --suspects {lines.txt}"
HELD_OUT = "audit gnome_ood --train {train.csv} --validation {file} --test {lines.txt} --suspects {lines.txt}"
TEST = "audit gnome_ood --train {train.csv} --validation {validation.csv} --test {file} --suspects {lines.txt}"
SUSPECTS = "audit gnome_ood --train {train.csv} --validation {validation.csv} --test {lines.txt} --suspects {file}"
SCORE = "apply gnome_ood --train {train.csv} --validation {validation.csv} --texts {lines.txt}"

# The words, the name and content of the wrong file, and what the line has to say of given and expected.
WRONG: list[tuple[str, str, str | bytes, str, str]] = [
    (FEDGLAD, "empty.json", "", "empty.json", "a list of rounds"),
    (FEDGLAD, "cut.json", '[{"gsi": 1.1}, {', "cut.json", "a list of rounds"),
    (FEDGLAD, "null.json", "null", "null.json", "a list of rounds"),
    (FEDGLAD, "none.json", "[]", "none.json", "a list of rounds"),
    (FEDGLAD, "numbers.json", "[1, 2]", "numbers.json", "a list of rounds"),
    (FEDGLAD, "key.json", '{"round": []}', "'rounds'", "a list of rounds"),
    (FEDGLAD, "deep.json", "[" * 100_000, "deep.json", "a list of rounds"),
    (FEDGLAD, "digits.json", "1" * 5000, "digits.json", "a list of rounds"),
    (FEDGLAD, "digits.jsonl", "1" * 5000, "digits.jsonl", "JSONL"),
    (FEDGLAD, "huge.json", rounds(gsi=10**400), "round 4", "numbers"),
    (FEDGLAD, "last.json", rounds(round=float("inf")), "round 4", "numbers"),
    (FEDGLAD, "letters.json", rounds(clients="abc"), "'abc'", "numbers"),
    (FEDGLAD, "table.json", rounds(clients={"a": 1}), "{'a': 1}", "numbers"),
    (FEDGLAD, "text.json", rounds(update_norms="12"), "'12'", "numbers"),
    (FEDGLAD, "negative.json", rounds(update_norms=[-1, 1]), "negative or not finite", "numbers"),
    (FEDGLAD, "nan.json", rounds(update_norms=[float("nan"), 1]), "negative or not finite", "numbers"),
    (FEDGLAD, "weights.json", rounds(weights=[-1, 1]), "negative or not finite", "numbers"),
    (FEDGLAD, "mean.json", rounds(gsi=None, update_norms=[1, 2], mean_update_norm=-1), "mean_update_norm", "numbers"),
    (FEDGLAD + " --beta nan", "rounds.json", GOOD["rounds.json"], "beta = nan", "from 0 to below 1"),
    (FEDGLAD + " --beta 2", "rounds.json", GOOD["rounds.json"], "beta = 2.0", "from 0 to below 1"),
    (FEDGLAD + " --beta -1", "rounds.json", GOOD["rounds.json"], "beta = -1.0", "from 0 to below 1"),
    (FEDGLAD, "latin.json", b"\xe9", "not UTF-8", "iconv"),
    (FEDGLAD, "few.json", json.dumps(ROUNDS[:10]), "10 rounds", "at least 20"),
    (FEDGLAD, "small.json", rounds(gsi=0.5), "round 4 has gsi 0.5", "at least 1"),
    (FEDGLAD, "negative.json", rounds(gsi=-1), "gsi -1.0", "at least 1"),
    (FEDGLAD, "nan.json", rounds(gsi=float("nan")), "gsi nan", "at least 1"),
    (FEDGLAD, "infinite.json", rounds(gsi=float("inf")), "gsi inf", "at least 1"),
    (FEDGLAD, "word.json", rounds(gsi="x"), "'x'", "numbers"),
    (FEDGLAD, "list.json", rounds(gsi=[1]), "round 4", "numbers"),
    (FEDGLAD, "without.json", rounds(gsi=None), "round 4", "update_norms"),
    (FEDGLAD, "number.json", rounds(round="x"), "'x'", "numbers"),
    (FEDGLAD, "clients.json", rounds(clients=5), "round 4", "numbers"),
    (FEDGLAD, "norms.json", rounds(update_norms=["x"]), "'x'", "numbers"),
    (FEDGLAD, "line.jsonl", '{"gsi": 1.1}\n{bad\n', "line.jsonl", "JSONL"),
    (FEDGLAD, "blank.jsonl", "\n\n", "blank.jsonl", "JSONL"),
    (FEDGLAD, "head.csv", "round,gsi\n", "head.csv", "CSV"),
    (FEDGLAD, "columns.csv", "a,b\n1,2\n", "a, b", "gsi"),
    (FEDGLAD, "semicolons.csv", "round;gsi\n1;2\n", "round;gsi", "gsi"),
    (FEDGLAD, "long.csv", "round,gsi\n1," + "9" * 200_000 + "\n", "long.csv", "CSV"),
    (FEDGLAD, "folder", "", "folder", "a readable text file"),
    (FEDGLAD + " --draws 10", "rounds.json", GOOD["rounds.json"], "10 permutations", "at least 200"),
    (FEDGLAD + " --draws -5", "rounds.json", GOOD["rounds.json"], "-5 permutations", "at least 200"),
    (FEDGLAD + " --beta x", "rounds.json", GOOD["rounds.json"], "--beta", "'x'"),
    (FEDGLAD + " --out {folder}", "rounds.json", GOOD["rounds.json"], "--out", "a file"),
    (LABELS, "cut.json", '{"0": [1', "cut.json", "client -> list of counts"),
    (LABELS, "list.json", "[]", "list.json", "client -> list of counts"),
    (LABELS, "number.json", '{"0": 3}', "number.json", "client -> list of counts"),
    (LABELS, "none.json", "{}", "different lengths", "at least one client"),
    (LABELS, "lengths.json", '{"0": [1, 2], "1": [1]}', "different lengths", "as many classes"),
    (LABELS, "negative.json", '{"0": [-1, 2]}', "negative.json", "client -> list of counts"),
    (LABELS, "zero.json", '{"0": [0, 0]}', "negative or all zero", "how many examples"),
    (LABELS, "nan.json", '{"0": [NaN, 1]}', "nan.json", "client -> list of counts"),
    (LABELS, "word.json", '{"0": ["a"]}', "word.json", "client -> list of counts"),
    (LABELS, "null.json", '{"0": [null]}', "null.json", "client -> list of counts"),
    (LABELS, "nested.json", '{"0": [[1], [2]]}', "nested.json", "client -> list of counts"),
    (LABELS, "infinite.json", '{"0": [1e999, 1]}', "infinite.json", "client -> list of counts"),
    (LABELS, "huge.json", '{"0": [1' + "0" * 400 + "]}", "huge.json", "client -> list of counts"),
    (LABELS, "digits.json", "1" * 5000, "digits.json", "client -> list of counts"),
    (LABELS, "deep.json", "[" * 100_000, "deep.json", "client -> list of counts"),
    (LABELS, "latin.json", b"\xe9", "not UTF-8", "iconv"),
    (TRAIN, "empty.tsv", "", "empty.tsv", "one triple a line"),
    (TRAIN, "spaces.tsv", "a b c\n", "line 1: 1 columns", "separated by tabs"),
    (TRAIN, "two.tsv", "a\tr\tb\na\tb\n", "line 2: 2 columns", "separated by tabs"),
    (TRAIN, "four.tsv", "a\tr\tb\tc\n", "line 1: 4 columns", "separated by tabs"),
    (TRAIN, "hole.tsv", "\tr\tb\n", "line 1", "head, relation and tail"),
    (TRAIN, "latin.tsv", b"\xe9\tr\tb\n", "not UTF-8", "iconv"),
    (TRAIN, "other.tsv", "x\tr\ty\n", "text for 0 of 2 entities", "names such as 'x'"),
    (TRAIN, "loop.tsv", "e0\tr\te0\n", "text for 1 of 1", "names such as"),
    (TRAIN, "missing", "", "missing", "a UTF-8 file"),
    (TEXT, "empty.tsv", "", "empty.tsv", "one entity a line"),
    (TEXT, "spaces.tsv", "e0 word\n", "line 1: no tab", "an entity, a tab and its text"),
    (TEXT, "twice.tsv", "e0\ta\ne0\tb\n", "line 2: entity 'e0'", "one text an entity"),
    (TEXT, "blank.tsv", "e0\t\ne1\t \n", "text for 0 of 12", "names such as"),
    (TEXT, "other.tsv", "x\tword\ny\tword\n", "text for 0 of 12", "names such as 'e0'"),
    (TEXT, "signs.tsv", "e0\t!!!\ne1\t???\n", "no words", "texts in words"),
    (TEXT, "same.tsv", "e0\tsame\ne1\tsame\n", "one word only", "texts in words"),
    (TEXT, "folder", "", "folder", "a UTF-8 file"),
    (LEMON + " --valid {file}", "bad.tsv", "a b c\n", "line 1: 1 columns", "separated by tabs"),
    (LEMON + " --test {file}", "missing", "", "missing", "a UTF-8 file"),
    (LEMON + " --mix nan", "", "", "mix = nan", "from 0"),
    (LEMON + " --mix -1", "", "", "mix = -1.0", "from 0"),
    (LEMON + " --num-clusters 0", "", "", "num_clusters = 0", "at least 1"),
    (LEMON + " --num-clusters -3", "", "", "num_clusters = -3", "at least 1"),
    (LEMON + " --num-clusters 1000", "", "", "1000 clusters", "1 to 12"),
    (LEMON + " --negatives 0", "", "", "negatives = 0", "at least 1"),
    (LEMON + " --negatives -8", "", "", "negatives = -8", "at least 1"),
    (LEMON + " --permutations 0", "", "", "permutations = 0", "at least 1"),
    (LEMON + " --seed -1", "", "", "seed = -1", "from 0 to 4294967295"),
    (LEMON + " --seed 4294967296", "", "", "seed = 4294967296", "from 0 to 4294967295"),
    (LEMON + " --encoder=", "", "", "encoder ''", "tfidf"),
    (LEMON + " --encoder {missing}", "", "", "missing", "a model folder"),
    (LEMON + " --encoder {folder}", "", "", "folder", "a model folder"),
    (LEMON + " --encoder {train.tsv}", "", "", "train.tsv", "a model folder"),
    (DRAW, "", "", "lacks --out", "apply lemon --help"),
    (DRAW + " --out {folder}", "", "", "folder", "a file"),
    (DRAW + " --out {train.tsv}/x", "", "", "train.tsv", "is a file"),
    (DRAW + " --out out.tsv --mode kn", "", "", "'kn'", "'knn'"),
    (DRAW + " --out out.tsv --corruption x", "", "", "'x'", "'bernoulli'"),
    (DRAW + " --out out.tsv --negatives 0", "", "", "negatives = 0", "at least 1"),
    (DRAW + " --out out.tsv --negatives 1000000000000", "", "", "not enough memory", "less at once"),
    (DRAW + " --out out.tsv --mix 2", "", "", "mix = 2.0", "from 0"),
    (DRAW + " --out out.tsv --seed -1", "", "", "seed = -1", "from 0 to 4294967295"),
    (FIT, "plain.txt", "text\n", "no labels", "columns text and label"),
    (FIT, "empty.csv", "", "empty.csv", "columns text and label"),
    (FIT, "head.csv", "text,label\n", "head.csv", "columns text and label"),
    (FIT, "columns.csv", "sentence,label\na,b\n", "no 'text'", "columns text and label"),
    (FIT, "unlabelled.csv", "text\na\n", "no 'label'", "columns text and label"),
    (FIT, "semicolons.csv", "text;label\na;b\n", "no 'text'", "columns text and label"),
    (FIT, "short.csv", "text,label\na,b\nc\n", "row 2", "columns text and label"),
    (FIT, "bad.jsonl", '{"text": "a", "label": 1}\n{\n', "line 2", "one object a line"),
    (FIT, "list.jsonl", "[1]\n", "line 1", "one object a line"),
    (FIT, "deep.jsonl", "[" * 100_000, "line 1", "one object a line"),
    (FIT, "long.csv", "text,label\n" + "a" * (2**24 + 1) + ",b\n", "long.csv", "columns text and label"),
    (FIT, "latin.csv", b"text,label\n\xe9,b\n", "not UTF-8", "iconv"),
    (FIT, "missing", "", "missing", "columns text and label"),
    (HELD_OUT, "few.csv", "text,label\na,a\nb,b\n", "2 texts", "at least 20"),
    (HELD_OUT, "other.csv", LABELLED.replace(",b", ",c"), "label 'c'", "the same labels"),
    (TEST, "few.txt", "a\nb\n", "2 texts", "at least 20"),
    (TEST, "empty.txt", "", "no texts", "one text a line"),
    (SUSPECTS, "empty.txt", "\n\n", "no texts", "one text a line"),
    (SUSPECTS, "columns.csv", "sentence\na\n", "no 'text'", "columns text"),
    (SUSPECTS, "folder", "", "folder", "a readable text file"),
    (GNOME + " --pooling mean", "", "", "'mean'", "'cls'"),
    (GNOME + " --epochs x", "", "", "--epochs", "'x'"),
    (GNOME + " --classifier {missing}", "", "", "missing", "a model folder"),
    (GNOME + " --pretrained {folder}", "", "", "folder", "a model folder"),
    (SCORE, "", "", "lacks --out", "apply gnome_ood --help"),
    (SCORE + " --out {folder}", "", "", "folder", "a file"),
    (SCORE + " --out {lines.txt}/x", "", "", "lines.txt", "is a file"),
]  # fmt: skip


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize(
    ("words", "name", "content", "given", "expected"),
    WRONG,
    ids=[f"{row[0][:16]} {row[1] or row[0][-24:]}" for row in WRONG],
)
def test_one_line_that_names_what_was_given(
    words: str,
    name: str,
    content: str | bytes,
    given: str,
    expected: str,
    workplace: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    files = workplace.parent / "files"
    (files / "folder").mkdir(parents=True)
    for good, text in GOOD.items():
        (files / good).write_text(text, encoding="utf-8")
    if name not in ("", "folder", "missing"):
        (files / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for place in (*GOOD, "folder", "missing"):
        words = words.replace(f"{{{place}}}", str(files / place))
    status = main(words.replace("{file}", str(files / name)).split())
    out, err = capfd.readouterr()
    assert status == 2, out + err
    assert err.count("\n") == 1 and err.startswith("error: "), err
    assert given in err and expected in err, err
    assert list(workplace.iterdir()) == []


def test_the_good_files_are_good(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Else the table above would refuse them for another reason."""
    for name, text in GOOD.items():
        Path(name).write_text(text, encoding="utf-8")
    assert main(["audit", "fedglad", "--history", "rounds.json"]) == 0
    words = ["--train", "train.tsv", "--text", "text.tsv", "--encoder", "tfidf"]
    assert main(["audit", "lemon", *words, "--permutations", "2"]) in (0, 1)
    assert main(["apply", "lemon", *words, "--out", "drawn.tsv"]) == 0
    assert Path("drawn.tsv").stat().st_size > 0
