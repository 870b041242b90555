"""Closed forms against the published solve, and which directions count as free."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from transfuse.errors import UserError
from transfuse.methods.unlearning.rank_one_redirection import (
    project,
    redirect_keys,
    relative_ridge,
    rewrite_key,
    used_directions,
)

D, FF = 6, 20


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def directions(m: int = 12) -> Tensor:
    return torch.linalg.qr(drawn(FF, m, seed=9))[0]


def published(U: Tensor, keys: Tensor, residuals: Tensor, ridge: float, earlier: Tensor | None = None) -> Tensor:
    """The d_ff x d_ff solve, with P as a matrix."""
    P = torch.eye(FF, dtype=U.dtype) - U @ U.T
    past = torch.zeros(FF, FF, dtype=U.dtype) if earlier is None else earlier @ earlier.T
    system = P @ (keys @ keys.T + past) + ridge * torch.eye(FF, dtype=U.dtype)
    return torch.linalg.solve(system, P @ keys @ residuals.T).T


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("past", [0, 1, 4])
@pytest.mark.parametrize("ridge", [1e-3, 1.0, 10.0])
def test_the_update_is_the_published_solve(n: int, past: int, ridge: float) -> None:
    U, keys, residuals = directions(), drawn(FF, n), drawn(D, n, seed=1)
    earlier = drawn(FF, past, seed=2) if past else None
    found = redirect_keys(U, keys, residuals, ridge, earlier)
    torch.testing.assert_close(found.delta(), published(U, keys, residuals, ridge, earlier), rtol=1e-10, atol=1e-12)
    assert found.norm() == pytest.approx(float(found.delta().norm()))


def test_one_key_receives_its_efficacy_and_common_keys_nothing() -> None:
    U, key, residual = directions(), drawn(FF, 1), drawn(D, 1, seed=1)
    found = redirect_keys(U, key, residual, 2.0)
    q = project(U, key)
    share = float(q.square().sum() / (2.0 + q.square().sum()))
    assert float(found.efficacy) == pytest.approx(share)
    assert float(found.free) == pytest.approx(float(q.square().sum() / key.square().sum()))
    torch.testing.assert_close(found.delta() @ key, share * residual)
    assert float((found.delta() @ U).abs().max()) < 1e-12


def test_an_earlier_key_keeps_what_it_maps_to_as_lambda_vanishes() -> None:
    U, keys, earlier = directions(), drawn(FF, 1), drawn(FF, 1, seed=2)
    kept = redirect_keys(U, keys, drawn(D, 1, seed=1), 1e-9, earlier)
    assert float((kept.delta() @ earlier).norm()) < 1e-6
    torch.testing.assert_close(kept.delta() @ keys, drawn(D, 1, seed=1), rtol=1e-6, atol=1e-6)
    free = redirect_keys(U, keys, drawn(D, 1, seed=1), 1e-9)
    assert float((free.delta() @ earlier).norm()) > 0.1


def test_free_directions_by_threshold_by_share_and_by_least() -> None:
    moment = torch.diag(torch.tensor([5.0, 0.01, 3.0, 0.03, 0.001, 1.959]))  # trace 10
    assert used_directions(moment, tau=2e-2).shape == (6, 4)
    assert used_directions(moment, share=0.0012, least=0.0).shape == (6, 4)  # 0.001 + 0.01 of 10 are free
    assert used_directions(moment, share=0.0, least=0.5).shape == (6, 3)
    U = used_directions(moment, tau=1.0)
    torch.testing.assert_close(project(U, torch.eye(6)).diagonal(), torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0]))


def test_the_relative_ridge_writes_the_same_share_at_any_scale() -> None:
    U, key, residual = directions(), drawn(FF, 1), drawn(D, 1, seed=1)
    for scale in (1e-3, 1.0, 1e3):
        found = redirect_keys(U, scale * key, residual, relative_ridge(U, scale * key, 0.1))
        assert float(found.efficacy) == pytest.approx(1 / 1.1)


def test_rome_writes_all_of_it_with_the_smallest_change_to_common_keys() -> None:
    sample, key, residual = drawn(FF, 400, seed=3), drawn(FF, 1), drawn(D, 1, seed=1)
    moment = sample @ sample.T / 400
    delta = rewrite_key(moment, key, residual, jitter=0.0).delta()
    torch.testing.assert_close(delta @ key, residual)
    plain = residual @ key.T / key.square().sum()  # the smallest change of the weight itself
    assert (delta @ sample).norm() < (plain @ sample).norm()
    other = delta + residual @ (lambda x: (x - (x.T @ key) / key.square().sum() * key).T)(0.01 * drawn(FF, 1, seed=5))
    assert (delta @ sample).norm() < (other @ sample).norm()  # another change that writes the same at the key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ridge": 0.0}, "lambda = 0"),
        ({"ridge": float("nan")}, "lambda = nan"),
        ({"residuals": drawn(D, 2)}, "residuals"),
        ({"keys": drawn(FF + 1, 1)}, "keys"),
    ],
)
def test_what_cannot_be_solved_is_said(change: dict, said: str) -> None:
    given = {"U": directions(), "keys": drawn(FF, 1), "residuals": drawn(D, 1), "ridge": 1.0} | change
    with pytest.raises(UserError, match=said):
        redirect_keys(**given)
    with pytest.raises(UserError, match="not finite"):
        used_directions(torch.full((3, 3), float("inf")))
    with pytest.raises(UserError, match="key of zeros"):
        rewrite_key(torch.eye(3), torch.zeros(3, 1), torch.zeros(2, 1))
