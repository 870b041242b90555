"""Filters of conversations beside an unlearned model: by name, by likeness, by training, and by what is being put
together. Each gives a conversation a score, higher for more suspicious; a threshold comes from benign conversations.

>>> filters = [TermFilter(["Chad"])]
>>> [float(TermFilter(["Chad"]).scores([[said(text)]])[0]) for text in ("Is c-h-á-d large?", "Such advice!")]
[1.0, 0.0]
>>> threshold_at([0.1, 0.2, 0.3, 0.9], rate=0.25)  # of five conversations alike, one lies above it in the mean
0.9
"""

from __future__ import annotations

import math
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from transfuse.errors import UserError
from transfuse.methods.unlearning.concepts import Concepts
from transfuse.methods.unlearning.context_ladder import Message, Wording
from transfuse.methods.unlearning.horn_rules import NOT, Closure, negated

Conversation = Sequence[Message]  # a reply that is to be judged is its last message
Encode = Callable[[list[str]], ArrayLike]  # texts -> vectors (texts, d)
Extract = Callable[[str], Iterable[tuple[str, str]]]  # a text -> pairs of an entity and an axiom said of it


def said(text: str, role: str = "user") -> Message:
    """A message."""
    return {"role": role, "content": text}


class ContentFilter(ABC):
    """Scores conversations; higher is more suspicious."""

    name: str

    @abstractmethod
    def scores(self, conversations: Sequence[Conversation]) -> np.ndarray:
        """One score a conversation, (conversations,)."""


class TermFilter(ContentFilter):
    """1 where a term stands in any message, else 0. Case and accents do not matter, nor signs between its letters.

    Args:
        terms: names, aliases, or answers.
        roles: whose messages are read; ("assistant",) makes it a check of replies.
    """

    def __init__(
        self, terms: Sequence[str], *, roles: Sequence[str] = ("user", "assistant"), name: str = "terms"
    ) -> None:
        words = sorted({folded(term).strip() for term in terms} - {""}, key=len, reverse=True)
        if not words:
            raise UserError("no terms", "at least one name")
        spread = [r"[\W_]*".join(map(re.escape, re.sub(r"[\W_]+", "", word))) for word in words]
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(spread)})(?!\w)")
        self.roles, self.name = tuple(roles), name

    def scores(self, conversations: Sequence[Conversation]) -> np.ndarray:
        """1 where a term stands, (conversations,)."""
        return np.array([
            float(any(self._pattern.search(folded(m["content"])) for m in c if m["role"] in self.roles))
            for c in conversations
        ])  # fmt: skip


def folded(text: str) -> str:
    """Lower case, without accents."""
    plain = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in plain if not unicodedata.combining(letter)).casefold()


class SimilarityFilter(ContentFilter):
    """Largest cosine of any message, or of all together, with any description of what is forbidden.

    Args:
        descriptions: texts about the forbidden things.
        encode: a sentence encoder; None takes TF-IDF of three to five characters.
    """

    def __init__(self, descriptions: Sequence[str], encode: Encode | None = None, *, name: str = "similarity") -> None:
        if not descriptions:
            raise UserError("no descriptions", "at least one text about what is forbidden")
        self._encode = encode or _character_grams(descriptions)
        self._targets = _unit(self._encode(list(descriptions)))
        self.name = name

    def scores(self, conversations: Sequence[Conversation]) -> np.ndarray:
        """Largest cosine, (conversations,)."""
        windows = [[*(m["content"] for m in c), whole_text(c)] for c in conversations]
        texts = sorted({text for own in windows for text in own})
        likeness = _unit(self._encode(texts)) @ self._targets.T  # (texts, descriptions)
        largest = dict(zip(texts, likeness.max(axis=1), strict=True))
        return np.array([max(largest[text] for text in own) for own in windows])


def whole_text(conversation: Conversation) -> str:
    """All messages one after another."""
    return " ".join(message["content"] for message in conversation)


def _character_grams(descriptions: Sequence[str]) -> Encode:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit(list(descriptions))
    return lambda texts: vectoriser.transform(texts).toarray()


def _unit(vectors: ArrayLike) -> np.ndarray:
    rows = np.asarray(vectors, dtype=np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


class ClassifierFilter(ContentFilter):
    """Logistic regression on three to five characters of the whole conversation.

    Args:
        attacks: conversations to block.
        benign: conversations to let pass.
    """

    def __init__(
        self, attacks: Sequence[Conversation], benign: Sequence[Conversation], *, name: str = "classifier"
    ) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        if not attacks or not benign:
            raise UserError(f"{len(attacks)} attacks and {len(benign)} benign conversations", "some of both")
        grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5))
        self._model = make_pipeline(grams, LogisticRegression(max_iter=1000, class_weight="balanced"))
        labels = np.repeat([1, 0], [len(attacks), len(benign)])
        self._model.fit([whole_text(c) for c in (*attacks, *benign)], labels)
        self.name = name

    def scores(self, conversations: Sequence[Conversation]) -> np.ndarray:
        """Log odds of an attack, (conversations,)."""
        return np.asarray(self._model.decision_function([whole_text(c) for c in conversations]), dtype=np.float64)


class ClosureFilter(ContentFilter):
    """How completely a conversation has put a forbidden thing together, whatever it is called.

    Facts are taken from all messages and closed under the rules. The score of a thing is the share of its identifying
    atoms that are known of one entity, less the share whose opposite is; the largest over things and entities counts.

    Args:
        concepts: the things and the rules.
        extract: text -> (entity, axiom) pairs; None takes all axioms that a text mentions as said of one entity.
        identifying: forbidden name -> sets of atoms that give it away; all its axioms unless said.
        wording: how negations are written, for the default `extract`.
    """

    def __init__(
        self,
        concepts: Concepts,
        extract: Extract | None = None,
        *,
        identifying: Mapping[str, Sequence[Sequence[str]]] | None = None,
        wording: Wording | None = None,
        name: str = "closure",
    ) -> None:
        self.rules, self.name = concepts.rules, name
        self.extract = extract or mentioned(concepts, wording or Wording())
        sets = [s for x in concepts.forbidden for s in (identifying or {}).get(x, (concepts.axioms(x),))]
        self._for = [self._bits(atoms) for atoms in sets]
        self._against = [self._bits([negated(atom) for atom in atoms]) for atoms in sets]

    def _bits(self, atoms: Sequence[str]) -> int:
        return sum(1 << place for place in {self.rules.place(atom) for atom in atoms})

    def watch(self) -> Watch:
        """A new conversation, to be followed message by message."""
        return Watch(self)

    def scores(self, conversations: Sequence[Conversation]) -> np.ndarray:
        """How complete, -1 to 1, (conversations,)."""
        found = []
        for conversation in conversations:
            watch = self.watch()
            found.append(max((watch.hear(message["content"]) for message in conversation), default=0.0))
        return np.array(found)

    def completeness(self, known: int) -> float:
        """Of the thing that a bitset of atoms comes closest to."""
        return max(
            ((known & own).bit_count() - (known & other).bit_count()) / own.bit_count()
            for own, other in zip(self._for, self._against, strict=True)
        )


class Watch:
    """One conversation under a closure filter; a message costs what it adds."""

    def __init__(self, owner: ClosureFilter) -> None:
        self.owner = owner
        self.entities: dict[str, Closure] = {}

    def hear(self, text: str) -> float:
        """Take in a message; returns the score of the conversation so far."""
        for entity, atom in self.owner.extract(text):
            if entity not in self.entities:
                self.entities[entity] = self.owner.rules.start()
            self.entities[entity].add(atom)
        return max((self.owner.completeness(state.known) for state in self.entities.values()), default=0.0)


def mentioned(concepts: Concepts, wording: Wording) -> Extract:
    """All axioms that stand in a text, in either word, as said of one entity: the conversation's.

    >>> from transfuse.data.attribute_table import AttributeTable
    >>> objects = {"a": frozenset(["big"]), "b": frozenset()}
    >>> table = AttributeTable(objects, ("big",), (("t", ("big",)),), {"big": "vast"})
    >>> list(mentioned(Concepts(table, ("a",)), Wording())("It is not vast."))
    [('', 'not big')]
    """
    words = {
        word: axiom for axiom in concepts.table.axioms for word in (axiom, concepts.table.synonyms.get(axiom, axiom))
    }
    forms = {wording.negation.format(axiom=word): NOT + axiom for word, axiom in words.items()} | words
    choices = "|".join(map(re.escape, sorted((folded(form) for form in forms), key=len, reverse=True)))
    pattern = re.compile(rf"(?<!\w)(?:{choices})(?!\w)")
    atoms = {folded(form): atom for form, atom in forms.items()}
    return lambda text: [("", atoms[found]) for found in pattern.findall(folded(text))]


def threshold_at(benign: ArrayLike, rate: float) -> float:
    """The score above which a conversation is blocked, so that benign ones are at most at `rate` in expectation.

    Args:
        benign: scores of benign conversations, (n,).
        rate: false alarms that are accepted, over 0 and under 1; fewer than 1 / rate - 1 scores block nothing.
    """
    values = np.sort(np.asarray(benign, dtype=np.float64))
    if not 0.0 < rate < 1.0 or not len(values):
        raise UserError(f"rate {rate} with {len(values)} benign conversations", "a share over 0 and under 1, and some")
    place = math.ceil((len(values) + 1) * (1 - rate)) - 1  # the next benign score is as likely to have any rank
    return float(values[place]) if place < len(values) else math.inf


def guarded(
    ask: Callable[[list[Message]], str],
    filters: Sequence[tuple[ContentFilter, float]],
    refusal: str = "I cannot talk about this.",
) -> Callable[[list[Message]], str]:
    """`ask` behind filters: what one of them scores above its threshold is refused, question or reply.

    Args:
        ask: messages -> a text.
        filters: each with its threshold.
        refusal: the reply instead.
    """

    def blocked(conversation: Conversation) -> bool:
        return any(float(f.scores([conversation])[0]) > threshold for f, threshold in filters)

    def answer(messages: list[Message]) -> str:
        if blocked(messages):
            return refusal
        reply = ask(messages)
        return refusal if blocked([*messages, said(reply, "assistant")]) else reply

    return answer
