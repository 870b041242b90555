"""FactWorld's base model, unlearned by each method at matched forgetting: what all studies of the family audit.

Every method sees the same questions to forget and to keep, each fact in the three wordings of the question form that
training has. It is stopped at the first step at which it answers no more of the questions to forget than the gold model
does, and 5 points. One that never gets there is taken as it is in the end, and said to be unmatched.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from transfuse.data.fact_forms import HELD_OUT, Item
from transfuse.methods.unlearning import (
    adapter_composition,
    eul_adapters,
    grad_diff,
    grad_kl,
    gradient_ascent,
    idk_dpo,
    in_context,
    kga,
    npo,
    reinforced_contrast,
    rmu,
    simnpo,
    task_vector,
)
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.unlearning_methods import METHODS, make_config, unlearn
from transfuse.studies.unlearning.fact_world import FactWorld
from transfuse.study.stage import Stages

# Methods are called by name. They are imported here so that a change of one makes stages and cells stale.
CODE = (
    adapter_composition, eul_adapters, grad_diff, grad_kl, gradient_ascent, idk_dpo, in_context, kga, npo,
    reinforced_contrast, rmu, simnpo, task_vector,
)  # fmt: skip
TOLERANCE = 0.05  # share of questions to forget that may be answered beyond the gold model's
# Steps of the gradient methods go on after the match, to see what becomes of a model that is not stopped in time.
GOES_ON = ("gradient_ascent", "grad_diff", "grad_kl", "npo", "npo_alone", "simnpo", "idk_dpo", "rmu", "retain_only")
# Arms that are a method with other settings. "retain_only" is the control that trains as much without a forget term.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "retain_only": ("grad_diff", {"gamma": 0.0}),
    "npo_alone": ("npo", {"retain": "none", "alpha": 0.0}),
}
# Chosen by bench/unlearning_tuning.py on seeds 100 and 101: at the match, the most questions to keep are answered.
TUNED: Mapping[str, Mapping[str, Any]] = {
    "gradient_ascent": {"rate": 3e-4},
    "grad_diff": {"rate": 1e-3},
    "grad_kl": {"rate": 1e-3},
    "npo": {"rate": 1e-3},
    "npo_alone": {"rate": 3e-4},
    "simnpo": {"rate": 1e-2},
    "idk_dpo": {"rate": 1e-2},
    "rmu": {"rate": 3e-3},
    "eul": {"rate": 1e-2},
    # Small models that are as sure of what they were taught as the base is: else the gap is closed from the start.
    "kga": {"rate": 1e-2, "small_steps": 150, "small_rate": 3e-3},
    "task_vector": {"rate": 1e-2},
    "adapter_negation": {"rate": 3e-2},
    "reinforced_contrast": {"rate": 3e-3},
}


@dataclass
class Matching:
    """Watches a model as it is unlearned, and keeps it as it is at the first match.

    Attributes:
        world: whose questions are asked.
        target: share of questions to forget that counts as forgotten.
        to_end: whether the method goes on after the match.
        step: of the match, from 1; 0 if there was none.
        state: weights at the match.
    """

    world: FactWorld
    target: float
    to_end: bool
    step: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.asked = self.world.encode(self.world.ask(self.world.forget, "qa"))

    def __call__(self, step: int, model: nn.Module) -> bool:
        """Called after each step; True ends the method."""
        if self.step or self.world.share_known(model, self.asked) > self.target:
            return False
        self.step, self.state = step, plain_state(model)
        return not self.to_end


def tuned(method: str) -> dict[str, Any]:
    """The settings of a method in all studies of the family."""
    return dict(TUNED.get(method, TUNED.get(VARIANTS.get(method, ("", {}))[0], {})))


def questions(world: FactWorld, subjects: tuple[str, ...]) -> list[EncodedAnswer]:
    """The facts of some subjects as questions, in every wording of training."""
    return world.encode([item for wording in range(HELD_OUT) for item in world.ask(subjects, "qa", wording=wording)])


def plain_state(model: Any) -> dict[str, Tensor]:
    """The weights of a model, adapters merged, without the tied head."""
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    return {name: value.detach().clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}


def target(world: FactWorld) -> float:
    """Share of questions to forget at which a model counts as having forgotten."""
    return world.accuracy(world.model("gold"), world.ask(world.forget, "qa")) + TOLERANCE


def run_method(
    world: FactWorld, method: str, options: Mapping[str, Any], on_step: Callable[[int, nn.Module], bool] | None
) -> nn.Module:
    """Unlearn a fresh copy of the base."""
    name, own = VARIANTS.get(method, (method, {}))
    options = {**options, **own}
    extra = {"unseen": questions(world, world.holdout)} if method == "kga" else {}
    return unlearn(
        name, world.model("base"), world.tokenizer, questions(world, world.forget), questions(world, world.retain),
        make_config(name, options), seed=world.streams.order.child("unlearning").integer(), on_step=on_step, **extra,
    )  # fmt: skip


def unlearned_state(world: FactWorld, method: str, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights at the match, and under "step" when that was; under "end/..." those after all steps if it went on."""
    matching = Matching(world, target(world), method in GOES_ON)
    last = run_method(world, method, options, matching)
    end = plain_state(last)
    found = {f"match/{name}": value for name, value in (matching.state or end).items()}
    if method in GOES_ON:
        found |= {f"end/{name}": value for name, value in end.items()}
    return {**found, "step": torch.tensor(matching.step)}


@dataclass(frozen=True)
class Unlearned:
    """What a method made of the base.

    Attributes:
        model: at the match, or at the end if there was none.
        end: after all steps, where the method goes on after the match.
        step: of the match, from 1; 0 if there was none.
    """

    model: nn.Module
    end: nn.Module | None
    step: int


def unlearn_matched(world: FactWorld, method: str, stage: Stages) -> Unlearned:
    """A method's result at matched forgetting, from the stage cache where it lies there."""
    if method not in METHODS and method not in VARIANTS:
        raise ValueError(f"method {method!r} is none of {', '.join([*METHODS, *VARIANTS])}")
    options = tuned(method)
    found = stage(
        f"unlearned_{method}", functools.partial(unlearned_state, world, method, options),
        inputs={**world.identity(), "method": method, "options": options},
    )  # fmt: skip
    end = {name.removeprefix("end/"): value for name, value in found.items() if name.startswith("end/")}
    match = {name.removeprefix("match/"): value for name, value in found.items() if name.startswith("match/")}
    return Unlearned(world.load(match), world.load(end) if end else None, int(found["step"]))


def unlearned_model(world: FactWorld, method: str, stage: Stages) -> nn.Module:
    """The base unlearned by a method at matched forgetting, in evaluation mode."""
    return unlearn_matched(world, method, stage).model


def held_out(world: FactWorld, subjects: tuple[str, ...], form: str = "qa") -> list[Item]:
    """Questions about some subjects in the wording that nobody trained on."""
    return world.ask(subjects, form, wording=HELD_OUT)
