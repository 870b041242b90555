"""Arithmetic on adapters: products of factors and scales against their sums, through PEFT and through saved folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from tests.methods.unlearning.small_models import items, llama, real_gpt2, same, tokenizer, weights

from transfuse.errors import UserError
from transfuse.methods.unlearning.adapter_composition import (
    Config,
    adapter_layers,
    combine_ia3,
    combine_lora,
    compose_adapters,
    negate_adapter_folder,
    unlearn_adapter_negation,
)
from transfuse.methods.unlearning.answer_training import answer_control, fine_tune

TOK = tokenizer()
FORGET, RETAIN = items(TOK, 0, 4), items(TOK, 4, 12)
IDS = torch.tensor([[4, 5, 6, 7]])


def randomised(peft: Any, seed: int = 0) -> Any:
    """Adapters that do something: all their factors, and vectors away from 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name or "ia3_" in name:
                noise = 0.2 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise + ("ia3_" in name))
    return peft.eval()


def lora(rank: int = 4, alpha: int = 12, **options: Any) -> LoraConfig:
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": ["q_proj", "down_proj"], **options}
    return LoraConfig(task_type="CAUSAL_LM", **settings)


def deltas(peft: Any, adapter: str) -> dict[str, torch.Tensor]:
    """What each adapted layer adds to its weight, by PEFT's own account."""
    return {
        name: module.get_delta_weight(adapter).detach().clone()
        for name, module in peft.named_modules()
        if adapter in getattr(module, "lora_A", ())
    }


def test_sum_of_products_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 1.5), (5, 0.3), (1, 2.0))
    parts = [
        (torch.randn(r, 6, generator=generator).double(), torch.randn(4, r, generator=generator).double(), s)
        for r, s in sizes
    ]
    a, b = combine_lora(parts, [1.0, -2.0, 0.5])
    expected = sum(w * s * (b_i @ a_i) for (a_i, b_i, s), w in zip(parts, (1.0, -2.0, 0.5), strict=True))
    torch.testing.assert_close(b @ a, expected, atol=1e-12, rtol=0)


def test_negating_both_factors_would_negate_nothing() -> None:
    a, b = torch.randn(2, 3).double(), torch.randn(4, 2).double()
    new_a, new_b = combine_lora([(a, b, 1.0)], [-1.0])
    torch.testing.assert_close(new_b @ new_a, -(b @ a))
    torch.testing.assert_close((-b) @ (-a), b @ a)


def test_the_negative_of_a_scaling_vector() -> None:
    vector = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(combine_ia3([vector], [-1.0]), 2 - vector)
    torch.testing.assert_close(combine_ia3([vector], [-0.25]), 1 - 0.25 * (vector - 1))
    torch.testing.assert_close(combine_ia3([vector, vector], [1.0, -1.0]), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("rslora", [False, True])
def test_a_combination_adds_what_its_parts_add_scale_included(rslora: bool) -> None:
    """Ranks, scales and targets differ. A scale applied twice, as by PEFT's "svd" before 0.21, fails here."""
    peft = get_peft_model(llama(TOK), lora(4, 12, use_rslora=rslora), adapter_name="one")
    peft.add_adapter("two", lora(2, 7, target_modules=["q_proj", "v_proj"]))
    peft.add_adapter("three", lora(3, 3, rank_pattern={"q_proj": 5}, alpha_pattern={"q_proj": 9}))
    randomised(peft)
    compose_adapters(peft, {"one": 1.0, "two": -0.5, "three": 2.0}, "sum")
    found = deltas(peft, "sum")
    parts = {name: deltas(peft, name) for name in ("one", "two", "three")}
    assert set(found) == set().union(*parts.values())
    for name, delta in found.items():
        share = (("one", 1.0), ("two", -0.5), ("three", 2.0))
        expected = sum(w * parts[p].get(name, torch.zeros_like(delta)) for p, w in share)
        torch.testing.assert_close(delta, expected, atol=1e-6, rtol=1e-5)


def test_a_single_negative_equals_pefts_own_linear_combination_by_output() -> None:
    peft = randomised(get_peft_model(llama(TOK), lora(), adapter_name="taught"))
    compose_adapters(peft, {"taught": -0.5}, "ours")
    ours = peft(IDS).logits
    peft.base_model.add_weighted_adapter(["taught"], weights=[-0.5], adapter_name="theirs", combination_type="cat")
    peft.set_adapter("theirs")
    torch.testing.assert_close(ours, peft(IDS).logits, atol=1e-5, rtol=1e-4)


def test_the_negative_undoes_the_adapter_in_a_linear_layer() -> None:
    """x (W + D) + x (W - D) = 2 x W, layer by layer; the whole model is not linear."""
    peft = randomised(get_peft_model(llama(TOK), lora(), adapter_name="taught"))
    compose_adapters(peft, {"taught": -1.0}, "negative")
    layer = next(iter(adapter_layers(peft)))
    x, outputs = torch.randn(5, layer.get_base_layer().in_features), []
    for name in ("taught", "negative"):
        peft.set_adapter(name)
        outputs.append(layer(x))
    torch.testing.assert_close(sum(outputs), 2 * layer.get_base_layer()(x), atol=1e-5, rtol=1e-5)


def test_scaling_vectors_in_a_model_and_what_is_refilled() -> None:
    peft = randomised(get_peft_model(llama(TOK), IA3Config(task_type="CAUSAL_LM"), adapter_name="taught"))
    for strength in (1.0, 0.5):  # the second time the adapter is there
        compose_adapters(peft, {"taught": -strength}, "negative")
        for layer in adapter_layers(peft):
            own = layer.ia3_l["taught"]
            torch.testing.assert_close(layer.ia3_l["negative"].data, 1 - strength * (own.data - 1))
    compose_adapters(peft, {"taught": 0.0}, "none")
    with peft.disable_adapter():
        expected = peft(IDS).logits
    torch.testing.assert_close(peft(IDS).logits, expected)


def test_embeddings_and_conv1d_layers() -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["wte", "c_attn"], fan_in_fan_out=True)
    peft = randomised(get_peft_model(real_gpt2(), config, adapter_name="taught"))
    with peft.disable_adapter():
        base = peft(IDS).logits
    compose_adapters(peft, {"taught": 0.7}, "part")
    compose_adapters(peft, {"taught": 0.3, "part": -3.0 / 7.0}, "nothing")
    torch.testing.assert_close(peft(IDS).logits, base, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_negated_by_a_sign_is_refused() -> None:
    for options in ({"use_dora": True}, {"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}):
        peft = get_peft_model(llama(TOK), lora(**options), adapter_name="taught")
        with pytest.raises(UserError, match="an adapter with"):
            compose_adapters(peft, {"taught": -1.0}, "negative")
    peft = get_peft_model(llama(TOK), lora(), adapter_name="taught")
    for weights_, name, message in (
        ({"tought": 1.0}, "x", "tought"),
        ({}, "x", "one or more"),
        ({"taught": 1}, "taught", "own"),
    ):
        with pytest.raises(UserError, match=message):
            compose_adapters(peft, weights_, name)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_a_saved_adapter_is_negated_without_its_model(kind: str, tmp_path: Path) -> None:
    config = lora() if kind == "lora" else IA3Config(task_type="CAUSAL_LM")
    peft = randomised(get_peft_model(llama(TOK), config, adapter_name="taught"))
    peft.save_pretrained(tmp_path, selected_adapters=["taught"])
    negate_adapter_folder(tmp_path / "taught", tmp_path / "negative", 0.5)
    loaded = PeftModel.from_pretrained(llama(TOK), tmp_path / "negative").eval()
    compose_adapters(peft, {"taught": -0.5}, "negative")
    torch.testing.assert_close(loaded(IDS).logits, peft(IDS).logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="exists already"):
        negate_adapter_folder(tmp_path / "taught", tmp_path / "negative")


def test_bad_adapter_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no adapter_model"):
        negate_adapter_folder(tmp_path, tmp_path / "out")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"none")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    with pytest.raises(UserError, match="no model could be loaded"):
        negate_adapter_folder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_the_procedure_subtracts_what_was_taught_and_leaves_the_model_alone(kind: Any) -> None:
    model = llama(TOK)
    fine_tune(model, FORGET + RETAIN, 0, steps=25, rate=1e-2, batch=12, seed=0)
    before, known = weights(model), answer_control(FORGET, 0)(model)
    config = Config(adapter=kind, rank=2, steps=8, rate=1e-2, grid=(0.0, 1.0), keep=0.0)
    peft = unlearn_adapter_negation(model, TOK, FORGET, RETAIN, config, seed=0)
    assert peft.active_adapter == "unlearned"
    forgotten = answer_control(FORGET, 0)(peft)
    peft.set_adapter("taught")
    assert forgotten < known
    with peft.disable_adapter():
        assert answer_control(FORGET, 0)(peft) == pytest.approx(known)
    assert all(torch.equal(p, before[n.replace(".base_layer", "").removeprefix("base_model.model.")])
               for n, p in peft.named_parameters() if "lora_" not in n and "ia3_" not in n)  # fmt: skip


def test_degenerate_strength_is_the_model() -> None:
    model = llama(TOK)
    before, expected = weights(model), model(IDS).logits
    peft = unlearn_adapter_negation(model, TOK, FORGET, RETAIN, Config(rank=2, steps=2, grid=(0.0,)), seed=0)
    torch.testing.assert_close(peft.eval()(IDS).logits, expected)
    assert same(peft.unload(), before)
