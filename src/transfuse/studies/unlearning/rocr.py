"""Does an edit at a subject's name make a model forget alike in all forms of a question?

Real facts about countries (FactWorld) in eight forms. The trained baselines unlearn on plain questions until these are
answered no better than by a model that never saw the facts, and ROME rewrites the same facts in the same questions; ROCR
sees no question at all. Then every form is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from transfuse.studies.unlearning.fact_pretraining import WorldSettings
from transfuse.studies.unlearning.fact_world import make_world
from transfuse.studies.unlearning.rocr_arms import Arms
from transfuse.studies.unlearning.unlearned_models import unlearned_model
from transfuse.study.claims import AtLeast, AtMost, Beats, Within
from transfuse.study.design import Measurement, Metric, Study
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams

_NOT_AT_HAND = "figures not at hand (abstract and code only)"


@dataclass(frozen=True)
class Settings:
    """Scale `small`: 40 countries, six of them forgotten."""

    world: WorldSettings = field(default_factory=WorldSettings)  # shared by the family, so that stages are shared
    layers: tuple[int, ...] = (0, 1)  # of four; chosen by bench/rocr_tuning.py on seeds 100 and 101
    rome_layer: int = 1  # chosen likewise
    contexts: tuple[str, ...] = (  # the published six in words that this model has, no relation among them
        "{s}",
        "question : what is the name of {s}",
        "choose the name of {s}",
        "spell the name of {s}",
        "the name of {s}",
        "as for {s}",
    )
    refusal: str = "i do not know"  # of mode reject and of ROME


STUDY = Study(
    id="rocr",
    question="Does an edit of what a name activates make a model forget alike in all forms of a question?",
    arms=(
        "base",
        "gold",
        "gradient_ascent",
        "grad_diff",
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
        "form": ("cloze", "qa", "choice", "true_false", "reverse", "letters", "initial", "two_hop"),
    },
    claims=(
        *(
            AtLeast(
                arm,
                0.2,
                on="spread",
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
                paper=f"ROCR lowers all forms more evenly than {name}.",
                published=_NOT_AT_HAND,
                likely=likely,
            )
            for arm, name, likely in (
                ("gradient_ascent", "gradient ascent", "a model that collapsed is even too: see what it retains"),
                ("npo", "NPO", "attention below the edited layers reads the raw name, more in some forms"),
                ("idk_dpo", "preference optimisation", "attention below the edited layers reads the raw name"),
                ("rome", "an edit of single facts in one form (ROME; our comparison)", "as above"),
            )
        ),
        AtLeast(
            "rocr",
            -0.05,
            on="lead",
            paper="ROCR forgets on average more than the trained baselines.",
            published=_NOT_AT_HAND,
            likely="a shallow model leaks the raw name past the edit, see the ceiling; shared objects stay right",
        ),
        AtMost("rocr", 0.05, on="retain_drop", paper="ROCR keeps utility.", published=_NOT_AT_HAND),
        AtMost("rocr", 0.05, on="neighbour_drop", paper="ROCR keeps neighbours.", published=_NOT_AT_HAND),
        Beats(
            "rocr",
            "gradient_ascent",
            on="valid_share",
            paper="ROCR's outputs stay natural, those of gradient ascent do not.",
            published=_NOT_AT_HAND,
        ),
        Beats(
            "rocr",
            "reject",
            on="valid_share",
            paper="A concept put in the place gives more natural answers than a target that refuses (inferred).",
        ),
        Beats(
            "rocr",
            "noise",
            on="valid_share",
            control=True,
            paper="... and than a random direction of the length of what is there (inferred).",
        ),
        Within(
            "sham",
            "base",
            on="mean_reduction",
            width=0.05,
            control=True,
            paper="An edit of as many other names, which the model knows no fact about, takes nothing from these.",
        ),
    ),
    settings=Settings,
    scales={
        "quick": {
            "world": {"subjects": 14, "holdout": 2, "forget": 2, "width": 16, "layers": 2, "epochs": 2},
        },
        "public": {"world": {"source": "json"}},
        "full": {"world": {"source": "json", "subjects": 60, "holdout": 8, "forget": 8, "width": 128}},
    },
    seeds={"small": 5, "public": 5, "full": 10},
    data={"public": ("country-json",), "full": ("country-json",)},
    seconds={"small": 60, "public": 100, "full": 600},
    notes=(
        "Spread and means are over cloze, question, choice, letters and first letter. True or false is left out, as the "
        "base is at chance in it; from the object to the subject, and in two hops, the subject is not named, and an "
        "edit at its name is out of reach by construction. All eight are measured.",
        "All forgotten subjects are redirected in one edit to the same retained one, which the retained accuracy leaves "
        "out; arm one_by_one edits, asks and undoes each alone, as published.",
        "Facts that a forgotten subject shares with the concept put in (continent, language) stay right.",
        "The null space is that of text about retained subjects. The layers of ROCR and of ROME are those that forget "
        "most on seeds 100 and 101, which no cell has, among those that keep 95 % of the retained accuracy; the null "
        "space and lambda are the method's defaults; trained baselines have values tuned on these seeds too.",
        "ROME rewrites 36 facts one after the other, each in three wordings, to a refusal; its other values are its "
        "authors' for GPT-2-XL. The paper has no ROME; its refusals by training stand here as idk_dpo.",
        "Gradient ascent is stopped at the same forgetting of questions as the others, earlier than published runs.",
        "Seconds a subject are no metric of a cell, which must be the same bit for bit: see bench/rocr.py.",
        "Scale public has country-json. The relations of evandez/relations have other subjects for each relation, so "
        "that no subject could be asked in all of them: they are not used.",
    ),
)


def run(settings: Settings, seed: int, streams: Streams, stage: Stages) -> Iterator[Measurement]:
    """All arms of one seed."""
    world = make_world(settings.world, streams, stage)
    yield from Arms(world, settings).every(lambda method: unlearned_model(world, method, stage))
