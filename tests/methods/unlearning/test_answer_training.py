"""What procedures share when they train: batches, losses, the frozen reference, the loop, the search for a strength."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.methods.unlearning.small_models import (
    item_logp,
    items,
    llama,
    real_gpt2,
    same,
    token_logp,
    tokenizer,
    weights,
)
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_training import (
    RETAIN,
    FrozenReference,
    answer_control,
    batch_at,
    fine_tune,
    kl,
    log_probs,
    nll,
    optimise,
    pad_id,
    scan_strength,
    seeded,
)

TOK = tokenizer()
ITEMS = items(TOK, 0, 7)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
def test_batches_are_shuffled_epochs_that_depend_on_the_step_only(count: int, size: int, seed: int) -> None:
    drawn = [i for step in range(2 * count) for i in batch_at(step, count, size, seed)]
    if size < count:
        for epoch in range(len(drawn) // count):
            assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))
    else:
        assert batch_at(3, count, size, seed) == list(range(count))
    assert batch_at(5, count, size, seed) == batch_at(5, count, size, seed)


def test_streams_of_one_seed_are_shuffled_apart() -> None:
    assert batch_at(0, 50, 20, 0) != batch_at(0, 50, 20, 0, RETAIN) != batch_at(0, 50, 20, 1, RETAIN)


@pytest.mark.parametrize("pad", [0, 9])
def test_losses_leave_out_prompts_and_padding(pad: int) -> None:
    """Divergence and likelihood are means over answer tokens; published code takes all positions, or the id V - 100."""
    model, other = llama(TOK).double(), llama(TOK, 1).double()
    logp, tokens = log_probs(model, ITEMS, pad)
    reference, _ = log_probs(other, ITEMS, pad)
    alone = torch.cat([token_logp(model, item) for item in ITEMS])
    torch.testing.assert_close(nll(logp, tokens).double(), -alone.mean(), atol=1e-6, rtol=0)
    p, q = (torch.cat([item_logp(m, item) for item in ITEMS]) for m in (other, model))
    expected = (p.exp() * (p - q)).sum(-1).mean()
    torch.testing.assert_close(kl(reference, logp).double(), expected, atol=1e-6, rtol=0)
    assert abs(float((kl(logp, reference) - kl(reference, logp)).detach())) > 1e-4, (
        "the order of arguments makes no difference"
    )


def test_divergence_is_that_of_its_definition_in_float64() -> None:
    p = torch.log_softmax(torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), -1)
    q = torch.log_softmax(torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), -1)
    expected = sum(float(p[i, v].exp() * (p[i, v] - q[i, v])) for i in range(5) for v in range(7)) / 5
    assert float(kl(p, q)) == pytest.approx(expected, abs=1e-12)
    assert float(kl(p, p)) == 0.0


def test_gradient_of_the_likelihood_equals_that_of_transformers() -> None:
    from transfuse.methods.unlearning.answer_tokens import pad_answers

    ours, theirs = llama(TOK), llama(TOK)
    nll(*log_probs(ours, ITEMS, 0)).backward()
    theirs(**pad_answers(ITEMS, 0)).loss.backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


class Scaled(nn.Module):
    """A model whose logits are not those of its head alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def forward(self, **inputs: Tensor) -> object:
        output = self.inner(**inputs)
        output.logits = output.logits / 3.0
        return output


@pytest.mark.parametrize("wrap", [lambda m: m, Scaled], ids=["head", "scaled"])
def test_the_reference_says_what_the_model_said_before_it_was_trained(wrap: type) -> None:
    model = wrap(llama(TOK))
    before, _ = log_probs(model, ITEMS, 0)
    reference = FrozenReference(model, ITEMS, 0, batch=3)
    assert (reference._head is None) == isinstance(model, Scaled)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    lengths = [len(item.ids) - item.start for item in ITEMS]
    parts = before.detach().split(lengths)
    chosen = [5, 0, 5, 3]
    torch.testing.assert_close(reference.log_probs(chosen), torch.cat([parts[i] for i in chosen]), atol=1e-5, rtol=0)
    assert not reference.log_probs([0]).requires_grad


def test_the_reference_has_no_dropout_and_leaves_mode_and_hooks_alone() -> None:
    model = real_gpt2().train()
    reference = FrozenReference(model, ITEMS[:2], 0)
    assert model.training and not model.get_output_embeddings()._forward_hooks
    model.eval()
    torch.testing.assert_close(
        reference.log_probs([0, 1]), log_probs(model, ITEMS[:2], 0)[0].detach(), atol=1e-4, rtol=0
    )


def test_the_loop_adds_up_losses_and_stops_where_it_is_told() -> None:
    """Two losses of a step are one update of their sum, as AdamW would make it."""
    made = []
    for halves in (False, True):
        model = nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[0.3, -0.2, 0.5]]))
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

        def losses(step: int, model: nn.Module = model, x: Tensor = x, halves: bool = halves) -> Iterator[Tensor]:
            if halves:
                yield model(x[:4]).square().sum()
                yield model(x[4:]).square().sum()
            else:
                yield model(x).square().sum()

        steps = optimise(model, losses, steps=9, rate=0.01, on_step=lambda step, _: step == 3)
        assert steps == 3 and model.weight.grad is None
        made.append(model.weight.detach())
    torch.testing.assert_close(made[0], made[1])


def test_a_loss_that_is_not_finite_is_refused_in_one_line() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(UserError, match="lower rate"):
        optimise(model, lambda step: [model.weight.sum() * float("nan")], steps=2, rate=0.1)


def test_fine_tuning_is_the_same_twice_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    runs = []
    for _ in range(2):
        model = llama(TOK)
        after = torch.get_rng_state()
        with seeded(3, model):
            torch.rand(5)
            fine_tune(model, ITEMS, 0, steps=3, rate=1e-3, batch=2, seed=1)
        assert torch.equal(after, torch.get_rng_state())
        runs.append(weights(model))
    assert same(model, runs[0])
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    ("controls", "keep", "expected"),
    [
        ({0.0: 1.0, 0.5: 0.97, 1.0: 0.9}, 0.95, 0.5),
        ({0.0: 1.0, 0.5: 0.5, 1.0: 0.96}, 0.95, 1.0),  # the largest that keeps it, not the first that loses it
        ({0.0: 1.0, 0.5: 0.5, 1.0: 0.5}, 0.95, 0.0),
        ({0.0: 1.0, 0.5: 0.0, 1.0: 0.0}, 0.0, 1.0),
        ({0.0: 1.0, 0.5: 0.0, 1.0: float("nan")}, 0.95, 0.0),
    ],
)
def test_strength_is_the_largest_that_keeps_the_control(
    controls: dict[float, float], keep: float, expected: float
) -> None:
    model = nn.Linear(1, 1)
    now = [0.0]

    def put(strength: float) -> None:
        now[0] = strength

    found = scan_strength(model, put, sorted(controls), lambda _: controls[now[0]], keep)
    assert found == now[0] == expected


def test_strength_by_on_step_is_the_first_at_which_it_says_so() -> None:
    model, now, seen = nn.Linear(1, 1), [0.0], []

    def on_step(step: int, _: nn.Module) -> bool:
        seen.append((step, now[0]))
        return now[0] >= 0.5

    found = scan_strength(model, lambda s: now.__setitem__(0, s), (1.0, 0.0, 0.5), lambda _: 1.0, 0.95, on_step)
    assert found == now[0] == 0.5 and seen == [(1, 0.0), (2, 0.5)]
    with pytest.raises(UserError, match="before anything is changed"):
        scan_strength(model, lambda s: None, (0.0, 1.0), lambda _: 0.0, 0.95)
    with pytest.raises(UserError, match="grid"):
        scan_strength(model, lambda s: None, (), lambda _: 1.0, 0.95)


def test_the_control_is_the_mean_probability_of_what_should_stay() -> None:
    model = llama(TOK)
    expected = np.mean([float(token_logp(model, item).mean().exp().detach()) for item in ITEMS])
    assert answer_control(ITEMS, 0)(model) == pytest.approx(expected, rel=1e-5)


def test_padding_falls_back_to_the_end_of_a_sequence() -> None:
    tok = tokenizer()
    tok.pad_token = None
    assert pad_id(tok) == tok.eos_token_id
    tok.eos_token = None
    with pytest.raises(UserError, match="pad_token"):
        pad_id(tok)
