"""Adapters by hooks: where they stand, what they cost in mBART-large-50, any transformers model, PEFT beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Context
from torch import nn

from transfuse.errors import UserError
from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.adapter_client import (
    LocalTraining,
    Pair,
    adapter_client,
    batches,
    collate,
    exchanged_arrays,
    mean_gradient,
    mean_loss,
    train_locally,
)
from transfuse.methods.federated.bottleneck_adapters import (
    BottleneckAdapter,
    adapter_sites,
    attach_adapters,
    exchanged_parameters,
    exchanged_share,
    load_arrays,
    pruned,
)
from transfuse.methods.federated.fed_mnmt import ClusteredFedAvg, by_stack
from transfuse.nets.tiny_translator import mbart_large_50, subword_tokenizer, tiny_mbart

TEXTS = ["the red house", "das rote haus", "la casa rossa", "a small boat", "ein kleines boot", "una piccola barca"]


@pytest.fixture(scope="module")
def tokenizer():
    return subword_tokenizer(TEXTS, ["en", "de", "it"], 60)


@pytest.fixture
def model(tokenizer) -> nn.Module:
    torch.manual_seed(0)
    return tiny_mbart(tokenizer, width=16, layers=3, heads=2).eval()


def tiny_t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=3, num_heads=2, decoder_start_token_id=0)
    ).eval()


def pairs(count: int = 9) -> list[Pair]:
    rng = np.random.default_rng(0)
    draw = lambda: tuple(int(x) for x in rng.integers(8, 50, rng.integers(2, 6)))  # noqa: E731
    return [Pair((5, *draw(), 1), (6, *draw(), 1)) for _ in range(count)]


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**collate(pairs(), 0)).logits


def test_mbart_large_50_has_the_papers_counts() -> None:
    model = mbart_large_50()
    whole = sum(p.numel() for p in model.parameters())
    attached = attach_adapters(model)
    sent = exchanged_parameters(model)
    adapters = sum(p.numel() for name, p in sent.items() if "_adapter." in name)
    assert (whole, len(attached.adapters), adapters) == (610_879_488, 60, 60 * 132_160)
    assert sum(p.numel() for p in sent.values()) - adapters == 126_976  # layer norms, without layernorm_embedding
    assert not any("layernorm_embedding" in name for name in sent)
    assert exchanged_share(model) == pytest.approx(0.0132, abs=5e-5)


def test_adapter_is_the_formula() -> None:
    adapter = BottleneckAdapter(4, 2)
    z = torch.randn(3, 4)
    down = torch.clamp(z @ adapter.down.weight.T + adapter.down.bias, min=0)
    torch.testing.assert_close(adapter(z), z + down @ adapter.up.weight.T + adapter.up.bias)


def test_adapter_stands_before_the_residual(model: nn.Module) -> None:
    """One encoder layer written out by hand."""
    attach_adapters(model, reduction=4)
    layer = model.model.encoder.layers[0]
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        ours = layer(x, None)
        ours = ours[0] if isinstance(ours, tuple) else ours
        normed = layer.self_attn_layer_norm(x)
        attended = layer.self_attn(normed)[0]  # with its adapter, by the hook
        plain = layer.self_attn.forward(normed)[0]  # without
        torch.testing.assert_close(attended, layer.self_attn_adapter(plain))
        h = x + layer.self_attn_adapter(plain)
        inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(h)))
        torch.testing.assert_close(ours, h + layer.fc2_adapter(layer.fc2.forward(inner)))


def test_zero_init_is_the_base_and_linear_init_is_not(model: nn.Module) -> None:
    before = logits(model)
    attached = attach_adapters(model, init="zero", reduction=4)
    torch.testing.assert_close(logits(model), before)
    attached.detach()
    attached = attach_adapters(model, reduction=4)
    assert not torch.allclose(logits(model), before)
    names = set(dict(model.named_parameters()))
    attached.detach()
    torch.testing.assert_close(logits(model), before)
    assert names - set(dict(model.named_parameters())) and all(p.requires_grad for p in model.parameters())


def test_sites_and_pruning(model: nn.Module) -> None:
    paths = adapter_sites(model)
    assert len(paths) == 3 * 2 + 3 * 3
    assert "model.decoder.layers.1.encoder_attn" in paths
    for keep, layer in (("input", 0), ("middle", 1), ("output", 2)):
        kept = adapter_sites(model, keep)
        assert len(kept) == 5 and all(f".layers.{layer}." in path for path in kept)
    twelve = [f"encoder.layers.{i}.fc2" for i in range(12)]
    assert pruned(twelve, "output") == twelve[8:]
    assert pruned(twelve, "middle") == twelve[4:8]


@pytest.mark.parametrize("make", [tiny_t5])
def test_any_transformers_model(make) -> None:
    model = make()
    assert len(adapter_sites(model)) == 3 * 2 + 3 * 3
    assert len(adapter_sites(model, "output")) == 5
    before = logits(model)
    attach_adapters(model, reduction=4)
    assert not torch.allclose(logits(model), before)
    assert {by_stack(name) for name in exchanged_parameters(model)} == {"encoder", "decoder"}


def test_only_adapters_and_layer_norms_move(model: nn.Module) -> None:
    attach_adapters(model, reduction=4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = mean_loss(model, pairs(), 0)
    train_locally(model, pairs(), LocalTraining(1e-2, 4, 8), np.random.default_rng(0), 0)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert mean_loss(model, pairs(), 0) < first
    assert moved <= set(exchanged_parameters(model))
    assert any("_adapter.down" in name for name in moved) and any("layer_norm" in name for name in moved)


def test_gradient_is_the_mean_over_batches(model: nn.Module) -> None:
    attach_adapters(model, reduction=4)
    found = mean_gradient(model, pairs(8), LocalTraining(batch=8), np.random.default_rng(0), 0)
    model.zero_grad()
    model(**collate(pairs(8), 0)).loss.backward()
    for name, parameter in exchanged_parameters(model).items():
        np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bucketed", [True, False])
def test_batches_hold_every_pair_once(bucketed: bool) -> None:
    many = pairs(50)
    rng = np.random.default_rng(1)
    made = list(batches(many, 8, rng, bucketed))
    assert sorted(sum(made, []), key=str) == sorted(many, key=str)  # noqa: RUF017
    if bucketed:
        padding = sum(max(len(p.source) for p in b) * len(b) - sum(len(p.source) for p in b) for b in made)
        plain = list(batches(many, 8, np.random.default_rng(1), False))
        assert padding < sum(max(len(p.source) for p in b) * len(b) - sum(len(p.source) for p in b) for b in plain)


def test_parameters_follow_the_model(model: nn.Module) -> None:
    model = model.double()
    attached = attach_adapters(model, reduction=4)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    load_arrays(model, [(name, p.detach().numpy() + 1) for name, p in exchanged_parameters(model).items()])
    assert next(iter(attached.adapters.values())).down.weight.dtype == torch.float64


@pytest.mark.parametrize(
    "arguments",
    [{"sites": ["nowhere"]}, {"sites": []}, {"reduction": 17}, {"sites": ["model.encoder"] * 1, "reduction": 0}],
)
def test_bad_settings_are_refused(model: nn.Module, arguments: dict) -> None:
    with pytest.raises(UserError):
        attach_adapters(model, **arguments)


def test_models_without_known_blocks_and_foreign_arrays_are_refused(model: nn.Module) -> None:
    with pytest.raises(UserError, match="dotted paths"):
        adapter_sites(nn.Linear(2, 2))
    with pytest.raises(UserError, match="width"):
        attach_adapters(nn.Sequential(nn.Linear(2, 2)), ["0"])
    attach_adapters(model, reduction=4)
    with pytest.raises(UserError, match="already"):
        attach_adapters(model, reduction=4)
    with pytest.raises(UserError, match="trainable"):
        load_arrays(model, [("model.shared.weight", np.zeros(1))])


def test_a_module_that_is_no_transformer() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    attached = attach_adapters(model, ["0"], width=8, reduction=2)
    x = torch.randn(3, 8)
    plain = nn.functional.linear(x, model[0].weight, model[0].bias)
    torch.testing.assert_close(model[0](x), attached.adapters["0"](plain))


def federate(model: nn.Module, **arguments: object) -> ClusteredFedAvg:
    """Two rounds of four clients; data of client i are its own."""
    directions = [("de", "it"), ("en", "de"), ("it", "en"), ("it", "de")]

    def data(context: Context, split: str) -> list[Pair]:
        client = int(context.node_config["partition-id"])
        return pairs(20)[5 * client : 5 * client + 5]

    def facts(context: Context) -> dict[str, str]:
        return dict(zip(("source", "target"), directions[int(context.node_config["partition-id"])], strict=True))

    app = adapter_client(model, data, LocalTraining(1e-2, 4), facts=facts, pad=0)
    strategy = ClusteredFedAvg(**arguments)  # type: ignore[arg-type]
    with quiet_flower(60):
        result = strategy.start(LocalGrid(app, 4, on_error="raise"), exchanged_arrays(model), num_rounds=2)
    assert result.evaluate_metrics_clientapp[2]["loss"] < result.evaluate_metrics_clientapp[1]["loss"]
    return strategy


@pytest.mark.parametrize("clusters", ["family", "gradient"])
def test_a_real_encoder_decoder_in_flower(model: nn.Module, clusters: str) -> None:
    attach_adapters(model, reduction=4)
    strategy = federate(model, clusters=clusters)
    one, two, three = (strategy.node_arrays(node) for node in (1, 2, 3))
    encoder = "model.encoder.layers.0.self_attn_adapter.up.weight"
    if clusters == "family":
        np.testing.assert_array_equal(one[encoder].numpy(), two[encoder].numpy())
        assert not np.array_equal(one[encoder].numpy(), three[encoder].numpy())
    assert set(strategy.conflicts[0].groups) == {"encoder", "decoder"}


def test_peft_adapters_in_the_same_strategy(model: nn.Module) -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    assert {by_stack(name) for name in exchanged_parameters(wrapped)} == {"encoder", "decoder"}
    strategy = federate(wrapped)
    arrays = strategy.node_arrays(1)
    assert set(arrays) == set(exchanged_parameters(wrapped)) and all("lora_" in name for name in arrays)
    load_arrays(wrapped, ((key, array.numpy()) for key, array in arrays.items()))
