"""The detection tasks of the GNOME study: ID texts with classes, and foreign texts by shift and data set."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from transfuse.data.docstrings import docstring_corpus
from transfuse.data.text import Texts, clinc150, python_topics, respelled, sentence_set
from transfuse.study.streams import Stream

Labelled = tuple[tuple[str, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Task:
    """One classifier's world.

    Attributes:
        name: of the ID data.
        train: ID texts and classes 0 .. C-1 to fine-tune on and to fit the Gaussians on.
        validation: unseen ID texts: best epoch, normalisation, thresholds.
        inside: unseen ID test texts.
        foreign: foreign test texts by (shift, data set); never used for fitting anything.
    """

    name: str
    train: Labelled
    validation: Labelled
    inside: Labelled
    foreign: Mapping[tuple[str, str], tuple[str, ...]]


@dataclass(frozen=True)
class Sizes:
    """Texts per part; classes are drawn evenly as far as they reach."""

    train: int
    validation: int
    test: int


def docstring_task(sizes: Sizes, split: Stream, most: int | None = None) -> Task:
    """Subjects of SciPy's docstrings; all shifts from installed libraries."""
    corpus = docstring_corpus(most)
    parts = _even(corpus.inside, (sizes.train, sizes.validation, sizes.test, sizes.test), split.child("inside"))
    train, validation, inside, again = parts
    foreign = {
        ("background", "other_libraries"): _some(corpus.background, sizes.test, split.child("background")),
        ("semantic", "other_subjects"): _some(corpus.semantic, sizes.test, split.child("semantic")),
        ("cross_task", "standard_library"): _some(corpus.cross_task, sizes.test, split.child("cross")),
        ("same_distribution", "held_out"): again.texts,
    }
    return _task("docstrings", train, validation, inside, foreign)


def sst2_task(sizes: Sizes, split: Stream) -> Task:
    """Sentiment of film reviews; the same labels for products (background), and other tasks altogether.

    Customer reviews come twice: as they are, and in SST-2's spelling. rt-polarity is the source of SST-2.
    """
    (train,) = _even(sentence_set("stsa.binary.train"), (sizes.train,), split.child("train"))
    dev = sentence_set("stsa.binary.dev").without(train)
    (validation,) = _even(dev, (sizes.validation,), split.child("dev"))
    test = sentence_set("stsa.binary.test").without(train, validation)
    (inside,) = _even(test, (sizes.test,), split.child("test"))
    reviews = _some(sentence_set("custrev.all"), sizes.test, split.child("custrev"))
    used = {respelled(text) for part in (train, validation, inside) for text in part.texts}
    source = sentence_set("rt-polarity.all")
    source = source.pick(i for i, text in enumerate(source.texts) if respelled(text) not in used)
    others = {
        "trec": sentence_set("TREC.train.all"),
        "clinc": clinc150("test"),
        "pydoc": python_topics(),
        "subj_objective": sentence_set("subj.all").of("1"),
        "mpqa": sentence_set("mpqa.all"),
    }
    foreign = {
        ("background", "custrev"): reviews,
        ("background_respelled", "custrev"): tuple(respelled(text) for text in reviews),
        ("same_distribution", "rt_polarity"): _some(source, sizes.test, split.child("rt")),
        **{("cross_task", name): _some(texts, sizes.test, split.child(name)) for name, texts in others.items()},
    }
    return _task("sst2", train, validation, inside, foreign)


def trec_task(sizes: Sizes, split: Stream) -> Task:
    """Three question types, drawn at random, against the other three."""
    test = sentence_set("TREC.test.all")
    learn = sentence_set("TREC.train.all").without(test)
    everything = Texts(learn.texts + test.texts, learn.labels + test.labels)
    known, unknown = _halves(everything, split.child("classes"))
    train, validation, inside = _even(known, (sizes.train, sizes.validation, sizes.test), split.child("rows"))
    return _task(
        "trec", train, validation, inside, {("semantic", "trec"): _some(unknown, sizes.test, split.child("ood"))}
    )


def clinc_task(sizes: Sizes, split: Stream) -> Task:
    """75 intents, drawn at random, against the other 75."""
    known, _ = _halves(clinc150("train"), split.child("classes"))
    intents = set(known.labels)
    (train,) = _even(known, (sizes.train,), split.child("train"))
    (validation,) = _even(clinc150("val").of(intents).without(known), (sizes.validation,), split.child("val"))
    test = clinc150("test").without(known)
    (inside,) = _even(test.of(intents), (sizes.test,), split.child("test"))
    unknown = test.of(set(test.labels) - intents)
    return _task(
        "clinc", train, validation, inside, {("semantic", "clinc"): _some(unknown, sizes.test, split.child("ood"))}
    )


def _task(
    name: str, train: Texts, validation: Texts, inside: Texts, foreign: Mapping[tuple[str, str], tuple[str, ...]]
) -> Task:
    codes = {label: code for code, label in enumerate(sorted(set(train.labels)))}

    def coded(part: Texts) -> Labelled:
        return part.texts, tuple(codes[label] for label in part.labels)

    return Task(name, coded(train), coded(validation), coded(inside), foreign)


def _halves(texts: Texts, stream: Stream) -> tuple[Texts, Texts]:
    """The rows of a random half of the classes, and the rest."""
    classes = sorted(set(texts.labels))
    chosen = {classes[i] for i in stream.numpy().permutation(len(classes))[: len(classes) // 2]}
    return texts.of(chosen), texts.of(set(classes) - chosen)


def _even(texts: Texts, sizes: Sequence[int], stream: Stream) -> list[Texts]:
    """Disjoint random parts in which classes appear evenly as far as they reach.

    Classes that run out leave their room to the others; every class gives the same share to every part, so that
    all parts have the same mixture.
    """
    rng = stream.numpy()
    total = sum(sizes)
    rows = {label: [i for i, own in enumerate(texts.labels) if own == label] for label in sorted(set(texts.labels))}
    queues = [[group[i] for i in rng.permutation(len(group))] for group in rows.values()]
    order: list[int] = []  # round robin over classes, until all are used up
    for turn in range(max(len(queue) for queue in queues)):
        order += [queue[turn] for queue in queues if turn < len(queue)]
    chosen = np.array(order[:total])
    shuffled = chosen[rng.permutation(len(chosen))]
    if len(shuffled) < total:  # a small corpus: keep the proportions of the parts
        sizes = [size * len(shuffled) // total for size in sizes]
    ends = np.cumsum([0, *sizes])
    return [texts.pick(shuffled[a:b]) for a, b in itertools.pairwise(ends)]


def _some(texts: Texts, count: int, stream: Stream) -> tuple[str, ...]:
    rows = stream.numpy().permutation(len(texts))[:count]
    return texts.pick(rows).texts
