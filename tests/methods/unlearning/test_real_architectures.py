"""Every procedure on Llama and GPT-2 at their real shape but depth, with tied weights, in single and half precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.unlearning.small_models import random_items, real_gpt2, real_llama, tokens_only

from transfuse.methods.unlearning import (
    adapter_composition,
    eul_adapters,
    in_context,
    kga,
    reinforced_contrast,
    task_vector,
)
from transfuse.methods.unlearning.answer_scores import score_answers

MODELS = {
    "llama": real_llama,
    "gpt2": real_gpt2,
    "llama_bf16": functools.partial(real_llama, torch.bfloat16),
    "gpt2_bf16": functools.partial(real_gpt2, torch.bfloat16),
}
GRID = (0.0, 0.5, 1.0)
PROCEDURES: dict[str, tuple[Callable[..., Any], Any]] = {
    "task_vector": (task_vector.unlearn_task_vector, task_vector.Config(steps=1, batch=3, grid=GRID)),
    "lora": (adapter_composition.unlearn_adapter_negation, adapter_composition.Config(steps=2, batch=3, grid=GRID)),
    "ia3": (
        adapter_composition.unlearn_adapter_negation,
        adapter_composition.Config(adapter="ia3", steps=2, batch=3, grid=GRID),
    ),
    "contrast": (
        reinforced_contrast.unlearn_reinforced_contrast,
        reinforced_contrast.Config(steps=2, batch=3, grid=(0.0, 1.0, 2.0)),
    ),
    "eul": (eul_adapters.unlearn_eul, eul_adapters.Config(steps=2, batch=3)),
    "kga": (kga.unlearn_kga, kga.Config(steps=1, batch=3, inner_steps=1, small_steps=1, stop_value=0.0)),
    "icul": (in_context.unlearn_icul, in_context.Config()),
    "icu": (in_context.unlearn_icu, in_context.Config(subjects=("somebody",))),
}
IN_PLACE = ("task_vector", "kga")


@pytest.mark.parametrize("name", PROCEDURES)
@pytest.mark.parametrize("kind", MODELS)
def test_one_or_two_steps(kind: str, name: str) -> None:
    """Called alike; type, ties and mode are kept; `on_step` counts from 1 and stops; the result can be scored."""
    if kind.endswith("bf16") and name in IN_PLACE and kind.startswith("gpt2"):
        pytest.skip("Llama shows it, at half the memory")
    model = MODELS[kind]()
    dtype, gone, kept = next(model.parameters()).dtype, random_items(4, 40000), random_items(6, 40000, seed=1)
    procedure, config = PROCEDURES[name]
    extra = {"unseen": random_items(4, 40000, seed=2)} if name == "kga" else {}
    seen: list[tuple[int, bool]] = []

    def on_step(step: int, now: Any) -> bool:
        seen.append((step, now.training))
        return step == 2

    found = procedure(model, tokens_only(), gone, kept, config, seed=0, on_step=on_step, control=lambda _: 1.0, **extra)
    assert seen == [(step + 1, False) for step in range(len(seen))] and 1 <= len(seen) <= 2
    scores = score_answers(found, gone, 0)
    assert np.isfinite(scores.sums()).all() and not found.training
    assert model.lm_head.weight is model.get_input_embeddings().weight and model.lm_head.weight.dtype == dtype
    assert all(p.grad is None for p in found.parameters())


@pytest.mark.parametrize("name", PROCEDURES)
def test_same_seed_same_model(name: str) -> None:
    procedure, config = PROCEDURES[name]
    extra = {"unseen": random_items(4, 50000, seed=2)} if name == "kga" else {}
    runs = []
    for noise in (0, 1):
        model = real_gpt2()  # has dropout, so that the global generator is drawn from
        torch.manual_seed(noise)
        found = procedure(
            model, tokens_only(), random_items(4, 50000), random_items(6, 50000, seed=1), config, seed=5,
            control=lambda _: 1.0, **extra,
        )  # fmt: skip
        runs.append(score_answers(found, random_items(4, 50000), 0).sums())
    np.testing.assert_array_equal(runs[0], runs[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", PROCEDURES)
def test_on_a_gpu(name: str) -> None:
    model = real_llama(torch.bfloat16).cuda()
    procedure, config = PROCEDURES[name]
    extra = {"unseen": random_items(4, 40000, seed=2)} if name == "kga" else {}
    found = procedure(model, tokens_only(), random_items(4, 40000), random_items(6, 40000, 1), config, seed=0, **extra)
    assert {p.device.type for p in found.parameters()} == {"cuda"}
    assert np.isfinite(score_answers(found, random_items(4, 40000), 0).sums()).all()
