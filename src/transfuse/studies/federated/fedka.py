"""Does aligning clients with a target domain that the server holds help the target, and which block does it?

Each domain in turn is the unlabelled target, the others are a client each: scikit-learn's digits under four fixed
shifts, at scale `public` Office-Caltech10. Half of the target adapts, the other half is only scored. All arms of a seed
share domains, split, initial weights and batch order. Beside it, the audit of the Group Effect is asked to find a
client whose labels were shuffled among clients of one domain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from transfuse.studies.federated.fedka_arms import Arms, audit_arms
from transfuse.studies.federated.fedka_worlds import domains_of, make_world
from transfuse.study.claims import AtLeast, AtMost, Beats, Within
from transfuse.study.design import Measurement, Metric, Study
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams

_OWN = {"statistics": "own"}
_STEEP = "the ramp reaches full strength within 20 short rounds; the notebook takes 200 rounds of 64 batches for it"
_ALIKE = "clients start each round from one model, so their errors agree and their mean is smoother than a vote"
_SCALE_FREE = (
    "Adam takes steps of one length whatever the loss is multiplied by, so the ramp does not soften early votes"
)


@dataclass(frozen=True)
class Settings:
    """Scale `small`: digits in four domains, five seeds in a few minutes."""

    source: str = "digits"  # "office" needs the data folder
    targets: tuple[str, ...] = ("inverted", "rotated")  # the two without a near neighbour among the other domains
    rounds: int = 20  # twenty is the least that the audit takes
    last: int = 5  # accuracy is the mean over these last rounds
    hidden: int = 64  # as wide as a digit has pixels
    width: int = 32  # of the embedding
    dropout: float = 0.3  # the protocol's, for small sets
    rate: float = 1e-2  # best for FedAvg on held-out source examples of other seeds, for both data sets
    batch: int = 16  # notebook
    steps: int = 8  # a third of a client's examples a round
    vote_steps: int = 8  # half of the adaptation half a round
    workspace: int = 128  # steps times batch
    proximal: float = 0.01  # FedProx's own smallest recommended weight
    secondary: bool = True  # sharing modes, gating, FedProx, pooled data
    source_statistics: bool = False  # repeat FedAvg and FedKA with the target standardised by source statistics
    audit_clients: int = 5  # of one domain, for the audit
    audit_rounds: int = 20  # the least that the audit takes


STUDY = Study(
    id="fedka",
    question="Does aligning clients with an unlabelled target at the server help the target, and which block does it?",
    arms=(
        "fedavg",
        "fdann",
        "fdan",
        "fedka_novote",
        "fedavg_vote",
        "fdann_vote",
        "fdan_vote",
        "fedka",
        "fedka_averaged",
        "fedka_official",
        "self_training",
        "shuffled_votes",
        "noise_target",
        "fedka_embeddings",
        "fdan_stats",
        "fedka_gated",
        "fedprox",
        "fedka_prox",
        "pooled",
        "clean_clients",
        "shuffled_client",
    ),
    controls=("fedavg", "self_training", "shuffled_votes", "noise_target", "clean_clients"),
    metrics={
        "accuracy": Metric("higher", "1", "on the target's held-out half, mean over the last rounds (never the best)"),
        "accuracy_last": Metric("higher", "1", "the same in the last round alone"),
        "ge": Metric("higher", "1", "Group Effect: accuracy of the aggregate minus mean client, mean over rounds"),
        "ge_negative": Metric("higher", "1", "mean of the rounds' Group Effects where negative, 0 elsewhere"),
        "ge_mean": Metric("higher", "1", "as ge, of the plain mean of the clients before any fine-tuning"),
        "ge_best": Metric("higher", "1", "accuracy of the aggregate minus that of the best client, mean over rounds"),
        "vote_accuracy": Metric("higher", "1", "of the majority of the uploaded models, over the last rounds"),
        "vote_over_clients": Metric("higher", "1", "vote_accuracy minus the accuracy of the mean client"),
        "vote_over_average": Metric("higher", "1", "vote_accuracy minus the accuracy of the averaged model"),
        "harm": Metric("neither", "1", "accuracy gained without the most harmful client, as the audit measures it"),
        "harm_margin": Metric("higher", "1", "harm of the shuffled client minus the largest harm of another"),
        "flagged": Metric("neither", "1", "share of federations in which the audit names a harmful client"),
        "named": Metric("higher", "1", "share of federations in which the shuffled client is ranked first"),
    },
    conditions={
        "target": (
            "blurred",
            "inverted",
            "plain",
            "rotated",
            "amazon",
            "caltech",
            "dslr",
            "webcam",
        ),
        "statistics": ("own", "source"),
    },
    claims=(
        Beats(
            "fedka",
            "fedavg",
            on="accuracy",
            where=_OWN,
            paper="FedKA is better than FedAvg on the target (broadcast of the fine-tuned model, as the text implies).",
            published="+8.8 points on Digit-Five, +3.5 on Office-Caltech10, +0.7 on Amazon Review",
            likely=_SCALE_FREE,
        ),
        Beats(
            "fedka_official",
            "fedavg",
            on="accuracy",
            where=_OWN,
            paper="FedKA is better than FedAvg on the target (as in the published notebook, with its slip).",
            published="+8.8 points on Digit-Five, +3.5 on Office-Caltech10, +0.7 on Amazon Review",
        ),
        Beats(
            "fdann",
            "fedavg",
            on="accuracy",
            where=_OWN,
            paper="Block A, the feature disentangler, adds to FedAvg.",
            likely=_STEEP,
        ),
        Beats(
            "fedka_novote",
            "fdann",
            on="accuracy",
            where=_OWN,
            paper="Block B, embedding matching, adds to block A.",
        ),
        Beats(
            "fedka",
            "fedka_novote",
            on="accuracy",
            where=_OWN,
            paper="Block D, federated voting, adds to blocks A and B.",
            likely=_SCALE_FREE,
        ),
        AtLeast(
            "fedka",
            0.0,
            on="vote_over_clients",
            where=_OWN,
            paper="The vote is more accurate on the target than the average client.",
        ),
        AtLeast(
            "fedka",
            0.0,
            on="vote_over_average",
            where=_OWN,
            paper="The vote is more accurate on the target than the averaged model.",
            likely=_ALIKE,
        ),
        Beats(
            "fedka",
            "fedavg",
            on="ge",
            where=_OWN,
            paper="FedKA reduces negative transfer: its Group Effect is larger than that of FedAvg.",
            published="about four times as large",
        ),
        Beats(
            "fedka_prox",
            "fedprox",
            on="accuracy",
            where=_OWN,
            scales=("small", "full"),
            paper="Knowledge alignment also helps other federated algorithms, here FedProx.",
            likely=_SCALE_FREE,
        ),
        Beats(
            "fedka",
            "fdan",
            on="accuracy",
            where=_OWN,
            paper="All blocks together are better than matching alone; else adversary and votes add nothing.",
        ),
        Beats(
            "fedka",
            "self_training",
            on="accuracy",
            where=_OWN,
            paper="FedKA is better than a server that trains FedAvg's average on its own pseudo-labels.",
        ),
        Beats(
            "fedavg_vote",
            "self_training",
            on="accuracy",
            where=_OWN,
            paper="Votes are better pseudo-labels than the averaged model's own.",
            likely=_ALIKE,
        ),
        Beats(
            "fedka",
            "shuffled_votes",
            on="accuracy",
            where=_OWN,
            control=True,
            paper="The votes carry knowledge: the same pseudo-labels on the wrong samples must do worse.",
        ),
        Beats(
            "fedka",
            "noise_target",
            on="accuracy",
            where=_OWN,
            control=True,
            paper="The target's structure matters: noise with its mean and spread in its place must do worse.",
        ),
        Within(
            "fedka_embeddings",
            "fedka",
            on="accuracy",
            where=_OWN,
            scales=("small", "full"),
            width=0.03,
            paper="Ours: sharing embeddings instead of target samples costs little.",
            likely="the adversary then moves the source's features only",
        ),
        Within(
            "fdan_stats",
            "fdan",
            on="accuracy",
            where=_OWN,
            scales=("small", "full"),
            width=0.03,
            paper="Ours: matching mean random features instead of embeddings costs little.",
        ),
        Beats(
            "fedka_gated",
            "fedka",
            on="accuracy",
            where=_OWN,
            scales=("small", "full"),
            paper="Ours: votes that are not unanimous are better left out.",
        ),
        AtLeast(
            "shuffled_client",
            0.0,
            on="harm_margin",
            where=_OWN,
            paper="Ours: leaving clients out one by one ranks the client with shuffled labels first.",
        ),
        AtMost(
            "clean_clients",
            0.02,
            on="harm",
            where=_OWN,
            control=True,
            paper="Ours: among clients of one domain with correct labels, leaving any one out gains nothing.",
        ),
        Beats(
            "fedka",
            "fedavg",
            on="accuracy",
            where={"statistics": "source"},
            scales=("public", "full"),
            paper="FedKA is better than FedAvg when the target is standardised by source statistics too.",
            likely=_SCALE_FREE,
        ),
    ),
    settings=Settings,
    scales={
        "quick": {
            "targets": ("rotated",),
            "rounds": 3,
            "last": 2,
            "hidden": 8,
            "width": 4,
            "steps": 8,
            "batch": 4,
            "vote_steps": 2,
            "workspace": 32,
            "audit_clients": 2,
        },
        "public": {
            "source": "office",
            "targets": ("amazon", "caltech", "dslr", "webcam"),
            "hidden": 128,
            "width": 64,
            "steps": 8,
            "vote_steps": 8,
            "secondary": False,
            "source_statistics": True,
        },
        "full": {
            "source": "office",
            "targets": ("amazon", "caltech", "dslr", "webcam"),
            "hidden": 128,
            "width": 64,
            "rounds": 40,
            "last": 10,
            "steps": 16,
            "vote_steps": 16,
            "workspace": 256,
            "source_statistics": True,
            "audit_rounds": 40,
        },
    },
    seeds={"small": 5, "public": 5, "full": 20},
    data={"public": ("office-caltech10-surf",), "full": ("office-caltech10-surf",)},
    seconds={"small": 60, "public": 120, "full": 600},
    notes=(
        "The target is known at training time: this is unsupervised domain adaptation, whatever the title says.",
        "The rate was chosen for FedAvg on held-out examples of the source domains, with seeds 100 and 101: of 1e-3, "
        "3e-3, 1e-2, 3e-2 for digits and of 3e-4, 1e-3, 3e-3, 1e-2 for Office-Caltech10. All arms use it; FedKA "
        "without votes, tuned alike on digits (1e-3, 3e-3, 1e-2), prefers the same. The alignment keeps the notebook's "
        "settings (ramp, weights, kernels): source examples cannot choose them, since they prefer no alignment.",
        "The adversary was seen to lower source accuracy on seed 100 at this length, also with pooled data and less "
        "with a flatter ramp, before the study was run; the ramp was left as it is.",
        "Target scores of that seed and of the example app (digits too) had been seen before the study was run, and "
        "the method's default broadcast was changed to the notebook's after them; the arm fedka names its own.",
        "The arms share raw target samples, as the notebook does, unless their name says otherwise.",
        "fedka broadcasts the fine-tuned model; fedka_averaged the average before it, as the notebook does; "
        "fedka_official has the notebook's accumulation of the matching loss besides.",
        "Rounds and local steps are fewer than the notebook's 200 and 32, and scale small has two targets of four, for "
        "time; both were fixed before any outcome was seen.",
        "pooled puts all source examples at one client with blocks A and B, which no federation may do.",
        "Digits: the domains are fixed transforms of disjoint images, so they differ in marginals and not in labels. "
        "Office-Caltech10: rows divided by their sum, columns z-scored within each domain, which uses statistics of "
        "all of the target; where statistics are the source's, z-scored once more by the clients' examples alone.",
        "Scale full is longer, not larger: Digit-Five with convolutions and pretrained features are not part of it.",
    ),
)


def run(settings: Settings, seed: int, streams: Streams, stage: Stages) -> Iterator[Measurement]:
    """All arms and targets of one seed."""
    data = domains_of(settings.source, streams)
    for target in settings.targets:
        world = make_world(data, target, settings, streams)
        yield from Arms(settings, world, streams, {"target": target, "statistics": "own"}).main()
        if settings.source_statistics:
            again = make_world(data, target, settings, streams, own_statistics=False)
            yield from Arms(settings, again, streams, {"target": target, "statistics": "source"}).pair()
    yield from audit_arms(data, settings, streams)
