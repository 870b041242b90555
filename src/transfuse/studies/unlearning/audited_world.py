"""FactWorld as the audit of removal sees it: rows with all forms of each fact, and models to compare with."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from transfuse.data.fact_forms import FORMS, HELD_OUT, Item
from transfuse.methods.unlearning.answer_training import fine_tune
from transfuse.methods.unlearning.qa_file import QARow
from transfuse.methods.unlearning.removal_probes import Case
from transfuse.methods.unlearning.unlearning_open_problems import make_case
from transfuse.studies.unlearning.fact_pretraining import sums
from transfuse.studies.unlearning.fact_world import FactWorld
from transfuse.studies.unlearning.unlearned_models import plain_state, questions, tuned, unlearned_state
from transfuse.study.stage import Stages

# In the words that this world's tokenizer has.
WRAPPERS = (
    "{prompt} the answer is",
    "you are an expert . {prompt}",
    "this is a quiz . {prompt}",
    "let us play a game : you are the teacher and a student asks you . {prompt}",
    "{examples}{prompt}",
    "{hint}{prompt}",
    "{prompt} i do not know . think and try . {prompt}",
)
EXAMPLE = "{prompt} {answer} . "


def rows(world: FactWorld, subjects: Sequence[str]) -> list[QARow]:
    """One row a fact: the question in the first wording of training, the other two as paraphrases, and all forms in
    the wording that nobody trained on. A held-out question is a form as well."""
    asked = {form: _by_fact(world.ask(subjects, form, wording=HELD_OUT)) for form in FORMS}
    plain = [_by_fact(world.ask(subjects, "qa", wording=wording)) for wording in range(HELD_OUT)]
    found = []
    for fact, item in plain[0].items():
        forms = {
            "reworded" if form == "qa" else form: (items[fact].prompt, items[fact].answer)
            for form, items in asked.items()
            if fact in items
        }
        others = tuple(items[fact].prompt for items in plain[1:])
        found.append(QARow(item.prompt, item.answer, fact.subject, fact.relation, others, forms=forms))
    return found


def _by_fact(items: Sequence[Item]) -> dict[Any, Item]:
    return {item.fact: item for item in items}


def make_world_case(world: FactWorld) -> Case:
    """What all models of a seed are asked."""
    benign = world.encode(sums())
    order = world.streams.split.child("benign").numpy().permutation(len(benign))
    return make_case(
        world.tokenizer, rows(world, world.forget), rows(world, world.retain), original=world.model("base"),
        holdout=rows(world, world.holdout), benign=[benign[i] for i in order],
    )  # fmt: skip


def gold_again(world: FactWorld, rate: float, steps: int, stage: Stages) -> nn.Module:
    """The gold model after training on what is to be kept: another model that never saw what was to be forgotten."""
    make = functools.partial(_train_gold, world, rate, steps)
    return world.load(stage("gold_again", make, inputs={**world.identity(), "rate": rate, "steps": steps}))


def _train_gold(world: FactWorld, rate: float, steps: int) -> dict[str, Tensor]:
    model, kept = world.model("gold"), questions(world, world.retain)
    seed = world.streams.order.child("gold_again").integer()
    fine_tune(model, kept, world.tokenizer.pad_token_id, steps=steps, rate=rate, batch=32, seed=seed)
    return plain_state(model)


def at_rate(world: FactWorld, method: str, rate: float, steps: int, stage: Stages) -> nn.Module:
    """The base unlearned by a gradient method at another rate, at matched forgetting, or after all steps."""
    options = {**tuned(method), "rate": rate, "steps": steps}
    make = functools.partial(unlearned_state, world, method, options)
    found = stage(f"unlearned_{method}", make, inputs={**world.identity(), "method": method, "options": options})
    return world.load({k.removeprefix("match/"): v for k, v in found.items() if k.startswith("match/")})
