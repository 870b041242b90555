"""Public sentence sets: CLINC150 intents, Kim's sentence classification sets, the Python language reference.

Texts come back stripped, without empty and without repeated ones (case does not count), in file order.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from transfuse.data.folder import read_text
from transfuse.errors import UserError, did_you_mean

# The files of one folder do not share an encoding.
SENTENCE_SETS = {
    "stsa.binary.train": "utf-8",
    "stsa.binary.dev": "utf-8",
    "stsa.binary.test": "utf-8",
    "TREC.train.all": "windows-1252",
    "TREC.test.all": "ascii",
    "subj.all": "windows-1252",
    "rt-polarity.all": "windows-1252",
    "custrev.all": "ascii",
    "mpqa.all": "ascii",
}
CLINC_SPLITS = ("train", "val", "test", "oos_train", "oos_val", "oos_test")


@dataclass(frozen=True)
class Texts:
    """Texts and their labels, row by row."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def of(self, labels: Iterable[str]) -> Texts:
        """The rows with one of these labels."""
        wanted = set(labels)
        return self._rows(i for i, label in enumerate(self.labels) if label in wanted)

    def without(self, *others: Texts) -> Texts:
        """The rows whose text is in none of the others; case and spaces do not count."""
        seen = {_same(text) for other in others for text in other.texts}
        return self._rows(i for i, text in enumerate(self.texts) if _same(text) not in seen)

    def pick(self, rows: Iterable[int]) -> Texts:
        """The rows at these positions, in their order."""
        return self._rows(rows)

    def _rows(self, rows: Iterable[int]) -> Texts:
        chosen = [int(row) for row in rows]
        return Texts(tuple(self.texts[i] for i in chosen), tuple(self.labels[i] for i in chosen))


def unique(rows: Iterable[tuple[str, str]]) -> Texts:
    """Rows of (text, label) without empty and repeated texts; the first of equals stays."""
    kept: dict[str, tuple[str, str]] = {}
    for text, label in rows:
        text = " ".join(text.split())
        if text:
            kept.setdefault(_same(text), (text, label))
    return Texts(tuple(text for text, _ in kept.values()), tuple(label for _, label in kept.values()))


def sentence_set(name: str) -> Texts:
    """One file of the set sent-conv: lines of a label, a space, and a text.

    SST-2 is stsa.binary.* (1 = positive), customer reviews custrev.all (1 = positive), question types TREC.*.all
    (0 DESC, 1 ENTY, 2 ABBR, 3 HUM, 4 LOC, 5 NUM), subj.all (0 = subjective), mpqa.all, rt-polarity.all.
    """
    if name not in SENTENCE_SETS:
        hint = did_you_mean(name, SENTENCE_SETS) or f"one of {', '.join(SENTENCE_SETS)}"
        raise UserError(f"unknown sentence set {name!r}", fix=hint)
    lines = read_text("sent-conv", name, SENTENCE_SETS[name]).split("\n")  # splitlines would also cut at \x85
    return unique((line[2:], line[0]) for line in lines if line.strip())


def clinc150(split: str) -> Texts:
    """One split of CLINC150: train, val, test (150 intents), or oos_train, oos_val, oos_test (label "oos")."""
    if split not in CLINC_SPLITS:
        raise UserError(f"unknown split {split!r} of CLINC150", f"one of {', '.join(CLINC_SPLITS)}")
    return unique((text, intent) for text, intent in json.loads(read_text("clinc150", "data_full.json"))[split])


def python_topics() -> Texts:
    """Sentences of the Python language reference, labelled by topic; code blocks and headings are left out."""
    tree = ast.parse(read_text("pydoc-topics", "topics.py"))
    literal = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    topics: dict[str, str] = ast.literal_eval(literal)
    return unique((sentence, topic) for topic, text in sorted(topics.items()) for sentence in prose_sentences(text))


def prose_sentences(text: str, least: int = 5, most: int = 60) -> list[str]:
    """Sentences of plain-text documentation with `least` to `most` words; indented blocks and lists are left out."""
    sentences = []
    for block in re.split(r"\n\s*\n", text):
        if block.startswith((" ", "\t", "*", "+", "|", ">>>", "=", "-")) or "::=" in block:
            continue
        sentences += [
            sentence
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(block.split()))
            if least <= len(sentence.split()) <= most and sentence.endswith((".", "!", "?"))
        ]
    return sentences


def respelled(text: str) -> str:
    """A text in the spelling of SST-2, MR and SUBJ: lower case, punctuation and clitics set apart, brackets named.

    The control for background shift: a detector that sees the spelling only must lose by it.
    """
    text = re.sub(r"\s?n ?'t\b", " n't", text.lower())  # don't, does n 't, can 't -> do n't, does n't, ca n't
    text = re.sub(r"(?<=\w)('(?:s|re|ve|ll|d|m))\b", r" \1", text)
    text = re.sub(r"(\.{2,}|--+|``|''|\.(?=\s|$)|,(?!\d)|[!?;:()\[\]\"&$%])", r" \1 ", text)
    text = text.replace("(", "-lrb-").replace(")", "-rrb-")
    return " ".join(text.split())


def _same(text: str) -> str:
    return " ".join(text.lower().split())
