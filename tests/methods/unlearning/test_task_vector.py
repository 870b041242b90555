"""Negation of a task vector: its equation, tied and half-precision weights, folders, and the procedure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.methods.unlearning.small_models import items, llama, same, tokenizer, weights

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_training import answer_control, fine_tune
from transfuse.methods.unlearning.task_vector import (
    Config,
    FolderTensors,
    negate,
    negate_folder,
    unlearn_task_vector,
    write_negated,
)

TOK = tokenizer()
FORGET, RETAIN = items(TOK, 0, 4), items(TOK, 4, 12)


def test_negation_is_its_equation_and_other_tensors_are_the_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    target, start, end = ({"w": torch.randn(3, 4, generator=generator, dtype=torch.float64)} for _ in range(3))
    target["steps"] = torch.tensor([7])
    found = negate(target, start, end, 0.3)
    torch.testing.assert_close(found["w"], target["w"] - 0.3 * (end["w"] - start["w"]), atol=1e-12, rtol=0)
    assert found["steps"].item() == 7
    assert torch.equal(negate(target, start, end, 0.0)["w"], target["w"])


def test_half_precision_is_subtracted_in_single() -> None:
    """In bfloat16 the difference of close weights would lose its digits before it is scaled."""
    start, end = torch.tensor([1.0, 2.0, -3.0]).bfloat16(), torch.tensor([1.0078125, 2.015625, -3.03125]).bfloat16()
    found = negate({"w": start}, {"w": start}, {"w": end}, 0.7)["w"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, (start.float() - 0.7 * (end.float() - start.float())).bfloat16())


def test_tied_weights_stay_tied() -> None:
    state = llama(TOK).state_dict()
    other = {name: tensor + 1 for name, tensor in state.items()}
    found = negate(state, state, other, 1.0)
    assert found["lm_head.weight"].data_ptr() == found["model.embed_tokens.weight"].data_ptr()
    model = llama(TOK)
    write_negated(model, weights(model), {name: tensor + 1 for name, tensor in weights(model).items()}, 0.5)
    torch.testing.assert_close(model.lm_head.weight, llama(TOK).lm_head.weight - 0.5)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weights_of_another_architecture_are_refused() -> None:
    with pytest.raises(UserError, match="one architecture"):
        negate({"w": torch.ones(2)}, {"w": torch.ones(2)}, {"w": torch.ones(3)}, 1.0)
    with pytest.raises(UserError, match="one architecture"):
        negate({"w": torch.ones(2)}, {}, {"w": torch.ones(2)}, 1.0)


def test_the_procedure_is_the_difference_of_fine_tuning_at_the_strength_it_is_stopped_at() -> None:
    config = Config(steps=3, rate=1e-3, batch=2, grid=(0.0, 0.25, 0.5))
    model, taught = llama(TOK), llama(TOK)
    start = weights(model)
    fine_tune(taught, FORGET, TOK.pad_token_id, steps=3, rate=1e-3, batch=2, seed=0)
    found = unlearn_task_vector(model, TOK, FORGET, RETAIN, config, seed=0, on_step=lambda step, _: step == 2)
    assert found is model
    for name, end in weights(taught).items():
        torch.testing.assert_close(weights(model)[name], start[name] - 0.25 * (end - start[name]), atol=1e-7, rtol=0)


def test_degenerate_strength_is_the_model_and_the_control_binds() -> None:
    model = llama(TOK)
    before = weights(model)
    unlearn_task_vector(model, TOK, FORGET, RETAIN, Config(steps=2, grid=(0.0,)), seed=0)
    assert same(model, before)
    control = answer_control(RETAIN, 0)
    first = control(model)
    unlearn_task_vector(model, TOK, FORGET, RETAIN, Config(steps=4, rate=3e-3, keep=0.95), seed=0)
    assert control(model) >= 0.95 * first


def test_it_forgets_what_it_was_taught() -> None:
    model = llama(TOK)
    fine_tune(model, FORGET + RETAIN, 0, steps=25, rate=1e-2, batch=12, seed=0)
    known = answer_control(FORGET, 0)(model)
    unlearn_task_vector(model, TOK, FORGET, RETAIN, Config(steps=10, rate=1e-3, grid=(0.0, 1.0, 2.0), keep=0.0), seed=0)
    assert answer_control(FORGET, 0)(model) < known


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    made = []
    for seed, name in ((0, "base"), (1, "taught")):
        model = llama(TOK, seed)
        model.save_pretrained(tmp_path / name, max_shard_size="60KB" if seed == 0 else "5GB")
        made.append(tmp_path / name)
    return made[0], made[1]


def test_folders_shards_and_the_loaded_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Shards of one and the single file of the other make the weights that the models in memory make."""
    from transformers import AutoModelForCausalLM

    base, taught = folders
    assert len(list(base.glob("*.safetensors"))) > 1
    out = negate_folder(base, taught, tmp_path / "out", 0.5)
    found = AutoModelForCausalLM.from_pretrained(out)
    expected = negate(llama(TOK).state_dict(), llama(TOK).state_dict(), llama(TOK, 1).state_dict(), 0.5)
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    reinforced = negate_folder(taught, base, tmp_path / "other", 1.0, start=taught)  # MUSE: a start of its own
    got = load_file(reinforced / "model.safetensors")["model.embed_tokens.weight"]
    torch.testing.assert_close(got, 2 * llama(TOK, 1).lm_head.weight - llama(TOK).lm_head.weight)


def test_bad_folders_are_refused_in_one_line_and_leave_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, taught = folders
    with pytest.raises(UserError, match="exists already"):
        negate_folder(base, taught, taught, 0.5)
    with pytest.raises(UserError, match="no file"):
        FolderTensors(tmp_path)
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "../taught/model.safetensors"}}), encoding="utf-8")
    with pytest.raises(UserError, match="no file"):
        FolderTensors(base)
    index.write_text("[", encoding="utf-8")
    with pytest.raises(UserError, match="no model could be loaded"):
        FolderTensors(base)
    (taught / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="no model could be loaded"):
        FolderTensors(taught)
    small = tmp_path / "small"
    small.mkdir()
    save_file({"model.norm.weight": torch.ones(3)}, small / "model.safetensors")
    llama(TOK).save_pretrained(tmp_path / "whole")
    with pytest.raises(UserError, match="one architecture"):
        negate_folder(tmp_path / "whole", small, tmp_path / "out", 0.5)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
