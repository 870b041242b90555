"""KGA: divergences in the paper's order against passes of single items, two steps written out, and the stop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.methods.unlearning.small_models import item_logp, items, llama, same, tokenizer, weights
from torch import Tensor

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.answer_training import FORGET, RETAIN, UNSEEN, batch_at
from transfuse.methods.unlearning.kga import Config, alignment, item_gaps, small_models, stopped, unlearn_kga

TOK = tokenizer()
GONE, KEPT, NEW = items(TOK, 0, 5), items(TOK, 5, 14), items(TOK, 14, 20)


def divergence(p: Any, q: Any, chosen: list[EncodedAnswer]) -> Tensor:
    """KL(p || q), mean over answer tokens."""
    a, b = (torch.cat([item_logp(model, item) for item in chosen]) for model in (p, q))
    return (a.exp() * (a - b)).sum(-1).mean()


def test_gaps_are_averaged_over_the_reference_in_this_order() -> None:
    small, model = llama(TOK, 1).double(), llama(TOK, 2).double()
    totals, tokens = item_gaps(small, model, NEW, 0, batch=4)
    for i, item in enumerate(NEW):
        assert tokens[i] == len(item.ids) - item.start
        expected = float(divergence(small, model, [item]).detach())
        assert float(totals[i] / tokens[i]) == pytest.approx(expected, abs=1e-5)
        swapped = float(divergence(model, small, [item]).detach())
        assert abs(expected - swapped) > 1e-5, "the order makes no difference here: the test shows nothing"


def test_the_alignment_has_no_gradient_from_the_unseen_data() -> None:
    far, constant = torch.tensor(0.2, requires_grad=True), torch.tensor(1.5, requires_grad=True)
    alignment(far, constant).backward()
    assert far.grad == -1.0 and constant.grad is None  # theta still near A_f: moved away from it
    far = torch.tensor(2.0, requires_grad=True)
    alignment(far, 1.5).backward()
    assert far.grad == 1.0  # too far: brought back


def test_the_stop() -> None:
    c = Config(stop_value=0.05, stop_share=0.1)
    assert stopped(1.0, 0.1, c) and not stopped(1.0, 0.11, c) and stopped(0.1, 0.05, c)
    assert not stopped(1.0, 0.06, Config(stop_value=0.05))


def written_out(model: Any, config: Config, steps: int) -> dict[str, Tensor]:
    """The method as the paper has it, with four models in memory and passes of single items."""
    first = copy.deepcopy(model)
    taught, other = small_models(model, GONE, NEW, 0, config, seed=3)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.rate, weight_decay=0.0)
    for step in range(steps):
        optimiser.zero_grad()
        loss = torch.tensor(0.0, dtype=torch.float64)
        for inner in range(config.inner_steps):
            at = batch_at(step * config.inner_steps + inner, len(KEPT), config.batch, 3, RETAIN)
            loss = loss + config.r * divergence(first, model, [KEPT[i] for i in at]) / config.inner_steps
        gone = [GONE[i] for i in batch_at(step, len(GONE), config.batch, 3, FORGET)]
        new = [NEW[i] for i in batch_at(step, len(NEW), config.batch, 3, UNSEEN)]
        loss = loss + (divergence(taught, model, gone) - divergence(other, first, new).detach()).abs()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return weights(model)


def test_two_steps_are_those_of_the_method_written_out() -> None:
    config = Config(batch=3, inner_steps=2, steps=2, rate=1e-3, r=0.5, small_steps=8, small_rate=1e-2, stop_value=0.0)
    torch.manual_seed(11)
    model = llama(TOK, 4)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = written_out(copy.deepcopy(model), config, 2)
    unlearn_kga(model, TOK, GONE, KEPT, config, seed=3, unseen=NEW)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], atol=2e-5, rtol=1e-3)


def test_small_models_start_alike_know_their_own_data_and_are_frozen() -> None:
    from transfuse.methods.unlearning.answer_training import answer_control

    model = llama(TOK)
    taught, other = small_models(model, GONE, NEW, 0, Config(small_steps=30, small_rate=1e-2), seed=0)
    assert answer_control(GONE, 0)(taught) > 3 * answer_control(GONE, 0)(other)
    assert answer_control(NEW, 0)(other) > 3 * answer_control(NEW, 0)(taught)
    assert not any(p.requires_grad for m in (taught, other) for p in m.parameters())
    first, second = small_models(model, GONE, NEW, 0, Config(small_steps=0), seed=0)
    assert same(first, weights(second))


def test_it_stops_by_the_papers_rule_by_on_step_and_at_the_end() -> None:
    quick = {"small_steps": 2, "inner_steps": 1, "batch": 4}
    for config, on_step, expected in (
        (Config(stop_value=1e9, steps=5, **quick), lambda step, _: False, 1),
        (Config(stop_value=0.0, steps=5, **quick), lambda step, _: step == 2, 2),
        (Config(stop_value=0.0, steps=3, **quick), lambda step, _: False, 3),
    ):
        seen: list[int] = []

        def count(step: int, model: Any, seen: list[int] = seen, on_step: Any = on_step) -> bool:
            seen.append(step)
            return bool(on_step(step, model))

        unlearn_kga(llama(TOK), TOK, GONE, KEPT, config, seed=0, on_step=count, unseen=NEW)
        assert seen == list(range(1, expected + 1))


def test_unseen_data_have_no_default() -> None:
    with pytest.raises(UserError, match="never taught"):
        unlearn_kga(llama(TOK), TOK, GONE, KEPT, seed=0)
