"""Losses of the gradient methods against computations of their own: loops over items, float64, gradients."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.unlearning.tiny_world import items, llama, tokenizer
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning import (
    grad_diff,
    grad_kl,
    gradient_ascent,
    idk_dpo,
    npo,
    rmu,
    simnpo,
)
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, pad_answers
from transfuse.methods.unlearning.gradient_objective import (
    GradientConfig,
    Objective,
    only_trained,
    unlearn_by_gradient,
)

TOK = tokenizer()
FORGET, RETAIN = items(TOK, 0, 6), items(TOK, 6, 16)
GONE, KEPT = [0, 3, 5], [1, 2, 7, 9]


def moved(model: nn.Module, seed: int = 1, size: float = 0.03) -> nn.Module:
    """A copy with weights a little away, as after some steps."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return other


def item_logp(model: nn.Module, item: EncodedAnswer) -> Tensor:
    """Log probabilities of an item's answer tokens, alone, without padding or hooks: (tokens, vocabulary)."""
    logits = model(input_ids=torch.tensor([item.ids])).logits[0].double()
    return torch.log_softmax(logits, -1)[item.start - 1 : len(item.ids) - 1]


def token_logp(model: nn.Module, item: EncodedAnswer) -> Tensor:
    return item_logp(model, item).gather(-1, torch.tensor(item.ids[item.start :])[:, None])[:, 0]


def mean_nll(model: nn.Module, chosen: list[EncodedAnswer]) -> Tensor:
    return -torch.cat([token_logp(model, item) for item in chosen]).mean()


def mean_kl(first: nn.Module, model: nn.Module, chosen: list[EncodedAnswer]) -> Tensor:
    rows = []
    for item in chosen:
        p = item_logp(first, item).detach()
        rows.append((p.exp() * (p - item_logp(model, item))).sum(-1))
    return torch.cat(rows).mean()


def expected(name: str, first: nn.Module, model: nn.Module, objective: Any) -> Tensor:
    """Each method's formula as its paper has it, item by item in float64."""
    gone, kept = [FORGET[i] for i in GONE], [RETAIN[i] for i in KEPT]
    if name == "gradient_ascent":
        return -mean_nll(model, gone)
    if name == "grad_diff":
        return -mean_nll(model, gone) + mean_nll(model, kept)
    if name == "grad_kl":
        return -mean_nll(model, gone) + mean_kl(first, model, kept)
    now = torch.stack([token_logp(model, item).sum() for item in gone])
    before = torch.stack([token_logp(first, item).sum() for item in gone]).detach()
    if name == "npo":
        return (2 / 0.1 * torch.log(1 + ((now - before).exp()) ** 0.1)).mean() + mean_nll(model, kept)
    if name == "simnpo":
        lengths = torch.tensor([len(item.ids) - item.start for item in gone])
        values = -2 / 2.5 * torch.log(1 / (1 + torch.exp(-2.5 * (-now / lengths - 0.3))))
        return 0.1375 * values.mean() + mean_nll(model, kept)
    assert name == "idk_dpo"
    refused = [objective.refused[i] for i in GONE]
    chosen = torch.stack([token_logp(model, r).sum() - token_logp(first, r).sum().detach() for r in refused])
    return (-2 / 0.1 * torch.log(torch.sigmoid(0.1 * (chosen - (now - before))))).mean() + mean_nll(model, kept)


def make(name: str, model: nn.Module) -> Objective:
    if name in ("gradient_ascent", "grad_diff", "grad_kl"):
        module: Any = {"gradient_ascent": gradient_ascent, "grad_diff": grad_diff, "grad_kl": grad_kl}[name]
        return Objective(module.Config(), TOK, FORGET, RETAIN)
    if name == "npo":
        return npo.NPO(npo.Config(), TOK, FORGET, RETAIN)
    if name == "simnpo":
        return simnpo.SimNPO(simnpo.Config(delta=0.3), TOK, FORGET, RETAIN)
    if name == "idk_dpo":
        return idk_dpo.IdkDPO(idk_dpo.Config(), TOK, FORGET, RETAIN, seed=3)
    return rmu.RMU(rmu.Config(layer=1), TOK, FORGET, RETAIN, model, seed=3)


@pytest.mark.parametrize("name", ["gradient_ascent", "grad_diff", "grad_kl", "npo", "simnpo", "idk_dpo"])
def test_loss_and_gradient_equal_the_formula_item_by_item(name: str) -> None:
    first = llama(TOK).eval()
    model = moved(first)
    objective = make(name, first)
    objective.keep_reference(first)
    loss = objective.loss(model, GONE, KEPT if objective.retain else [])
    other = copy.deepcopy(model)
    brute = expected(name, first, other, objective)
    assert loss.item() == pytest.approx(brute.item(), rel=2e-6, abs=1e-6)
    loss.backward()
    brute.backward()
    for (parameter_name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None, parameter_name
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=2e-6)


def test_losses_in_float64_equal_the_formula_to_twelve_digits() -> None:
    s, s_0 = torch.tensor([-4.0, -1.0]).double(), torch.tensor([-3.0, -2.5]).double()
    brute = [2 / 0.1 * np.log1p(np.exp(0.1 * (a - b))) for a, b in zip(s.tolist(), s_0.tolist(), strict=True)]
    np.testing.assert_allclose(npo.npo_values(s, s_0, 0.1), brute, rtol=1e-12)
    brute = [-2 / 2.5 * np.log(1 / (1 + np.exp(-2.5 * x))) for x in (0.2, 3.0)]
    np.testing.assert_allclose(
        simnpo.simnpo_values(torch.tensor([0.2, 3.0], dtype=torch.float64), 2.5), brute, rtol=1e-12
    )
    zero = torch.zeros(2).double()
    brute = [-2 / 0.1 * np.log(1 / (1 + np.exp(-0.1 * (a - b)))) for a, b in ((-1.0, -4.0), (2.0, 0.5))]
    got = idk_dpo.dpo_values(torch.tensor([-1.0, 2.0]).double(), zero, torch.tensor([-4.0, 0.5]).double(), zero, 0.1)
    np.testing.assert_allclose(got, brute, rtol=1e-12)


def test_rmu_equals_its_formula_over_all_tokens_and_no_padding() -> None:
    model = llama(TOK).eval()
    first = copy.deepcopy(model)
    objective = rmu.RMU(rmu.Config(layer=1, c=2.0, alpha=3.0), TOK, FORGET, RETAIN, model, seed=3)
    objective.keep_reference(model)
    model.load_state_dict(moved(first).state_dict())
    loss = objective.loss(model, GONE, KEPT)

    def states(net: nn.Module, item: EncodedAnswer) -> Tensor:
        # hidden_states[0] is the embedding, so [2] is what leaves block 1
        return net(input_ids=torch.tensor([item.ids]), output_hidden_states=True).hidden_states[2][0].double()

    u = objective.target.double()
    assert u.norm().item() == pytest.approx(2.0, rel=1e-6) and bool((u >= 0).all())
    gone = torch.cat([(states(model, FORGET[i]) - u).square().mean(-1) for i in GONE]).mean()
    kept = torch.cat([(states(model, RETAIN[i]) - states(first, RETAIN[i])).square().mean(-1) for i in KEPT]).mean()
    assert loss.item() == pytest.approx((gone + 3.0 * kept).item(), rel=1e-5)


def test_npos_gradient_is_gradient_ascents_times_its_weight_and_its_limit() -> None:
    s, s_0 = torch.tensor([-4.0, -1.0], requires_grad=True), torch.tensor([-3.0, -2.5])
    npo.npo_values(s, s_0, 0.7).sum().backward()
    r = torch.exp(0.7 * (s - s_0)).detach()
    torch.testing.assert_close(s.grad, 2 * r / (1 + r))
    small = s.detach().clone().requires_grad_(True)
    npo.npo_values(small, s_0, 1e-4).sum().backward()
    torch.testing.assert_close(small.grad, torch.ones(2), atol=1e-3, rtol=0)  # of gradient ascent on the sum


@pytest.mark.parametrize("name", ["gradient_ascent", "grad_diff", "grad_kl", "npo", "simnpo", "idk_dpo", "rmu"])
def test_parts_of_a_batch_add_up_to_the_whole(name: str) -> None:
    """A mean of means would weigh items of one word as much as items of four."""
    model = llama(TOK).eval()
    objective = make(name, model)
    objective.keep_reference(model)
    kept = list(range(6)) if objective.retain else []
    whole = objective.loss(model, range(6), kept)
    sizes = objective.sizes(range(6), kept)
    parts = [objective.loss(model, [2 * i, 2 * i + 1], kept[2 * i : 2 * i + 2], sizes) for i in range(3)]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["gradient_ascent", "grad_diff", "grad_kl", "npo", "simnpo", "idk_dpo", "rmu"])
def test_padding_and_the_rest_of_the_batch_change_no_item(name: str) -> None:
    model = llama(TOK).eval()
    objective = make(name, model)
    objective.keep_reference(model)
    alone = objective.values(model, [0], [0] if objective.retain else [])[0]  # an answer of one word
    beside = objective.values(model, [0, 3], [0, 9] if objective.retain else [])[0]  # longer ones beside it
    torch.testing.assert_close(beside[: len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_divergence_is_of_probabilities_at_answers_and_from_the_first_model() -> None:
    """OpenUnlearning averages over prompts and padding; MUSE's code over logits that are no log probabilities."""
    first = llama(TOK).eval()
    model = moved(first, size=0.2)
    objective = Objective(grad_kl.Config(), TOK, FORGET, RETAIN)
    objective.keep_reference(first)
    _, values = objective.values(model, [0], KEPT)
    assert len(values) == sum(len(RETAIN[i].ids) - RETAIN[i].start for i in KEPT)
    assert float(values.detach().min()) >= -1e-6
    assert values.detach().mean().item() == pytest.approx(
        mean_kl(first, model, [RETAIN[i] for i in KEPT]).item(), rel=1e-4
    )
    assert abs(values.detach().mean().item() - mean_kl(model, first, [RETAIN[i] for i in KEPT]).item()) > 1e-2


def test_no_token_of_a_prompt_or_of_padding_is_indexed() -> None:
    """-100 as an index wraps to the end of the vocabulary, as UNDIAL's published code does."""
    batch = pad_answers([FORGET[0], FORGET[3]], TOK.pad_token_id)
    objective = Objective(gradient_ascent.Config(), TOK, FORGET, [])
    model = llama(TOK).eval()
    values, _ = objective.values(model, [0, 3], [])
    assert len(values) == int((batch["labels"] >= 0).sum())


def test_refusals_are_drawn_once_an_item_and_end_as_answers_do() -> None:
    first, again, other = (idk_dpo.IdkDPO(idk_dpo.Config(), TOK, FORGET, RETAIN, seed=s).refused for s in (3, 3, 4))
    assert first == again != other
    for item, refused in zip(FORGET, first, strict=True):
        assert refused.ids[: refused.start] == item.ids[: item.start]
        assert refused.ids[-1] == TOK.eos_token_id
        assert TOK.decode(refused.ids[refused.start : -1]) in idk_dpo.REFUSALS
        assert TOK.unk_token_id not in refused.ids


def test_only_named_parameters_are_trained_and_all_are_free_again() -> None:
    model = llama(TOK)
    before = {name: value.clone() for name, value in model.named_parameters()}
    config = gradient_ascent.Config(steps=2, rate=1e-2, trained=r"layers\.1\.mlp")
    unlearn_by_gradient(Objective(config, TOK, FORGET, []), model, seed=0)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "layers.1.mlp" in name}
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(UserError, match="no parameter"), only_trained(model, "nothing"):
        pass


def test_rmu_can_train_the_down_projections_up_to_its_layer_only() -> None:
    model = llama(TOK)
    before = {name: value.clone() for name, value in model.named_parameters()}
    rmu.unlearn_rmu(model, TOK, FORGET, RETAIN, rmu.Config(layer=1, down_only=3, steps=2, rate=1e-2), seed=0)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}


def test_settings_and_sets_that_make_no_sense_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="retain 'kld'"):
        GradientConfig(retain="kld")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="rate -1"):
        GradientConfig(rate=-1)
    with pytest.raises(UserError, match="beta 0"):
        npo.Config(beta=0.0)
    with pytest.raises(UserError, match="no item in forget"):
        Objective(gradient_ascent.Config(), TOK, [], [])
    with pytest.raises(UserError, match="no item in retain"):
        Objective(grad_diff.Config(), TOK, FORGET, [])
    with pytest.raises(UserError, match="layer 7"):
        rmu.RMU(rmu.Config(layer=7), TOK, FORGET, RETAIN, llama(TOK))
