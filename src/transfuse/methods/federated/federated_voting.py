"""Pseudo-labels from the votes of client models, and fine-tuning a model on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord
from torch.nn import functional as F

from transfuse.methods.federated.split_model import SplitModel, evaluating, frozen_statistics

_CHUNK = 1024  # samples predicted at once


@dataclass(frozen=True)
class Votes:
    """What the clients say about each target sample.

    Attributes:
        labels: the class with most votes, int64 (n,).
        agreement: share of the clients that voted for it, (n,).
        entropy: of the shares of votes, in nats, (n,); 0 where all agree.
    """

    labels: torch.Tensor
    agreement: torch.Tensor
    entropy: torch.Tensor


def majority_vote(log_probs: torch.Tensor) -> Votes:
    """One vote a client; ties go to the tied class with the larger summed log-probability.

    Args:
        log_probs: of each client, (clients, n, classes).
    """
    ballots = F.one_hot(log_probs.argmax(dim=-1), log_probs.shape[-1])
    counts = ballots.sum(dim=0)  # (n, classes)
    most = counts.amax(dim=-1, keepdim=True)
    labels = log_probs.sum(dim=0).masked_fill(counts < most, -torch.inf).argmax(dim=-1)
    shares = counts.to(log_probs.dtype) / len(log_probs)
    return Votes(labels, most[:, 0].to(log_probs.dtype) / len(log_probs), -torch.xlogy(shares, shares).sum(dim=-1))


def predict_each(model: SplitModel, weights: Sequence[ArrayRecord], x: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the same samples under several sets of weights, (sets, n, classes).

    The model is lent for it: its own weights are put back.
    """
    own = {key: value.clone() for key, value in model.model.state_dict().items()}
    rows = []
    try:
        with evaluating(model):
            for arrays in weights:
                model.load(arrays)
                rows.append(torch.cat([model(part) for part in x.split(_CHUNK)]))
    finally:
        model.model.load_state_dict(own)
    return torch.stack(rows)


def fine_tune(
    model: SplitModel,
    optimiser: torch.optim.Optimizer,
    x: torch.Tensor,
    labels: torch.Tensor,
    kept: torch.Tensor,
    alphas: Sequence[float],
) -> None:
    """One step a batch on ``alpha * NLL``; samples that are not kept do not count, and a batch of them is passed over.

    Args:
        model: changed in place; statistics of batch normalisation stay.
        optimiser: over its parameters.
        x: samples in the order of the batches, (batches * size, ...).
        labels: pseudo-labels, (batches * size,).
        kept: which samples count, bool (batches * size,).
        alphas: weight of each batch, (batches,).
    """
    training = model.training
    model.train()
    size = len(x) // len(alphas)
    with frozen_statistics(model):
        for alpha, xb, yb, use in zip(alphas, x.split(size), labels.split(size), kept.split(size), strict=True):
            if not use.any():
                continue
            optimiser.zero_grad()
            (alpha * F.nll_loss(model(xb[use]), yb[use])).backward()
            optimiser.step()
    model.train(training)
