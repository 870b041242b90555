"""Multi-kernel maximum mean discrepancy: from samples, and from the mean of random Fourier features.

The kernel is a sum of five Gaussians whose widths double, K(a, b) = sum_j exp(-|a - b|^2 / (s 2^j)), j = 0 .. 4, with
s = (mean squared distance of the pooled samples) / 4. Gretton et al. 2012 (the discrepancy), Rahimi and Recht 2007 (the
features).
"""

from __future__ import annotations

import numpy as np
import torch

KERNELS = 5  # kernel_num of the notebook; the code below squares one exponential KERNELS - 1 times
_CENTRE = 2.0 ** (KERNELS // 2)  # kernel_mul ** (kernel_num // 2): the middle width is the mean distance


def squared_distances(z: torch.Tensor) -> torch.Tensor:
    """All pairwise squared distances of rows, (..., n, d) -> (..., n, n), without an (n, n, d) array."""
    z = z - z.mean(dim=-2, keepdim=True).detach()  # distances do not see it, and rounding becomes smaller
    squares = z.square().sum(dim=-1)
    distances = squares[..., :, None] + squares[..., None, :] - 2.0 * z @ z.transpose(-1, -2)
    return distances.clamp_min(0.0)


def bandwidth(distances: torch.Tensor) -> torch.Tensor:
    """The narrowest kernel's width from pairwise squared distances (..., n, n): their mean over pairs / 4, (...)."""
    n = distances.shape[-1]
    mean = distances.detach().sum(dim=(-2, -1)) / max(n * n - n, 1)
    return (mean / _CENTRE).clamp_min(torch.finfo(distances.dtype).tiny)


def mk_mmd(source: torch.Tensor, target: torch.Tensor, width: torch.Tensor | None = None) -> torch.Tensor:
    """Squared discrepancy of two samples, the biased (V-statistic) form, at least 0; differentiable in both.

    Args:
        source: embeddings, (..., n, d); leading dimensions are separate problems.
        target: embeddings, (..., m, d).
        width: s above, (...); None takes it from the pooled samples, as a constant for the gradient.

    Returns:
        mean K_ss + mean K_tt - 2 mean K_st, (...).
    """
    n, m = source.shape[-2], target.shape[-2]
    distances = squared_distances(torch.cat((source, target), dim=-2))
    width = bandwidth(distances) if width is None else width
    kernel = torch.exp(distances / (-(2.0 ** (KERNELS - 1)) * width[..., None, None]))  # the widest
    total = kernel
    for _ in range(KERNELS - 1):
        kernel = kernel.square()  # half the width
        total = total + kernel
    signs = torch.cat((source.new_full((n,), 1.0 / n), source.new_full((m,), -1.0 / m)))
    return torch.einsum("i,...ij,j->...", signs, total, signs)


def frequencies(size: int, count: int, width: float, seed: int) -> np.ndarray:
    """Random frequencies of the kernel sum, (count, size) float32; the same on every machine for one seed.

    A Gaussian of width w is the mean of cos(f (a - b)) over f ~ N(0, 2/w). The rows are dealt to the five widths in
    turn.
    """
    normal = np.random.default_rng(seed).standard_normal((count, size))
    widths = width * 2.0 ** (np.arange(count) % KERNELS)
    return (normal * np.sqrt(2.0 / widths)[:, None]).astype(np.float32)


def mean_features(embeddings: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Mean cosine and sine of the embeddings along each frequency: (..., n, d), (m, d) -> (..., 2 m)."""
    angles = embeddings @ rows.transpose(0, 1)
    return torch.cat((angles.cos().mean(dim=-2), angles.sin().mean(dim=-2)), dim=-1)


def features_mmd(source: torch.Tensor, target_mean: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`mk_mmd` from the target's mean features alone, up to O(1 / sqrt m) for m frequencies.

    Args:
        source: embeddings, (..., n, d).
        target_mean: `mean_features` of the target, (2 m,).
        rows: the frequencies, (m, d), m a multiple of five for equal shares.
    """
    gap = mean_features(source, rows) - target_mean
    return gap.square().sum(dim=-1) * (KERNELS / len(rows))
