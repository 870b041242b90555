"""Do negatives from text neighbourhoods help link prediction, or does any cluster of that size, or none at all?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from pykeen.models import ERModel
from pykeen.sampling import NegativeSampler
from scipy import stats

from transfuse.data.graphs import TextGraph, load_graph
from transfuse.methods.negatives.false_negative_audit import NegativeProfile, profile_all
from transfuse.methods.negatives.sampler_comparison import build_samplers
from transfuse.study import AtMost, Beats, Measurement, Metric, Study, Trend, Within
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams
from transfuse.studies.negatives.link_prediction import Ranking, Training, epochs_to, rank_triples, train_model
from transfuse.studies.negatives.neighbourhood_stages import from_arrays, neighbourhood_maker, text_maker

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
UNFILTERED = ("uniform", "pseudo_typed", "random_clusters", "text_knn", "lemon", "lemon_pure")

_FILTERED_TRANSE = {"model": "transe", "filtered": True, "graph": "umls"}
_FILTERED_DISTMULT = {"model": "distmult", "filtered": True, "graph": "umls"}
_LONG_TRANSE = {"model": "transe", "filtered": True, "graph": "umls-text"}
_LONG_DISTMULT = {"model": "distmult", "filtered": True, "graph": "umls-text"}
_WORDNET = {"model": "distmult", "filtered": True, "graph": "wn18rr-text"}
_PAPER = "abstract and section 1: negatives from text neighbourhoods improve link prediction over random ones"
_TEXT = "section 1: the gain comes from the textual neighbourhood (our control: clusters of the same sizes, no text)"
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
        Beats("lemon", "random_clusters", on="mrr", where=_FILTERED_TRANSE, paper=_TEXT, likely=_DENSE, scales=("small",)),
        Beats("lemon", "random_clusters", on="mrr", where=_FILTERED_DISTMULT, paper=_TEXT, likely=_DENSE, scales=("small",)),
        Beats("lemon", "uniform", on="epochs_to_95", where=_FILTERED_TRANSE, paper=_PAPER, likely=_DENSE, scales=("small",)),
        Beats("lemon", "random_clusters", on="gradient_share", where={"graph": "umls", "model": "transe"}, paper=_TEXT, scales=("small",)),
        Within("lemon_uniform", "uniform", on="mrr", width=0.02, where={"filtered": True}, control=True),
        AtMost("all_samplers", 0.0, on="fnr_correlation", where={"filtered": False, "model": "transe"}, control=True),
        Trend("lemon", "filtered", on="mrr", where={"model": "transe"}, control=True, scales=("small",)),
        Beats("lemon", "uniform", on="mrr", where=_LONG_TRANSE, paper=_PAPER, likely=_DENSE, scales=("public",)),
        Beats("lemon", "uniform", on="mrr", where=_LONG_DISTMULT, paper=_PAPER, likely=_DENSE, scales=("public",)),
        Beats("lemon", "random_clusters", on="mrr", where=_LONG_TRANSE, paper=_TEXT, likely=_DENSE, scales=("public",)),
        Beats("lemon", "random_clusters", on="mrr", where=_LONG_DISTMULT, paper=_TEXT, likely=_DENSE, scales=("public",)),
        Beats("lemon", "uniform", on="mrr", where=_WORDNET, paper=_PAPER, likely=_SPARSE, scales=("public",)),
        Beats("lemon", "bernoulli", on="mrr", where=_WORDNET, paper=_PAPER, likely=_SPARSE, scales=("public",)),
        Beats("lemon", "random_clusters", on="mrr", where=_WORDNET, paper=_TEXT, likely=_SPARSE, scales=("public",)),
        Beats("lemon", "uniform", on="epochs_to_95", where=_WORDNET, paper=_PAPER, likely=_SPARSE, scales=("public",)),
    ),
    settings="SETTINGS",
    seeds=5,
)
