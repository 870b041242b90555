"""The Mahalanobis score: class means with one shared, shrunk covariance.

>>> import torch
>>> z = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
>>> gaussian = fit_gaussian(z, torch.arange(100) % 2)
>>> bool(gaussian(z[:1]) > gaussian(z[:1] + 9))  # larger = more in-distribution
True
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from transfuse.errors import UserError

Covariance = Literal["shrunk", "ledoit_wolf", "empirical"]


class TiedGaussian(nn.Module):
    """Class means with one shared covariance, kept whitened so that a distance is a plain Euclidean one.

    Whitening once costs N d^2 and the distances C N d; the form that multiplies by the precision for every class
    costs C N d^2.
    """

    centre: Tensor
    whitener: Tensor
    means: Tensor

    def __init__(self, centre: Tensor, whitener: Tensor, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre)  # (d,)
        self.register_buffer("whitener", whitener)  # (d, d): whitener @ whitener.T is the precision
        self.register_buffer("means", means)  # (classes, d), centred and whitened

    def forward(self, features: Tensor) -> Tensor:
        return mahalanobis_score(self, features)


def fit_gaussian(
    features: Tensor, labels: Tensor, covariance: Covariance = "shrunk", shrinkage: float = 0.1
) -> TiedGaussian:
    """Class means and the tied covariance of ID training features (paper, section 2; Lee et al. 2018).

    Args:
        features: (N, d) ID training features, float32 or float64; the result has their dtype and device.
        labels: (N,) integer classes in any numbering.
        covariance: shrunk: (1 - shrinkage) S + shrinkage tr(S)/d I; ledoit_wolf: the same with the shrinkage that
            minimises the expected squared error; empirical: S itself.
        shrinkage: used by "shrunk" only.

    Raises:
        UserError: shapes do not fit, values are not finite, or S is singular.
    """
    _check_features(features, labels)
    x = features.detach().double()
    centre = x.mean(dim=0)
    x = x - centre  # before any product, so that a large common offset costs no digits
    classes, index = labels.to(x.device).unique(return_inverse=True)
    counts = torch.bincount(index, minlength=len(classes)).to(x)
    means = torch.zeros(len(classes), x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, index, x)
    means = means / counts[:, None]  # (classes, d)
    residuals = x - means[index]  # (N, d)
    lower, failed = torch.linalg.cholesky_ex(_covariance(residuals, covariance, shrinkage))
    if int(failed) or not float(lower.diagonal().min()) > 1e-10 * float(lower.diagonal().max()):
        raise UserError(
            f"the {covariance} covariance of {len(x)} texts in {x.shape[1]} dimensions is singular",
            fix="use covariance='shrunk' with shrinkage above 0, or 'ledoit_wolf'; if features are constant, "
            "try pooling='avg'",
        )
    identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    whitener = torch.linalg.solve_triangular(lower, identity, upper=False).T  # (d, d), L^-T
    return TiedGaussian(centre.to(features), whitener.to(features), (means @ whitener).to(features))


def _covariance(residuals: Tensor, kind: Covariance, shrinkage: float) -> Tensor:
    S = residuals.T @ residuals / len(residuals)  # (d, d)
    if kind == "empirical":
        return S
    if kind == "ledoit_wolf":
        from sklearn.covariance import ledoit_wolf_shrinkage

        shrinkage = float(ledoit_wolf_shrinkage(residuals.cpu().numpy(), assume_centered=True))
    return (1 - shrinkage) * S + shrinkage * S.diagonal().mean() * torch.eye(len(S), dtype=S.dtype, device=S.device)


def mahalanobis_score(gaussian: TiedGaussian, features: Tensor) -> Tensor:
    """M(x) = max_c -(f(x) - mu_c)^T Lambda (f(x) - mu_c), shape (N,); larger = more ID."""
    whitened = (features - gaussian.centre) @ gaussian.whitener  # (N, d)
    return -torch.cdist(whitened, gaussian.means).amin(dim=1).square()


def _check_features(features: Tensor, labels: Tensor) -> None:
    if features.ndim != 2 or not features.is_floating_point():
        raise UserError(
            f"features of shape {tuple(features.shape)} and type {features.dtype}", "floats of shape (N, d)"
        )
    if labels.shape != (len(features),):
        raise UserError(f"labels of shape {tuple(labels.shape)} for {len(features)} texts", "one label a text")
    if len(features) < 2:
        raise UserError(f"{len(features)} training texts", "at least 2")
    if not bool(torch.isfinite(features).all()):
        raise UserError("features with NaN or infinity", "finite numbers", "check the encoder, or use float32")
