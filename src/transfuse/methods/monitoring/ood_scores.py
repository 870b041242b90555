"""The detectors that GNOME is compared with, as functions of logits or features; larger = more in-distribution.

>>> import torch
>>> msp(torch.tensor([[4.0, 0.0], [0.1, 0.0]])).argmax().item()  # the confident one
0
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from transfuse.errors import UserError


def msp(logits: Tensor) -> Tensor:
    """Maximum softmax probability, (N, classes) -> (N,) (Hendrycks and Gimpel 2017)."""
    return logits.softmax(dim=1).amax(dim=1)


def max_logit(logits: Tensor) -> Tensor:
    """Largest logit, (N, classes) -> (N,) (Hendrycks et al. 2022)."""
    return logits.amax(dim=1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Negative free energy T logsumexp(logits / T), (N, classes) -> (N,); never overflows (Liu et al. 2020)."""
    return temperature * torch.logsumexp(logits / temperature, dim=1)


def odin(logits: Tensor, temperature: float = 1000.0) -> Tensor:
    """Softmax probability at a high temperature, (N, classes) -> (N,) (Liang et al. 2018, without input gradient).

    At T = 1000 the probabilities of a float32 softmax differ in their last digits only, so it is done in float64.
    """
    return (logits.double() / temperature).softmax(dim=1).amax(dim=1)


def d2u(logits: Tensor) -> Tensor:
    """KL divergence of the uniform distribution from the prediction, (N, classes) -> (N,): -log C - mean_c log p_c."""
    return -math.log(logits.shape[1]) - logits.log_softmax(dim=1).mean(dim=1)


def mc_dropout(logits: Tensor) -> Tensor:
    """Largest class probability of the mean prediction, from passes with dropout on: (passes, N, classes) -> (N,)."""
    if logits.ndim != 3:
        raise UserError(f"logits of shape {tuple(logits.shape)}", "(passes, N, classes)")
    return logits.softmax(dim=2).mean(dim=0).amax(dim=1)


def knn(train: Tensor, features: Tensor, k: int = 10) -> Tensor:
    """Negative distance to the k-th nearest ID training feature, all of unit length: (N,) (Sun et al. 2022).

    Every text is scored by this one definition, whether it is foreign or not.
    """
    if not 0 < k <= len(train):
        raise UserError(f"k = {k} neighbours of {len(train)} training texts", f"1 to {len(train)}")
    bank = torch.nn.functional.normalize(train, dim=1)  # (M, d)
    query = torch.nn.functional.normalize(features, dim=1)  # (N, d)
    nearest = [torch.cdist(chunk, bank).kthvalue(k, dim=1).values for chunk in query.split(1024)]
    return -torch.cat(nearest)


def local_outlier_factor(train: Tensor, features: Tensor, neighbours: int = 20) -> Tensor:
    """Local outlier factor against the ID training features, scikit-learn's sign: (N,) (Breunig et al. 2000)."""
    from sklearn.neighbors import LocalOutlierFactor

    lof = LocalOutlierFactor(n_neighbors=min(neighbours, len(train) - 1), novelty=True)
    lof.fit(train.cpu().numpy())
    return torch.from_numpy(np.asarray(lof.score_samples(features.cpu().numpy()))).to(features)
