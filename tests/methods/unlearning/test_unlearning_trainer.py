"""The Trainer: equal to the plain loop, whatever a batch is cut into, after a resume, with adapters, at real shapes."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.unlearning.tiny_world import items, llama, tokenizer
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments

from transfuse.errors import UserError
from transfuse.methods.unlearning import grad_kl, npo, rmu
from transfuse.methods.unlearning.answer_training import RETAIN as RETAIN_STREAM
from transfuse.methods.unlearning.answer_training import batch_at
from transfuse.methods.unlearning.gradient_objective import Objective, unlearn_by_gradient
from transfuse.methods.unlearning.unlearning_methods import METHODS, make_config, unlearn
from transfuse.methods.unlearning.unlearning_trainer import UnlearningTrainer

TOK = tokenizer()
FORGET, RETAIN = items(TOK, 0, 6), items(TOK, 6, 16)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "per_device_train_batch_size": 6, "max_steps": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
        "weight_decay": 0.01, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
        "logging_strategy": "no", "seed": 5,
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**given, **options})


def trained(folder: Path, objective: Any, model: nn.Module, **options: Any) -> nn.Module:
    trainer = UnlearningTrainer(
        model, arguments(folder, **options), objective=objective, processing_class=TOK
    )  # fmt: skip
    trainer.train()
    return model


def make(name: str, model: nn.Module, retain: list[Any] = RETAIN) -> Objective:
    if name == "npo":
        return npo.NPO(npo.Config(), TOK, FORGET, retain)
    if name == "grad_kl":
        return Objective(grad_kl.Config(), TOK, FORGET, retain)
    return rmu.RMU(rmu.Config(layer=1), TOK, FORGET, retain, model)


def assert_same(a: nn.Module, b: nn.Module, tolerance: float = 1e-5) -> None:
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", ["npo", "grad_kl", "rmu"])
def test_trainer_equals_the_plain_loop(name: str, tmp_path: Path) -> None:
    """Whole sets as batches, so that order plays no part; no decay, which the Trainer spares norms."""
    first = llama(TOK)
    plain, hosted = copy.deepcopy(first), copy.deepcopy(first)
    objective = make(name, plain, RETAIN[:6])
    objective.config = dataclasses.replace(objective.config, rate=1e-2, steps=4, weight_decay=0.0)
    unlearn_by_gradient(objective, plain, seed=0)
    trained(tmp_path, make(name, hosted, RETAIN[:6]), hosted, weight_decay=0.0)
    assert_same(plain, hosted, 2e-4)  # Adam divides tiny gradients by their size


@pytest.mark.parametrize("name", ["npo", "grad_kl"])
def test_accumulated_parts_weigh_tokens_as_one_batch_does(name: str, tmp_path: Path) -> None:
    """Gradients of three parts of uneven lengths against those of the whole, before the first step."""
    gradients = []
    for parts in (1, 3):
        model = llama(TOK)

        class Keep(TrainerCallback):
            def __init__(self) -> None:
                self.found: list[torch.Tensor] = []

            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.found = [p.grad.clone() for p in kwargs["model"].parameters()]

        keep = Keep()
        options: dict[str, Any] = {
            "per_device_train_batch_size": 6 // parts, "gradient_accumulation_steps": parts, "max_steps": 1,
            "max_grad_norm": 0.0,
        }  # fmt: skip
        # Six retained items, shown two at a time in parts, or all at once.
        trainer = UnlearningTrainer(
            model, arguments(tmp_path, **options), objective=make(name, model, RETAIN[:6]), callbacks=[keep]
        )
        trainer.train()
        gradients.append(keep.found)
    for whole, parts_of in zip(*gradients, strict=True):
        torch.testing.assert_close(parts_of, whole, atol=1e-6, rtol=1e-4)


def test_a_resumed_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """The reference is the model's before any step, also in a run that starts from a checkpoint."""
    first = llama(TOK)
    whole = copy.deepcopy(first)
    trained(tmp_path / "whole", make("npo", whole), whole, per_device_train_batch_size=2, max_steps=6)

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    options: dict[str, Any] = {
        "per_device_train_batch_size": 2, "max_steps": 6, "save_strategy": "steps", "save_steps": 3
    }  # fmt: skip
    half = copy.deepcopy(first)
    UnlearningTrainer(
        half, arguments(tmp_path / "half", **options), objective=make("npo", half), callbacks=[Stop()]
    ).train()
    resumed = copy.deepcopy(first)
    UnlearningTrainer(resumed, arguments(tmp_path / "half", **options), objective=make("npo", resumed)).train(
        resume_from_checkpoint=True
    )
    assert_same(whole, resumed, 1e-6)


def test_retained_items_depend_on_seed_and_step_only(tmp_path: Path) -> None:
    model = llama(TOK)
    trainer = UnlearningTrainer(model, arguments(tmp_path), objective=make("npo", model))
    torch.manual_seed(1)
    parts, sizes = trainer.get_batch_samples(iter([{"forget": torch.tensor([0, 1])}]), 1, torch.device("cpu"))
    assert parts[0]["retain"].tolist() == batch_at(0, 10, 2, 5, RETAIN_STREAM)
    assert sizes is not None and sizes.tolist() == list(trainer.objective.sizes([0, 1], parts[0]["retain"].tolist()))


def test_an_adapter_is_trained_and_the_model_below_it_left_alone(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = llama(TOK)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    peft = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]))  # type: ignore[arg-type]
    trained(tmp_path, make("npo", peft), peft)
    after = peft.unload().state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_sets_of_ones_own_are_refused(tmp_path: Path) -> None:
    model = llama(TOK)
    with pytest.raises(UserError, match="train_dataset"):
        UnlearningTrainer(model, arguments(tmp_path), objective=make("npo", model), train_dataset=[1])


def real_shapes(kind: str) -> nn.Module:
    """Random weights at the widths of Llama 3.2 1B (a sixteenth of its depth) and of GPT-2."""
    torch.manual_seed(0)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=500, hidden_size=2048, intermediate_size=8192, num_hidden_layers=2, num_attention_heads=32,
            num_key_value_heads=8, tie_word_embeddings=True,
        )  # fmt: skip
        return LlamaForCausalLM(config).to(torch.bfloat16)
    return GPT2LMHeadModel(GPT2Config(vocab_size=500, n_layer=2)).to(torch.bfloat16)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("kga", "icul")])
def test_every_method_takes_a_step_at_real_shapes_in_bfloat16(kind: str, method: str) -> None:
    model = real_shapes(kind)
    options: dict[str, Any] = {} if method == "icul" else {"steps": 1, "batch": 4}
    if method in ("task_vector", "adapter_negation", "reinforced_contrast"):
        options["grid"] = (0.0, 0.5)
    result = unlearn(method, model, TOK, FORGET, RETAIN, make_config(method, options), seed=0)
    ids = torch.tensor([FORGET[0].ids])
    with torch.no_grad():
        logits = result(input_ids=ids).logits
    assert logits.dtype == torch.bfloat16 and bool(torch.isfinite(logits).all())
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()  # type: ignore[operator]
