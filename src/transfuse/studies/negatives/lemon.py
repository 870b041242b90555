"""Do negatives from text neighbourhoods help link prediction, or does any cluster of that size, or none at all?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from pykeen.models import Model
from pykeen.sampling import NegativeSampler
from scipy import stats

from transfuse.data.graphs import TextGraph, load_graph
from transfuse.methods.negatives.false_negative_audit import NegativeProfile, profile_all
from transfuse.methods.negatives.sampler_comparison import build_samplers
from transfuse.studies.negatives.link_prediction import (
    Ranking,
    Training,
    epochs_to,
    quiet_pykeen,
    rank_triples,
    settled_garbage,
    train_model,
)
from transfuse.studies.negatives.neighbourhood_stages import from_arrays, neighbourhood_maker
from transfuse.studies.negatives.text_stage import text_maker
from transfuse.study import AtMost, Beats, Measurement, Metric, Study, Trend, Within
from transfuse.study.design import Condition
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams

SAMPLERS = (
    "uniform",
    "bernoulli",
    "pseudo_typed",
    "random_clusters",
    "structure_knn",
    "text_knn",
    "lemon",
    "lemon_pure",
    "lemon_uniform",
)
CORE = ("uniform", "bernoulli", "random_clusters", "lemon", "lemon_uniform")
UNFILTERED = ("uniform", "pseudo_typed", "random_clusters", "text_knn", "lemon", "lemon_pure")


@dataclass(frozen=True)
class Tuned:
    """Learning rate and margin of one model, for the margin loss and for self-adversarial weighting."""

    lr: float  # of Adam, with the margin loss
    margin: float  # of the margin loss
    nssa_lr: float  # of Adam, with self-adversarial weighting
    nssa_margin: float  # gamma of that loss


@dataclass(frozen=True)
class Wordnet:
    """What differs on WN18RR, a graph three hundred times as large as UMLS."""

    models: tuple[str, ...] = ("distmult",)  # one product model; a run takes half a minute
    distmult: Tuned = field(default_factory=lambda: Tuned(0.01, 0.5, 0.01, 1.0))  # tuned on uniform, see notes
    transe: Tuned = field(default_factory=lambda: Tuned(0.01, 3.0, 0.01, 6.0))  # scale "full" only, as on UMLS
    dim: int = 64  # twice that of UMLS, for 300 times the entities
    epochs: int = 5  # two and a half minutes a seed
    batch_size: int = 1024  # 85 steps an epoch
    negatives: int = 8  # as on UMLS
    neighbours: int = 64  # as many as an average cluster holds
    structure_epochs: int = 5  # "briefly"
    test_triples: int = 500  # the first of the test file; ranking 3134 would double the time
    valid_triples: int = 200  # enough to see a curve
    evaluate_every: int = 1  # five points


@dataclass(frozen=True)
class Settings:
    graphs: tuple[str, ...] = ("umls",)  # bundled with PyKEEN
    models: tuple[str, ...] = ("transe", "distmult")  # a distance and a product
    transe: Tuned = field(default_factory=lambda: Tuned(0.01, 3.0, 0.01, 9.0))  # tuned on uniform, see notes
    distmult: Tuned = field(default_factory=lambda: Tuned(0.03, 0.5, 0.1, 1.0))  # tuned on uniform, see notes
    dim: int = 32  # 135 entities need no more
    epochs: int = 18  # where the validation curve of uniform negatives has become flat
    batch_size: int = 256  # 20 steps an epoch
    negatives: int = 8  # equal for all samplers, so that scores are as many
    mix: float = 0.5  # the default of the sampler
    nssa_temperature: float = 1.0  # alpha of Sun et al. 2019
    neighbours: int = 16  # an eighth of the entities
    structure_epochs: int = 8  # TransE of the structural control, "briefly"
    max_tokens: int = 64  # of a text; covers 99 % of WordNet's glosses
    unfiltered_models: tuple[str, ...] = ("transe",)  # one model shows what the filter does
    core_models: tuple[str, ...] = ("distmult",)  # the samplers that claims compare, for cost (WN18RR too)
    valid_triples: int = 200  # of the curve
    evaluate_every: int = 3  # eight points
    test_triples: int = 1_000_000  # all
    wordnet: Wordnet = field(default_factory=Wordnet)  # overrides for that graph
    device: str = "cpu"  # of the models; samplers draw on the processor


_FILTERED_TRANSE = {"model": "transe", "filtered": True, "graph": "umls"}
_FILTERED_DISTMULT = {"model": "distmult", "filtered": True, "graph": "umls"}
_LONG_TRANSE = {"model": "transe", "filtered": True, "graph": "umls-text"}
_LONG_DISTMULT = {"model": "distmult", "filtered": True, "graph": "umls-text"}
_WORDNET = {"model": "distmult", "filtered": True, "graph": "wn18rr-text"}
_PAPER = "abstract and section 1: negatives from text neighbourhoods improve link prediction over random ones"
_TEXT = "section 1: the gain comes from the textual neighbourhood (our control: clusters of the same sizes, no text)"
_SAME = "not of the paper: with mix 1 the sampler is uniform sampling, so that a difference would be ours"
_CONFOUND = "not of the paper: hard negatives of a dense graph are often true, and true negatives cost accuracy"
_FILTER = "not of the paper: masking known triples, the default of our sampler, should help"
_DENSE = "the graph is dense: text neighbours of a true tail are often true tails, and masking leaves few that teach"
_SPARSE = "5 epochs are too few for hard negatives to matter, or uniform negatives are still hard enough"

STUDY = Study(
    id="lemon",
    question="Do negatives from text neighbourhoods help link prediction, and is it the text that helps?",
    arms=(*SAMPLERS, "nssa_uniform", "all_samplers"),
    controls=("random_clusters", "lemon_uniform"),
    metrics={
        "mrr": Metric("higher", "1", "filtered mean reciprocal rank of test triples, both sides", per_sample=True),
        "hits_at_10": Metric("higher", "1", "share of test ranks up to 10"),
        "mean_rank": Metric("lower", "1", "mean filtered rank of test triples"),
        "valid_mrr": Metric("higher", "1", "filtered MRR of validation triples along training"),
        "epochs_to_95": Metric("lower", "epochs", "until 95 % of the final validation MRR of uniform negatives"),
        "fnr_train": Metric("lower", "1", "share of drawn negatives that are training triples, before filtering"),
        "fnr_held": Metric("lower", "1", "share of drawn negatives that are validation or test triples"),
        "hardness": Metric("higher", "1", "score of negatives minus that of their positives, by the uniform model"),
        "gradient_share": Metric("higher", "1", "share of negatives inside the margin of the uniform model"),
        "coverage": Metric("higher", "1", "entropy of the entities drawn, as a share of the greatest possible"),
        "fnr_correlation": Metric("neither", "1", "Spearman's rho of false negatives and MRR over samplers"),
    },
    conditions={
        "graph": ("umls", "umls-text", "wn18rr-text"),
        "model": ("transe", "distmult"),
        "filtered": (True, False),
    },
    claims=(
        Beats("lemon", "uniform", on="mrr", where=_FILTERED_TRANSE, paper=_PAPER, likely=_DENSE, scales=("small",)),
        Beats("lemon", "uniform", on="mrr", where=_FILTERED_DISTMULT, paper=_PAPER, likely=_DENSE, scales=("small",)),
        Beats("lemon", "bernoulli", on="mrr", where=_FILTERED_TRANSE, paper=_PAPER, likely=_DENSE, scales=("small",)),
        Beats(
            "lemon", "random_clusters", on="mrr", where=_FILTERED_TRANSE, paper=_TEXT, likely=_DENSE, scales=("small",)
        ),
        Beats(
            "lemon",
            "random_clusters",
            on="mrr",
            where=_FILTERED_DISTMULT,
            paper=_TEXT,
            likely=_DENSE,
            scales=("small",),
        ),
        Beats(
            "lemon",
            "uniform",
            on="epochs_to_95",
            where=_FILTERED_TRANSE,
            paper=_PAPER,
            likely=_DENSE,
            scales=("small",),
        ),
        Beats(
            "lemon",
            "random_clusters",
            on="gradient_share",
            where={"graph": "umls", "model": "transe"},
            paper=_TEXT,
            scales=("small",),
        ),
        Within("lemon_uniform", "uniform", on="mrr", width=0.02, where={"filtered": True}, control=True, paper=_SAME),
        AtMost(
            "all_samplers",
            0.0,
            on="fnr_correlation",
            where={"filtered": False, "model": "transe"},
            control=True,
            paper=_CONFOUND,
            scales=("small", "public"),
        ),
        Trend("lemon", "filtered", on="mrr", where={"model": "transe"}, control=True, paper=_FILTER, scales=("small",)),
        Beats("lemon", "uniform", on="mrr", where=_LONG_TRANSE, paper=_PAPER, likely=_DENSE, scales=("public",)),
        Beats("lemon", "uniform", on="mrr", where=_LONG_DISTMULT, paper=_PAPER, likely=_DENSE, scales=("public",)),
        Beats("lemon", "random_clusters", on="mrr", where=_LONG_TRANSE, paper=_TEXT, likely=_DENSE, scales=("public",)),
        Beats(
            "lemon", "random_clusters", on="mrr", where=_LONG_DISTMULT, paper=_TEXT, likely=_DENSE, scales=("public",)
        ),
        Beats("lemon", "uniform", on="mrr", where=_WORDNET, paper=_PAPER, likely=_SPARSE, scales=("public",)),
        Beats("lemon", "bernoulli", on="mrr", where=_WORDNET, paper=_PAPER, likely=_SPARSE, scales=("public",)),
        Beats("lemon", "random_clusters", on="mrr", where=_WORDNET, paper=_TEXT, likely=_SPARSE, scales=("public",)),
        Beats("lemon", "uniform", on="epochs_to_95", where=_WORDNET, paper=_PAPER, likely=_SPARSE, scales=("public",)),
    ),
    settings=Settings,
    scales={
        "quick": {
            "epochs": 2,
            "dim": 8,
            "batch_size": 1024,
            "evaluate_every": 1,
            "structure_epochs": 1,
            "valid_triples": 20,
            "test_triples": 50,
        },
        "public": {"graphs": ("umls-text", "wn18rr-text")},
        "full": {
            "graphs": ("wn18rr-text",),
            "wordnet": {
                "models": ("distmult", "transe"),
                "epochs": 200,
                "dim": 500,
                "negatives": 64,
                "test_triples": 3134,
            },
        },
    },
    seeds=5,
    data={"public": ("umls-text", "wn18rr-text"), "full": ("wn18rr-text",)},
    seconds={"quick": 10, "small": 60, "public": 150},
    notes=(
        "Encoder: all-MiniLM-L6-v2 from its wheel, first 64 tokens; clusters and neighbours are made once, seed 0.",
        "Learning rates and margins were chosen for uniform negatives by validation MRR (bench/lemon_tuning.py, "
        "seeds 100 and 101 on UMLS, 100 on WN18RR); every sampler then uses them unchanged. On WN18RR the "
        "self-adversarial arm was not tuned: it takes the margin of UMLS and the learning rate of the others.",
        "UMLS runs 18 epochs: cut from 24 for time, by the validation curve of uniform negatives, after the scores of "
        "one seed at 24 had been seen.",
        "On DistMult, and so on WN18RR, only the samplers that claims compare are trained.",
        "All samplers draw 8 negatives a positive. Filtering masks known triples, so that pool samplers are left with "
        "fewer to score on dense graphs: fnr_train says how many.",
        "Cost an epoch (claim 2 of the paper) is a time and hence no part of cells; bench/lemon.py measures it.",
        "At small, the text of an entity is its name in words; PyKEEN's copy of UMLS has no descriptions.",
        "WN18RR glosses often name the hypernym, so the text knows something of the answer.",
        "all_samplers is no sampler: its fnr_correlation relates false negatives and MRR over the other arms.",
    ),
)


def run(settings: Settings, seed: int, streams: Streams, stage: Stages) -> Iterator[Measurement]:
    """All samplers on all graphs and models of the settings; the sampler is the only thing that differs."""
    quiet_pykeen()
    for name in settings.graphs:
        graph, own = load_graph(name), _settings_on(name, settings)
        for model in own.models:
            yield from _run_model(graph, own, model, streams, stage, filtered=True)
            if model in own.unfiltered_models:
                yield from _run_model(graph, own, model, streams, stage, filtered=False)


def _settings_on(graph: str, settings: Settings) -> Settings:
    """The settings that hold on a graph: WN18RR has some of its own, and is run with the filter only."""
    if graph != "wn18rr-text":
        return settings
    return replace(settings, unfiltered_models=(), **vars(settings.wordnet))


def _samplers(
    graph: TextGraph, settings: Settings, stage: Stages, streams: Streams, filtered: bool
) -> dict[str, NegativeSampler]:
    text = stage(
        "lemon-text",
        text_maker(graph, settings.max_tokens),
        inputs={"graph": graph.name, "texts": _digest(graph.texts), "max_tokens": settings.max_tokens},
    )
    pools = stage(
        "lemon-neighbourhoods",
        neighbourhood_maker(graph, text["embeddings"], settings.neighbours, settings.structure_epochs),
        inputs={
            "graph": graph.name,
            "text": _digest((text["embeddings"].tobytes(), graph.train.tobytes())),
            "neighbours": settings.neighbours,
            "structure_epochs": settings.structure_epochs,
        },
    )
    count = len(graph.entities)
    return build_samplers(
        torch.from_numpy(graph.train),
        count,
        len(graph.relations),
        text_clusters=from_arrays(pools, "text_clusters", count),
        text_knn=from_arrays(pools, "text_knn", count),
        structure_knn=from_arrays(pools, "structure_knn", count),
        negatives=settings.negatives,
        mix=settings.mix,
        filtered=filtered,
        seed=streams.noise.child("permutation").integer(),
    )


def _digest(parts: Iterable[object]) -> str:
    return hashlib.sha256("\x00".join(map(str, parts)).encode()).hexdigest()[:16]


def _profiles(
    graph: TextGraph,
    samplers: dict[str, NegativeSampler],
    streams: Streams,
    margin: float,
    judge: Model,
) -> dict[str, NegativeProfile]:
    """What each sampler draws for the training triples (at most 10 000 of them), and how a model scores it."""
    train = torch.from_numpy(graph.train)
    chosen = torch.randperm(len(train), generator=streams.noise.child("audited").torch())[:10_000]
    return profile_all(
        {name: sampler.corrupt_batch for name, sampler in samplers.items()},
        train,
        torch.from_numpy(graph.held_out),
        len(graph.entities),
        len(graph.relations),
        audited=train[chosen],
        score=lambda triples: judge.score_hrt(triples.to(judge.device)).squeeze(-1).cpu(),
        margin=margin,
        seed=streams.noise.child("audit").integer(),
    )


def _run_model(
    graph: TextGraph, settings: Settings, model: str, streams: Streams, stage: Stages, filtered: bool
) -> Iterator[Measurement]:
    where: dict[str, Condition] = {"graph": graph.name, "model": model, "filtered": filtered}
    samplers = _samplers(graph, settings, stage, streams, filtered)
    tuned: Tuned = getattr(settings, model)
    test = torch.from_numpy(graph.test[: settings.test_triples])
    known = [torch.from_numpy(part) for part in (graph.train, graph.valid, graph.test)]
    profiles: dict[str, NegativeProfile] = {}
    mrr: dict[str, float] = {}
    target = 0.0
    arms = CORE if model in settings.core_models else SAMPLERS if filtered else UNFILTERED
    with settled_garbage():  # samplers, and with them the text encoder, have been made by now
        for arm in [*arms, "nssa_uniform"]:  # uniform first: it sets the target
            training = _training(settings, model, tuned, adversarial=arm == "nssa_uniform")
            sampler = samplers["uniform" if arm == "nssa_uniform" else arm]
            trained, curve = train_model(graph, sampler, training, streams, settings.valid_triples)
            if arm == "uniform":
                target = 0.95 * curve[-1][1]
                profiles = _profiles(graph, samplers, streams, tuned.margin, judge=trained)
            ranking = rank_triples(trained, test, known)
            mrr[arm] = ranking.mrr
            yield from _ranked(arm, ranking, where)
            yield Measurement(arm, "epochs_to_95", epochs_to(curve, target), where)
            yield from (Measurement(arm, "valid_mrr", value, where, step=epoch) for epoch, value in curve)
    if filtered:
        yield from _drawn(graph.name, model, profiles)
    shares = {name: p.fnr_held if filtered else p.fnr_train for name, p in profiles.items() if name in mrr}
    yield Measurement("all_samplers", "fnr_correlation", _spearman(shares, mrr), where)


def _training(settings: Settings, model: str, tuned: Tuned, adversarial: bool) -> Training:
    return Training(
        model=model,
        dim=settings.dim,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=tuned.nssa_lr if adversarial else tuned.lr,
        margin=tuned.margin,
        nssa_temperature=settings.nssa_temperature if adversarial else None,
        nssa_margin=tuned.nssa_margin,
        evaluate_every=settings.evaluate_every,
        device=settings.device,
    )


def _ranked(arm: str, ranking: Ranking, where: dict[str, Condition]) -> Iterator[Measurement]:
    yield Measurement(arm, "mrr", ranking.mrr, where, per_sample=ranking.reciprocal)
    yield Measurement(arm, "hits_at_10", ranking.hits(10), where)
    yield Measurement(arm, "mean_rank", ranking.mean_rank, where)


def _drawn(graph: str, model: str, profiles: dict[str, NegativeProfile]) -> Iterator[Measurement]:
    """What the samplers draw, which no filter and no training changes; hardness is judged by the uniform model."""
    where: dict[str, Condition] = {"graph": graph, "model": model}
    for arm, profile in profiles.items():
        yield Measurement(arm, "fnr_train", profile.fnr_train, where)
        yield Measurement(arm, "fnr_held", profile.fnr_held, where)
        yield Measurement(arm, "coverage", profile.coverage, where)
        assert profile.hardness is not None and profile.gradient_share is not None  # a judge was given
        yield Measurement(arm, "hardness", profile.hardness, where)
        yield Measurement(arm, "gradient_share", profile.gradient_share, where)


def _spearman(x: dict[str, float], y: dict[str, float]) -> float:
    """Rank correlation over the samplers; 0 where either does not vary."""
    first, second = [x[name] for name in x], [y[name] for name in x]
    if len(set(first)) < 2 or len(set(second)) < 2:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)
