"""EUL: its loss against passes of single items, fusion against least squares, and requests one after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from tests.methods.unlearning.small_models import item_logp, items, llama, same, token_logp, tokenizer, weights
from tests.methods.unlearning.test_adapter_composition import randomised
from torch import Tensor

from transfuse.errors import UserError
from transfuse.methods.unlearning.adapter_composition import adapter_layers
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.answer_training import answer_control, fine_tune
from transfuse.methods.unlearning.eul_adapters import (
    Config,
    eul_loss,
    fuse_adapters,
    fuse_ia3,
    input_grams,
    regmean,
    regmean_shares,
    unlearn_eul,
)

TOK = tokenizer()
FORGET, RETAIN = items(TOK, 0, 4), items(TOK, 4, 12)
REQUESTS = {"first": items(TOK, 0, 8), "second": items(TOK, 8, 20)}
IDS = torch.tensor([[4, 5, 6, 7]])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_has_the_papers_signs() -> None:
    """Agreement on what stays and disagreement on what goes lower it; so does knowing what stays."""
    c = Config(alpha=0.8, task=1.0, gamma=0.2)
    values = torch.tensor([0.3, 0.7, 1.1, 2.0], dtype=torch.float64, requires_grad=True)
    loss = eul_loss(*values, c)
    assert float(loss.detach()) == pytest.approx(0.8 * (0.3 - 0.7) + 1.1 - 0.2 * 2.0)
    loss.backward()
    torch.testing.assert_close(values.grad, torch.tensor([0.8, -0.8, 1.0, -0.2], dtype=torch.float64))


def test_regmean_is_the_least_squares_answer_to_all_requests() -> None:
    xs, ws = [drawn(20, 5, seed=1), drawn(30, 5, seed=2)], [drawn(3, 5, seed=3), drawn(3, 5, seed=4)]
    found = regmean([x.T @ x for x in xs], ws)
    outputs = torch.cat([x @ w.T for x, w in zip(xs, ws, strict=True)])
    expected = torch.linalg.lstsq(torch.cat(xs), outputs).solution.T
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_shares_sum_to_one_and_leave_directions_without_inputs_alone() -> None:
    grams = [x.T @ x for x in (drawn(9, 4, seed=1), drawn(9, 4, seed=2))]
    torch.testing.assert_close(sum(regmean_shares(grams)), torch.eye(4, dtype=torch.float64), atol=1e-9, rtol=0)
    flat = drawn(9, 4)
    flat[:, 0] = 0.0
    share = regmean_shares([flat.T @ flat])[0]
    torch.testing.assert_close(share, torch.diag(torch.tensor([0.0, 1, 1, 1], dtype=torch.float64)), atol=1e-9, rtol=0)
    mean = regmean(grams, [drawn(3, 4, seed=5), drawn(3, 4, seed=6)], ridge=1e9)
    torch.testing.assert_close(mean, (drawn(3, 4, seed=5) + drawn(3, 4, seed=6)) / 2, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="square"):
        regmean_shares([torch.eye(3), torch.eye(4)])


def two_requests(config: Any) -> tuple[Any, dict[str, dict[str, Tensor]]]:
    peft = get_peft_model(llama(TOK), config, adapter_name="first")
    peft.add_adapter("second", config)
    randomised(peft)
    return peft, {name: input_grams(peft, own, 0, name, batch=3) for name, own in REQUESTS.items()}


def inputs_of(peft: Any, adapter: str, layer: Any) -> Tensor:
    """What a layer reads on a request, item by item, without padding."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0][0].detach().double()))
    peft.set_adapter(adapter)
    for item in REQUESTS[adapter]:
        peft(torch.tensor([item.ids]))
    handle.remove()
    return torch.cat(seen)


def test_grams_leave_padding_out() -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"])
    peft, grams = two_requests(config)
    layers = {name: layer for name, layer in peft.named_modules() if layer in set(adapter_layers(peft))}
    assert set(grams["first"]) == set(layers)
    for name, layer in layers.items():
        x = inputs_of(peft, "second", layer)
        torch.testing.assert_close(grams["second"][name], x.T @ x, atol=1e-4, rtol=1e-4)
    assert peft.training is False


def test_fused_lora_is_regmean_of_what_the_adapters_add() -> None:
    peft, grams = two_requests(
        LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    )
    fuse_adapters(peft, grams, ridge=1e-3)
    assert peft.active_adapter == "fused"
    for name, layer in peft.named_modules():
        if name in grams["first"]:
            own = [layer.get_delta_weight(adapter).detach() for adapter in REQUESTS]
            expected = regmean([grams[adapter][name] for adapter in REQUESTS], own, 1e-3)
            torch.testing.assert_close(layer.get_delta_weight("fused").detach(), expected, atol=1e-4, rtol=1e-3)


def test_fusing_a_request_with_itself_changes_nothing() -> None:
    peft, grams = two_requests(LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    peft.set_adapter("first")
    expected = peft(IDS).logits
    fuse_adapters(peft, {"first": grams["first"]}, "alone")
    batch = torch.tensor([REQUESTS["first"][0].ids])
    alone = peft(batch).logits
    peft.set_adapter("first")
    torch.testing.assert_close(alone, peft(batch).logits, atol=1e-3, rtol=1e-3)  # on inputs that span the grams
    torch.testing.assert_close(expected, peft(IDS).logits)


def test_fused_scales_by_brute_force() -> None:
    """On outputs each channel is a weighted mean; on inputs the least-squares answer of the layer's outputs."""
    l_1, l_2 = drawn(5, seed=1), drawn(5, seed=2)
    h_1, h_2 = drawn(5, seed=3).square(), drawn(5, seed=4).square()
    torch.testing.assert_close(fuse_ia3([l_1, l_2], [h_1.diag(), h_2.diag()]), (h_1 * l_1 + h_2 * l_2) / (h_1 + h_2))
    xs, w = [drawn(20, 5, seed=5), drawn(20, 5, seed=6)], drawn(7, 5, seed=7)
    design = torch.cat([(x[:, None, :] * w[None]).reshape(-1, 5) for x in xs])  # d output / d l
    target = torch.cat([((x * scale) @ w.T).reshape(-1) for x, scale in zip(xs, (l_1, l_2), strict=True)])
    expected = torch.linalg.lstsq(design, target[:, None]).solution[:, 0]
    found = fuse_ia3([l_1, l_2], [(w.T @ w) * (x.T @ x) for x in xs])
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_scales_of_two_requests_fuse_in_a_model() -> None:
    peft, grams = two_requests(IA3Config(task_type="CAUSAL_LM"))
    fuse_adapters(peft, grams)
    for name, layer in peft.named_modules():
        if name in grams["first"] and not layer.is_feedforward:
            h = [grams[adapter][name] for adapter in REQUESTS]
            own = [layer.ia3_l[adapter].detach().double().flatten() for adapter in REQUESTS]
            expected = (h[0] * own[0] + h[1] * own[1]) / (h[0] + h[1])
            torch.testing.assert_close(layer.ia3_l["fused"].detach().double().flatten(), expected, atol=1e-5, rtol=1e-5)


def written_out(peft: Any, base: Any, config: Config) -> Tensor:
    """EUL's loss of a step, item by item."""

    def divergence(chosen: list[EncodedAnswer]) -> Tensor:
        p, q = (torch.cat([item_logp(m, item) for item in chosen]) for m in (base, peft))
        return (p.detach().exp() * (p.detach() - q)).sum(-1).mean()

    def likelihood(chosen: list[EncodedAnswer]) -> Tensor:
        return -torch.cat([token_logp(peft, item) for item in chosen]).mean()

    text = [EncodedAnswer(item.ids, 1) for item in FORGET]
    undone = likelihood(text if config.undone == "text" else FORGET)
    return (
        config.alpha * (divergence(RETAIN) - divergence(FORGET))
        + config.task * likelihood(RETAIN)
        - config.gamma * undone
    )


@pytest.mark.parametrize("undone", ["answer", "text"])
def test_two_steps_are_those_of_the_loss_written_out(undone: Any) -> None:
    config = Config(rank=2, steps=2, rate=1e-2, batch=50, undone=undone)
    peft = unlearn_eul(llama(TOK), TOK, FORGET, RETAIN, config, seed=0)
    theirs = unlearn_eul(llama(TOK), TOK, FORGET, RETAIN, Config(rank=2, steps=0, batch=50), seed=0)  # first weights
    base = llama(TOK)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        optimiser.zero_grad()
        written_out(theirs, base, config).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
    for a, b in zip([p for p in peft.parameters() if p.requires_grad], trained, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


def test_requests_one_after_another_train_an_adapter_each() -> None:
    model = llama(TOK)
    fine_tune(model, FORGET + RETAIN, 0, steps=25, rate=1e-2, batch=12, seed=0)
    before, known = weights(model), answer_control(FORGET, 0)(model)
    peft = unlearn_eul(model, TOK, FORGET, RETAIN, Config(rank=2, steps=6, rate=1e-2, name="one"), seed=0)
    assert answer_control(FORGET, 0)(peft) < known
    one = {name: p.detach().clone() for name, p in peft.named_parameters() if ".one." in name}
    again = unlearn_eul(peft, TOK, RETAIN[:2], RETAIN[2:], Config(rank=2, steps=2, name="two"), seed=1)
    assert again is peft and again.active_adapter == "two"
    assert all(torch.equal(p, one[name]) for name, p in peft.named_parameters() if ".one." in name)
    with pytest.raises(UserError, match="there already"):
        unlearn_eul(peft, TOK, FORGET, RETAIN, Config(name="two"), seed=0)
    assert same(peft.unload(), before)


def test_on_step_stops() -> None:
    seen: list[int] = []
    unlearn_eul(
        llama(TOK), TOK, FORGET, RETAIN, Config(rank=2, steps=9), seed=0,
        on_step=lambda step, _: seen.append(step) or step == 2,  # type: ignore[func-returns-value]
    )  # fmt: skip
    assert seen == [1, 2]
