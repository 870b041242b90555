"""Closed forms of an edit of one linear layer that changes what a few keys map to and leaves common keys alone.

The layer computes W k. Common keys have the second moment K0 = E[k k^T]; P projects onto what they hardly use. The
published update solves a d_ff x d_ff system, Delta^T = [P (k k^T + K_p K_p^T) + lambda I]^-1 P k r^T. As P is a
projector, q = P k gives the same matrix without it: Delta = r q^T / (lambda + |q|^2), and for several keys an n x n
system. P itself is never stored: with U the directions that common keys do use, P k = k - U U^T k.

>>> import torch
>>> U = torch.eye(4)[:, :2]  # common keys use the first two directions only
>>> k, r = torch.tensor([3.0, 0.0, 2.0, 0.0]), torch.tensor([1.0, -1.0])
>>> edit = redirect_keys(U, k[:, None], r[:, None], 1.0)
>>> edit.delta() @ k  # |q|^2 / (lambda + |q|^2) = 4 / 5 of r
tensor([ 0.8000, -0.8000])
>>> float((edit.delta() @ U).abs().max())
0.0
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from transfuse.errors import UserError


@dataclass(frozen=True)
class LowRankEdit:
    """A change of a weight as two factors.

    Attributes:
        left: what is written, (d, n).
        right: which keys it is written for, (n, d_ff).
        efficacy: share of each residual that its own key receives, (n,); |q|^2 / (lambda + |q|^2) for one key.
        free: share of each key's squared length that lies in the null space, (n,). Near 0 the key is a common one: what
            is written then reaches other keys too, or, with an absolute lambda, is hardly written at all.
    """

    left: Tensor
    right: Tensor
    efficacy: Tensor
    free: Tensor

    def delta(self) -> Tensor:
        """The change itself, (d, d_ff)."""
        return self.left @ self.right

    def norm(self) -> float:
        """Frobenius norm of the change, from n x n products."""
        squared = ((self.left.T @ self.left) * (self.right @ self.right.T)).sum()
        return math.sqrt(max(0.0, float(squared)))


def used_directions(moment: Tensor, tau: float | None = None, share: float = 0.02, least: float = 0.1) -> Tensor:
    """The directions that common keys use, as orthonormal columns U (d_ff, m); what is orthogonal to them is free.

    Args:
        moment: second moment E[k k^T] of common keys, (d_ff, d_ff), symmetric.
        tau: the published rule: eigenvalues from `tau` on are used. It depends on the scale of a model's activations.
        share: the rule without `tau`: the smallest eigenvalues that hold this share of the trace together are free ...
        least: ... and at least this share of all directions.
    """
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1]:
        raise UserError(f"a second moment of shape {tuple(moment.shape)}", "(d_ff, d_ff)")
    if not bool(torch.isfinite(moment).all()):
        raise UserError("a second moment that is not finite", fix="look for overflow in the model's activations")
    values, vectors = torch.linalg.eigh(moment)  # ascending
    values = values.clamp(min=0.0)
    if tau is not None:
        free = int((values < tau).sum())
    else:
        held = values.cumsum(0) <= share * values.sum()
        free = max(int(held.sum()), math.ceil(least * len(values)))
    return vectors[:, free:].contiguous()


def project(U: Tensor, keys: Tensor) -> Tensor:
    """The part of keys in the null space, P K = K - U U^T K, (d_ff, n). U (d_ff, m), keys (d_ff, n)."""
    return keys - U @ (U.T @ keys)


def relative_ridge(U: Tensor, keys: Tensor, share: float = 0.1) -> float:
    """lambda as a share of the mean |P k|^2, so that about 1 / (1 + share) of each residual is written in any model."""
    return share * float(project(U, keys).square().sum(0).mean())


def redirect_keys(
    U: Tensor, keys: Tensor, residuals: Tensor, ridge: float, earlier: Tensor | None = None
) -> LowRankEdit:
    """Make W map each key to what it maps it to now plus a residual, and common and earlier keys to what they do now.

    Args:
        U: orthonormal directions that common keys use, (d_ff, m).
        keys: one column a subject, (d_ff, n).
        residuals: what is to be added to W k, (d, n).
        ridge: lambda, positive: the larger, the smaller the change and the less is written.
        earlier: keys of earlier edits, which are to keep what they map to, (d_ff, p).

    Raises:
        UserError: shapes that do not fit, a ridge that is not positive, or a key without any part in the null space.
    """
    _check(U, keys, residuals, ridge)
    n = keys.shape[1]
    every = keys if earlier is None else torch.cat([earlier, keys], dim=1)  # M (d_ff, p + n)
    Q = project(U, every)
    gram = Q.T @ Q  # M^T P M
    system = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    right = torch.linalg.solve(system, Q.T)[-n:]  # the rows of the keys, (n, d_ff)
    own = Q[:, -n:]
    efficacy = (right * own.T).sum(1)  # right q = right k, as right lies in the null space
    free = own.square().sum(0) / keys.square().sum(0).clamp(min=torch.finfo(keys.dtype).tiny)
    return LowRankEdit(residuals, right, efficacy, free)


def rewrite_key(moment: Tensor, key: Tensor, residual: Tensor, jitter: float = 1e-4) -> LowRankEdit:
    """ROME's update, the baseline: exactly `residual` is added at one key, and as little as can be at common ones.

    Delta = r (C^-1 k)^T / (k^T C^-1 k). There is no null space: common keys get a share, too.

    Args:
        moment: C = E[k k^T] of common keys, (d_ff, d_ff).
        key: (d_ff, 1).
        residual: (d, 1).
        jitter: added to the diagonal as a share of its mean, as C of few tokens has no inverse.
    """
    scale = jitter * float(moment.diagonal().mean())
    direction = torch.linalg.solve(moment + scale * torch.eye(len(moment)).to(moment), key)  # C^-1 k
    norm = (key * direction).sum()
    if not float(norm) > 0:
        raise UserError("a key of zeros", "a name that activates the layer")
    one = torch.ones(1).to(key)
    return LowRankEdit(residual, (direction / norm).T, one, one)


def _check(U: Tensor, keys: Tensor, residuals: Tensor, ridge: float) -> None:
    if keys.ndim != 2 or residuals.ndim != 2 or keys.shape[1] != residuals.shape[1] or U.shape[0] != keys.shape[0]:
        raise UserError(
            f"U {tuple(U.shape)}, keys {tuple(keys.shape)}, residuals {tuple(residuals.shape)}",
            "(d_ff, m), (d_ff, n), (d, n)",
        )
    if not ridge > 0:
        raise UserError(f"lambda = {ridge:g}", "a positive number", "a key without a part in the null space gives 0")
