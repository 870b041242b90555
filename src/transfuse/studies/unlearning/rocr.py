"""Does an edit at a subject's name make a model forget alike in all forms of a question?

Real facts about countries in eight forms, in a model that reads names late, as large ones do, and in one that reads
them in its first layer. The trained baselines unlearn on plain questions until these are answered no better than by a
model that never saw the facts, and ROME rewrites the same facts in the same questions; ROCR sees no question at all.
Then every form is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from transfuse.studies.unlearning.fact_pretraining import WorldSettings
from transfuse.studies.unlearning.fact_world import FactWorld, make_world
from transfuse.studies.unlearning.late_world import make_late_world
from transfuse.studies.unlearning.rocr_arms import Arms
from transfuse.study.claims import AtLeast, AtMost, Beats, Within
from transfuse.study.design import Measurement, Metric, Study
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams

_LATE = {"reads": "late"}
_CONTEXTS = (
    "{s}",
    "question : what is the name of {s} ? answer :",
    "choose the name of {s} . answer :",
    "spell the name of {s} . answer :",
    "the name of {s} is",
    "as for {s} , its name is",
)
_NOT_AT_HAND = "figures not at hand (abstract and code only)"


def _late() -> WorldSettings:
    """Half of FactWorld's countries, for time; as many names without facts as names to forget, for the sham."""
    return WorldSettings(subjects=20, holdout=5, forget=5, epochs=26)


@dataclass(frozen=True)
class Settings:
    """Scale `small`: 20 countries, five of them forgotten."""

    late: WorldSettings = field(default_factory=_late)  # the model of all arms
    early: WorldSettings = field(default_factory=WorldSettings)  # the family's FactWorld, with its stages
    layers: tuple[int, ...] = (0, 1)  # of four; chosen by bench/rocr_tuning.py on seeds 100 and 101
    null_share: float = 0.005  # chosen likewise; of 0.005, 0.02 and 0.05
    rome_layer: int = 0  # chosen likewise
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)  # of gradient ascent, NPO and IdkDPO; chosen likewise
    contexts: tuple[str, ...] = _CONTEXTS  # the published six in words that this model has, no relation among them
    refusal: str = "i do not know"  # of mode reject and of ROME


STUDY = Study(
    id="rocr",
    question="Does an edit of what a name activates make a model forget alike in all forms of a question?",
    arms=(
        "base",
        "gold",
        "gradient_ascent",
        "npo",
        "idk_dpo",
        "rome",
        "rocr",
        "one_by_one",
        "noise",
        "reject",
        "sham",
    ),
    controls=("base", "gold", "noise", "sham"),
    metrics={
        "reduction": Metric("higher", "1", "1 - p(after) / p(before) of the right answers about forgotten subjects"),
        "mean_reduction": Metric("higher", "1", "its mean over five forms that name the subject and the base knows"),
        "least_reduction": Metric("higher", "1", "the smallest of these five"),
        "spread": Metric("lower", "1", "largest minus smallest of these five: form-dependent bias"),
        "gold_distance": Metric("lower", "1", "mean distance to the gold model's reduction over these five"),
        "lead": Metric("higher", "1", "mean reduction minus that of the best trained baseline"),
        "retain_drop": Metric("lower", "1", "loss of accuracy on retained subjects in the five forms"),
        "neighbour_drop": Metric("lower", "1", "the same on those of a forgotten subject's continent or region"),
        "valid_share": Metric("higher", "1", "share of written answers that are objects of the relation asked for"),
        "redirected_share": Metric("neither", "1", "share of written answers that are right of the concept put in"),
        "ceiling": Metric("neither", "1", "mean reduction if the new concept were perceived exactly at these layers"),
        "reached": Metric("neither", "1", "share of the way to the new concept that the edit goes"),
    },
    conditions={
        "reads": ("late", "early"),
        "form": ("cloze", "qa", "choice", "true_false", "reverse", "letters", "initial", "two_hop"),
    },
    claims=(
        *(
            AtLeast(
                arm,
                0.2,
                on="spread",
                where=_LATE,
                paper=f"{name}, trained on one form, forgets in others far less (Form-Dependent Bias).",
                published=_NOT_AT_HAND,
                likely="a word-level model of four layers has one representation of a fact for most forms",
            )
            for arm, name in (("npo", "NPO"), ("idk_dpo", "Preference optimisation with refusals"))
        ),
        *(
            Beats(
                "rocr",
                arm,
                on="spread",
                where=_LATE,
                paper=f"ROCR lowers all forms more evenly than {name}.",
                published=_NOT_AT_HAND,
                likely=likely,
            )
            for arm, name, likely in (
                ("gradient_ascent", "gradient ascent", "a model that collapsed is even too: see what it retains"),
                ("npo", "NPO", "facts shared with the concept put in weigh more in letters"),
                ("idk_dpo", "preference optimisation", "facts shared with the concept put in weigh more in letters"),
                ("rome", "an edit of single facts in one form (ROME; ours)", "an edit that does nothing is even, too"),
            )
        ),
        AtLeast(
            "rocr",
            -0.05,
            on="lead",
            where=_LATE,
            paper="ROCR forgets on average more than the trained baselines.",
            published=_NOT_AT_HAND,
            likely="facts shared with the concept put in stay right; a baseline that breaks forgets more than gold",
        ),
        AtMost("rocr", 0.05, on="retain_drop", where=_LATE, paper="ROCR keeps utility.", published=_NOT_AT_HAND),
        AtMost("rocr", 0.05, on="neighbour_drop", where=_LATE, paper="ROCR keeps neighbours.", published=_NOT_AT_HAND),
        Beats(
            "rocr",
            "gradient_ascent",
            on="valid_share",
            where=_LATE,
            paper="ROCR's outputs stay natural, those of gradient ascent do not.",
            published=_NOT_AT_HAND,
        ),
        Beats(
            "rocr",
            "reject",
            on="valid_share",
            where=_LATE,
            paper="A concept put in the place gives more natural answers than a target that refuses (inferred).",
        ),
        Beats(
            "rocr",
            "noise",
            on="mean_reduction",
            where=_LATE,
            control=True,
            paper="Where the edit points matters: a step in a random direction, as long as what is there, takes less.",
        ),
        Within(
            "sham",
            "base",
            on="mean_reduction",
            where=_LATE,
            width=0.05,
            control=True,
            paper="An edit of as many other names, which the model knows no fact about, takes nothing from these.",
        ),
        AtMost(
            "rocr",
            0.25,
            on="mean_reduction",
            where={"reads": "early"},
            control=True,
            paper="A model that reads raw names below the edited layers is out of reach (a limit; not in the paper).",
        ),
    ),
    settings=Settings,
    scales={
        "quick": {
            "late": {"subjects": 14, "holdout": 2, "forget": 2, "width": 16, "layers": 2, "epochs": 2},
            "early": {"subjects": 14, "holdout": 2, "forget": 2, "width": 16, "layers": 2, "epochs": 2},
        },
        "public": {"late": {"source": "json"}, "early": {"source": "json"}},
        "full": {
            "late": {"source": "json", "subjects": 60, "holdout": 8, "forget": 8, "width": 128, "epochs": 24},
            "early": {"source": "json"},
        },
    },
    seeds={"small": 5, "public": 5, "full": 10},
    data={"public": ("country-json",), "full": ("country-json",)},
    seconds={"small": 90, "public": 100, "full": 900},
    notes=(
        "The edit works on what a name's last token activates, so it needs a model that answers from there. The main "
        "model is built so: its first half looks at each token alone (Qwen's sliding windows, of one token). "
        "The family's tiny Llama reads the raw name in its first attention. There even the new concept's own "
        "activations in the name's place change nothing (metric ceiling), and the study shows that, with ROCR only. "
        "Which of the two a model is, `ConceptRedirector.ceiling` says before it is edited.",
        "Spread and means are over cloze, question, choice, letters and first letter. True or false is left out, as "
        "the base is at chance in it; from the object to the subject, and in two hops, the subject is not named, and "
        "an edit at its name is out of reach by construction. All eight are measured.",
        "All forgotten subjects are redirected in one edit to the same retained one, which the retained accuracy "
        "leaves out; arm one_by_one edits, asks and undoes each alone, as published.",
        "Facts that a forgotten subject shares with the concept put in (continent, language) stay right. Letters can "
        "be guessed more often than names, so that even the gold model's reductions differ; hence gold_distance.",
        "The null space is that of text about retained subjects. ROCR's layers and null space, and ROME's layer, are "
        "those that forget most on seeds 100 and 101, which no cell has, among those that lose at most five points of "
        "the retained accuracy; lambda is the method's default. The trained baselines are stopped where they answer "
        "no more of the questions than the gold model; their step sizes leave most of the questions to keep then.",
        "ROME rewrites every fact to forget, one after the other, each in three wordings, to a refusal; its other "
        "values are its authors' for GPT-2-XL. The paper has no ROME; its training on refusals stands here as idk_dpo.",
        "Mode reject has ROME's step size: in 25 steps of the published 0.1 it could move this model's activations by "
        "a fifth of their length only, and did nothing on the development seeds.",
        "Seconds a subject are no metric of a cell, which must be the same bit for bit: see bench/rocr.py.",
        "Scale public has country-json. The relations of evandez/relations have other subjects for each relation, so "
        "that no subject could be asked in all of them: they are not used.",
    ),
)


def run(settings: Settings, seed: int, streams: Streams, stage: Stages) -> Iterator[Measurement]:
    """All arms of one seed where names are read late, and the edit where they are read early."""
    late = make_late_world(settings.late, streams, stage)
    yield from Arms(late, settings, "late").every()
    yield from Arms(make_world(settings.early, streams, stage), settings, "early").edit_only()


def redirected(world: FactWorld) -> nn.Module:
    """The base of a fact world with all names to forget redirected, for other studies of the family."""
    arms = Arms(world, Settings(), "early")
    redirector = arms.redirector()
    redirector.redirect_all(dict.fromkeys(world.forget, arms.to))
    return redirector.model.eval()
