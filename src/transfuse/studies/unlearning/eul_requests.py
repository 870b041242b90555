"""Two unlearning requests, three countries each: adapters of their own fused in closed form, or one trained in turn."""

from __future__ import annotations

from typing import Any

from torch import nn

from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.eul_adapters import Config, fuse_adapters, input_grams, unlearn_eul
from transfuse.studies.unlearning.fact_world import FactWorld
from transfuse.studies.unlearning.unlearned_models import TOLERANCE, questions, tuned


def _requests(world: FactWorld) -> list[tuple[tuple[str, ...], list[EncodedAnswer]]]:
    half = (len(world.forget) + 1) // 2
    return [(part, questions(world, part)) for part in (world.forget[:half], world.forget[half:])]


class _Stop:
    """Ends a request at its match."""

    def __init__(self, world: FactWorld, subjects: tuple[str, ...]) -> None:
        asked = world.ask(subjects, "qa")
        self.world, self.asked = world, world.encode(asked)
        self.target = world.accuracy(world.model("gold"), asked) + TOLERANCE

    def __call__(self, step: int, model: nn.Module) -> bool:
        return self.world.share_known(model, self.asked) <= self.target


def fused_requests(world: FactWorld) -> nn.Module:
    """One adapter a request, each trained from the base; then RegMean."""
    seed = world.streams.order.child("unlearning").integer()
    pad = world.tokenizer.pad_token_id
    retain = questions(world, world.retain)
    model: Any = world.model("base")
    for index, (subjects, forget) in enumerate(_requests(world)):
        config = Config(**tuned("eul"), name=f"request{index}")
        model = unlearn_eul(
            model, world.tokenizer, forget, retain, config, seed=seed + index, on_step=_Stop(world, subjects)
        )
    grams = {f"request{i}": input_grams(model, forget, pad, f"request{i}") for i, (_, forget) in
             enumerate(_requests(world))}  # fmt: skip
    fuse_adapters(model, grams)
    return model.merge_and_unload().eval()


def sequential_requests(world: FactWorld) -> nn.Module:
    """The second request trains on where the first ended: its adapter is merged before the next one is begun."""
    seed = world.streams.order.child("unlearning").integer()
    retain = questions(world, world.retain)
    model: Any = world.model("base")
    for index, (subjects, forget) in enumerate(_requests(world)):
        config = Config(**tuned("eul"), name=f"request{index}")
        trained: Any = unlearn_eul(
            model, world.tokenizer, forget, retain, config, seed=seed + index, on_step=_Stop(world, subjects)
        )
        model = trained.merge_and_unload()
    return model.eval()
