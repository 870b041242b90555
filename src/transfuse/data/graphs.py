"""Knowledge graphs with entity text: UMLS as PyKEEN bundles it, two public sets, and TSV files of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transfuse.data.folder import read_text
from transfuse.errors import UserError, did_you_mean
from transfuse.user_file import read_utf8

Triple = tuple[str, str, str]


@dataclass(frozen=True)
class TextGraph:
    """Triples as ids, and a text for each entity.

    Ids are given by the training triples, in order of name. Held-out triples with an entity or relation that
    training never saw are left out (`unseen` counts them), as PyKEEN does: no embedding could rank them.

    Attributes:
        name: what the graph is called.
        train, valid, test: head, relation, tail. Shape (n, 3), int64.
        entities, relations: names by id.
        texts: text by entity id; None where there is none.
        unseen: number of held-out triples left out.
    """

    name: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    entities: tuple[str, ...]
    relations: tuple[str, ...]
    texts: tuple[str | None, ...]
    unseen: int = 0

    @property
    def held_out(self) -> np.ndarray:
        """Validation and test triples together. Shape (n, 3)."""
        return np.concatenate([self.valid, self.test])


def build_graph(
    name: str,
    train: Sequence[Triple],
    valid: Sequence[Triple] = (),
    test: Sequence[Triple] = (),
    texts: dict[str, str] | None = None,
) -> TextGraph:
    """A `TextGraph` from named triples; texts of entities that training never saw are ignored."""
    entities = sorted({end for head, _, tail in train for end in (head, tail)})
    relations = sorted({relation for _, relation, _ in train})
    entity_id = {entity: index for index, entity in enumerate(entities)}
    relation_id = {relation: index for index, relation in enumerate(relations)}

    def mapped(triples: Iterable[Triple]) -> np.ndarray:
        rows = [
            (entity_id[h], relation_id[r], entity_id[t])
            for h, r, t in triples
            if h in entity_id and t in entity_id and r in relation_id
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, 3)

    parts = mapped(train), mapped(valid), mapped(test)
    unseen = len(valid) + len(test) - len(parts[1]) - len(parts[2])
    known = tuple((texts or {}).get(entity) for entity in entities)
    return TextGraph(name, *parts, tuple(entities), tuple(relations), known, unseen)


def bundled_umls() -> TextGraph:
    """UMLS semantic network from the PyKEEN wheel; the text of an entity is its name in words."""
    from pykeen.datasets.umls import UMLS_TEST_PATH, UMLS_TRAIN_PATH, UMLS_VALIDATE_PATH

    parts = [read_triples(Path(path)) for path in (UMLS_TRAIN_PATH, UMLS_VALIDATE_PATH, UMLS_TEST_PATH)]
    names = {end for head, _, tail in parts[0] for end in (head, tail)}
    train, valid, test = parts
    return build_graph("umls", train, valid, test, {name: in_words(name) for name in names})


def described_umls() -> TextGraph:
    """UMLS with the long descriptions of the set umls-text."""
    return _public("umls-text", "entity2textlong.txt")


def wordnet() -> TextGraph:
    """WN18RR with lemma and gloss as entity text (set wn18rr-text). Glosses often name the hypernym."""
    return _public("wn18rr-text", "entity2text.txt")


def _public(set_id: str, text_file: str) -> TextGraph:
    parts = [parse_triples(read_text(set_id, f"{part}.tsv"), part) for part in ("train", "dev", "test")]
    train, valid, test = parts
    return build_graph(set_id, train, valid, test, parse_texts(read_text(set_id, text_file), text_file))


GRAPHS: dict[str, Callable[[], TextGraph]] = {
    "umls": bundled_umls,
    "umls-text": described_umls,
    "wn18rr-text": wordnet,
}


def load_graph(name: str) -> TextGraph:
    """A graph by name: umls (bundled), umls-text or wn18rr-text (data folder)."""
    if name not in GRAPHS:
        raise UserError(f"unknown graph {name!r}", f"one of {', '.join(GRAPHS)}", did_you_mean(name, GRAPHS))
    return GRAPHS[name]()


def in_words(name: str) -> str:
    """``amino_acid-sequence`` as ``amino acid sequence``."""
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def read_triples(path: Path | str) -> list[Triple]:
    """Triples of a TSV file: head, relation, tail, no header, UTF-8.

    Raises:
        UserError: the file cannot be read, is empty, or a line has not three columns.
    """
    return parse_triples(read_utf8(path, "a UTF-8 file, tab separated"), str(path))


def read_texts(path: Path | str) -> dict[str, str]:
    """Entity text of a TSV file: entity, then its text; UTF-8. Further tabs belong to the text.

    Raises:
        UserError: the file cannot be read, is empty, or a line has no tab.
    """
    return parse_texts(read_utf8(path, "a UTF-8 file, tab separated"), str(path))


def parse_triples(content: str, source: str) -> list[Triple]:
    """As `read_triples`, for content at hand; `source` is what errors call it. Repeated triples count once."""
    triples: dict[Triple, None] = {}
    for number, line in _lines(content):
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != 3 or not all(columns):
            raise UserError(
                f"{source}, line {number}: {len(columns)} columns", "head, relation and tail, separated by tabs"
            )
        triples[columns[0], columns[1], columns[2]] = None
    if not triples:
        raise UserError(f"{source} holds no triples", "one triple a line: head, relation, tail, separated by tabs")
    return list(triples)


def parse_texts(content: str, source: str) -> dict[str, str]:
    """As `read_texts`, for content at hand. An empty text counts as none; a second line of an entity is an error."""
    texts: dict[str, str] = {}
    for number, line in _lines(content):
        entity, tab, text = line.partition("\t")
        if not tab:
            raise UserError(f"{source}, line {number}: no tab", "an entity, a tab and its text")
        if entity in texts:
            raise UserError(f"{source}, line {number}: entity {entity!r} stands there twice", "one text an entity")
        texts[entity] = " ".join(text.split())
    if not texts:
        raise UserError(f"{source} holds no texts", "one entity a line: its name, a tab, its text")
    return {entity: text for entity, text in texts.items() if text}


def _lines(content: str) -> Iterable[tuple[int, str]]:
    lines = content.removeprefix("\ufeff").split("\n")  # not splitlines: texts may hold other line separators
    return ((number, line.rstrip("\r")) for number, line in enumerate(lines, start=1) if line.strip())
