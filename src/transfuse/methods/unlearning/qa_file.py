"""Questions with their answers from a JSONL file: what to forget, what to keep.

One object a line: "question" (or "prompt") and "answer", and as far as known "subject", "relation", "paraphrases" (of
the question), "perturbed" (wrong answers), "options" (of a choice, the answer among them), and "forms", the same fact
asked in other ways: ``{"reverse": {"prompt": "Whose capital is Paris?", "answer": "France"}}``.

>>> row = QARow("What is the capital of France?", "Paris", subject="France")
>>> row.asked()
(('question', 'What is the capital of France?', 'Paris'),)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfuse.atomic import write_text
from transfuse.errors import UserError, did_you_mean
from transfuse.user_file import read_utf8

ASKED = "question"  # the form in which "question" and "answer" stand
_LINE = 'one object a line with "question" and "answer"'
_TEXTS = ("subject", "relation")
_LISTS = ("paraphrases", "perturbed", "options")
_KNOWN = ("question", "prompt", "answer", *_TEXTS, *_LISTS, "forms")


@dataclass(frozen=True)
class QARow:
    """One fact, as a question with its answer.

    Attributes:
        prompt: what the model is given.
        answer: what it should, or should no longer, go on with.
        subject: whom the fact is about; empty if not known.
        relation: what is said of the subject; empty if not known.
        paraphrases: other wordings of the question.
        perturbed: wrong answers of the same kind.
        options: of a choice, the answer among them; empty for an open question.
        forms: name -> (prompt, answer): the same fact asked in other ways.
    """

    prompt: str
    answer: str
    subject: str = ""
    relation: str = ""
    paraphrases: tuple[str, ...] = ()
    perturbed: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    forms: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def asked(self) -> tuple[tuple[str, str, str], ...]:
        """The fact in every form it has: (form, prompt, answer), the question first."""
        return ((ASKED, self.prompt, self.answer), *((name, *pair) for name, pair in self.forms.items()))


def read_qa(path: Path | str) -> list[QARow]:
    """The rows of a JSONL file, in its order; blank lines are left out.

    Raises:
        UserError: the file is missing, empty, not JSONL, or a row lacks or misspells something.
    """
    text = read_utf8(path, f"a JSONL file, {_LINE}")
    rows = [_row(path, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise UserError(f"{str(path)!r} holds no questions", _LINE)
    return rows


def write_qa(rows: Sequence[QARow], path: Path | str) -> None:
    """Write rows so that `read_qa` returns them; the file is whole or not there."""
    lines = []
    for row in rows:
        given: dict[str, Any] = {"question": row.prompt, "answer": row.answer}
        given |= {name: getattr(row, name) for name in (*_TEXTS, *_LISTS) if getattr(row, name)}
        if row.forms:
            given["forms"] = {
                name: {"prompt": prompt, "answer": answer} for name, (prompt, answer) in row.forms.items()
            }
        lines.append(json.dumps(given, ensure_ascii=False))
    write_text(Path(path), "\n".join(lines) + "\n")


def _row(path: Path | str, number: int, line: str) -> QARow:
    where = f"line {number} of {str(path)!r}"
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        item = None
    if not isinstance(item, dict):
        raise UserError(f"{where} is not a JSON object", _LINE)
    for key in item:
        close = did_you_mean(key, _KNOWN)
        if key not in _KNOWN and close and not _has(item, close):
            raise UserError(f"{where} has {key!r}", f"some of {', '.join(_KNOWN)}", close)
    prompt = item.get("question", item.get("prompt"))
    if prompt is None or item.get("answer") is None:
        found = ", ".join(map(str, item)) or "nothing"
        raise UserError(f"{where} has {found}", '"question" (or "prompt") and "answer"')
    answer = _text(where, "answer", item["answer"])
    options = _texts(where, "options", item.get("options"))
    if options and answer not in options:
        raise UserError(f"{where}: the answer {answer!r} is none of its options", "the answer among the options")
    return QARow(
        prompt=_text(where, "question", prompt),
        answer=answer,
        subject=_text(where, "subject", item.get("subject") or "", empty=True),
        relation=_text(where, "relation", item.get("relation") or "", empty=True),
        paraphrases=_texts(where, "paraphrases", item.get("paraphrases")),
        perturbed=_texts(where, "perturbed", item.get("perturbed")),
        options=options,
        forms=_forms(where, item.get("forms")),
    )


def _has(item: Mapping[str, Any], hint: str) -> bool:
    """Whether what a misspelt key was meant to be is there too: then it is a column of the user's own."""
    return any(f"'{name}'" in hint for name in item)


def _text(where: str, name: str, value: Any, empty: bool = False) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # calling codes, years
    if not isinstance(value, str) or not (empty or value.strip()):
        raise UserError(f"{where}: {name} is {_shown(value)}", "a text")
    return value.strip()


def _texts(where: str, name: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise UserError(f"{where}: {name} is {_shown(value)}", "a list of texts")
    return tuple(_text(where, name, part) for part in value)


def _forms(where: str, value: Any) -> dict[str, tuple[str, str]]:
    if value is None:
        return {}
    expected = 'forms as {name: {"prompt": ..., "answer": ...}}'
    if not isinstance(value, dict):
        raise UserError(f"{where}: forms is {_shown(value)}", expected)
    forms = {}
    for name, pair in value.items():
        if not isinstance(pair, dict) or not {"prompt", "answer"} <= set(pair):
            raise UserError(f"{where}: form {name!r} is {_shown(pair)}", expected)
        if name == ASKED or not name.strip():
            raise UserError(f"{where}: a form is called {name!r}", f"another name than {ASKED!r}")
        prompt, answer = (_text(where, f"{part} of form {name!r}", pair[part]) for part in ("prompt", "answer"))
        forms[name] = (prompt, answer)
    return forms


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
