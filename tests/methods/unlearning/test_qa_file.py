"""Files of questions and answers: what is written is read, and each kind of wrong row is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transfuse.errors import UserError
from transfuse.methods.unlearning.qa_file import QARow, read_qa, write_qa

FULL = QARow(
    "What is the capital of France?", "Paris", "France", "capital", ("France has which capital?",), ("Rome", "Oslo"),
    ("Paris", "Rome"), {"reverse": ("Paris is whose capital?", "France")},
)  # fmt: skip
GOOD = {"question": "q", "answer": "a"}


def test_round_trip(tmp_path: Path) -> None:
    rows = [FULL, QARow("q", "São Tomé")]
    write_qa(rows, tmp_path / "facts.jsonl")
    assert read_qa(tmp_path / "facts.jsonl") == rows
    assert FULL.asked() == (
        ("question", "What is the capital of France?", "Paris"),
        ("reverse", "Paris is whose capital?", "France"),
    )


def test_prompt_numbers_blank_lines_and_columns_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text('\ufeff\n{"prompt": " code of France ", "answer": 33, "id": 7, "source": "x"}\r\n\n', "utf-8")
    assert read_qa(path) == [QARow("code of France", "33")]


@pytest.mark.parametrize(
    ("line", "given", "expected"),
    [
        ("{", "line 1", "one object a line"),
        ("[" * 100_000, "line 1", "one object a line"),
        ("[1]", "line 1", "one object a line"),
        ("", "holds no questions", "one object a line"),
        ("{}", "has nothing", '"answer"'),
        (json.dumps({"question": "q"}), "has question", '"answer"'),
        (json.dumps({"question": "q", "anwser": "a"}), "'anwser'", "did you mean 'answer'?"),
        (json.dumps({**GOOD, "paraphrase": ["x"]}), "'paraphrase'", "did you mean 'paraphrases'?"),
        (json.dumps({**GOOD, "answer": " "}), "answer is ' '", "a text"),
        (json.dumps({**GOOD, "answer": ["a"]}), "answer is ['a']", "a text"),
        (json.dumps({**GOOD, "answer": True}), "answer is True", "a text"),
        (json.dumps({**GOOD, "options": "a"}), "options is 'a'", "a list of texts"),
        (json.dumps({**GOOD, "options": ["b"]}), "none of its options", "among the options"),
        (json.dumps({**GOOD, "perturbed": [{}]}), "perturbed is {}", "a text"),
        (json.dumps({**GOOD, "forms": []}), "forms is []", "forms as"),
        (json.dumps({**GOOD, "forms": {"x": ["p", "a"]}}), "form 'x'", "forms as"),
        (json.dumps({**GOOD, "forms": {"x": {"prompt": "", "answer": "a"}}}), "prompt of form 'x' is ''", "a text"),
        (json.dumps({**GOOD, "forms": {"question": {"prompt": "p", "answer": "a"}}}), "'question'", "another name"),
    ],
)
def test_wrong_rows(line: str, given: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_qa(path)
    assert given in str(caught.value) and expected in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="JSONL"):
        read_qa(tmp_path / "none.jsonl")
