"""Trains a PyKEEN model with a given negative sampler and ranks triples with it; shared by studies of samplers."""

from __future__ import annotations

import contextlib
import gc
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from pykeen.evaluation import RankBasedEvaluator
from pykeen.losses import Loss, MarginRankingLoss, NSSALoss
from pykeen.models import Model, model_resolver
from pykeen.sampling import NegativeSampler
from pykeen.training import SLCWATrainingLoop
from pykeen.training.callbacks import TrainingCallback
from pykeen.triples import CoreTriplesFactory
from torch import Tensor

from transfuse.data.graphs import TextGraph
from transfuse.study.streams import Streams


@dataclass(frozen=True)
class Training:
    """How one model is trained, the same for every sampler."""

    model: str
    dim: int
    epochs: int
    batch_size: int
    lr: float
    margin: float
    nssa_temperature: float | None = None  # self-adversarial weighting of negatives; None for the margin loss
    nssa_margin: float = 9.0
    evaluate_every: int = 5
    device: str = "cpu"


@dataclass(frozen=True)
class Ranking:
    """Filtered ranks of heads and tails, one row a triple. Shape (n, 2); 1 is best."""

    ranks: np.ndarray

    @property
    def reciprocal(self) -> np.ndarray:
        """Mean of the two reciprocal ranks of each triple. Shape (n,)."""
        return (1.0 / self.ranks).mean(axis=1)

    @property
    def mrr(self) -> float:
        return float(self.reciprocal.mean())

    @property
    def mean_rank(self) -> float:
        return float(self.ranks.mean())

    def hits(self, k: int) -> float:
        return float((self.ranks <= k).mean())


def rank_triples(model: Model, triples: Tensor, known: list[Tensor]) -> Ranking:
    """Filtered, realistic ranks by PyKEEN's evaluator; other true triples among `known` are passed over."""
    evaluator = RankBasedEvaluator(metrics=["mrr"], add_defaults=False, clear_on_finalize=False)
    evaluator.evaluate(
        model, triples, additional_filter_triples=known, batch_size=256, use_tqdm=False, tqdm_kwargs={"disable": True}
    )
    sides = [np.concatenate(evaluator.ranks[side, "realistic"]) for side in ("head", "tail")]
    return Ranking(np.stack(sides, axis=1))


class _EpochClock(TrainingCallback):
    """Starts every epoch from its own random stream, so that batch order is the same whatever the sampler drew."""

    def __init__(self, streams: Streams, valid: Tensor, known: list[Tensor], every: int) -> None:
        super().__init__()
        self.streams, self.valid, self.known, self.every = streams, valid, known, every
        self.curve: list[tuple[int, float]] = []

    def post_epoch(self, epoch: int, epoch_loss: float, **kwargs: object) -> None:
        if len(self.valid) and epoch % self.every == 0:
            self.model.eval()
            self.curve.append((epoch, rank_triples(self.model, self.valid, self.known).mrr))
            self.model.train()
        torch.manual_seed(self.streams.order.child(epoch + 1).integer())


@contextlib.contextmanager
def settled_garbage() -> Iterator[None]:
    """PyKEEN collects garbage in every epoch; what is alive now is left out of that, which saves most of the time.

    Enter it after everything is imported and made that a training does not make: half of a run went into looking
    through the modules of a text encoder again and again.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def quiet_pykeen() -> None:
    """PyKEEN warns at every model of a processor without a GPU; a study makes dozens of them."""
    for name in ("pykeen", "torch_max_mem"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def _loss(training: Training) -> Loss:
    if training.nssa_temperature is None:
        return MarginRankingLoss(margin=training.margin)
    return NSSALoss(margin=training.nssa_margin, adversarial_temperature=training.nssa_temperature)


def train_model(
    graph: TextGraph, sampler: NegativeSampler, training: Training, streams: Streams, valid_curve: int = 0
) -> tuple[Model, list[tuple[int, float]]]:
    """Train from the seed's initial weights; the sampler is the only thing that may differ between arms.

    Args:
        graph: the graph.
        sampler: any PyKEEN sampler.
        training: hyperparameters.
        streams: of the seed.
        valid_curve: how many validation triples to rank every `evaluate_every` epochs.

    Returns:
        The model, and (epoch, validation MRR) pairs.
    """
    quiet_pykeen()
    factory = CoreTriplesFactory(
        torch.from_numpy(graph.train), num_entities=len(graph.entities), num_relations=len(graph.relations)
    )
    known = [torch.from_numpy(part) for part in (graph.train, graph.valid, graph.test)]
    with streams.init.seeded():
        model = model_resolver.make(
            training.model,
            triples_factory=factory,
            embedding_dim=training.dim,
            loss=_loss(training),
            random_seed=streams.init.integer(),
        ).to(training.device)
    clock = _EpochClock(streams, known[1][:valid_curve], known, training.evaluate_every)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.lr)
    loop = SLCWATrainingLoop(model=model, triples_factory=factory, optimizer=optimizer, negative_sampler=sampler)
    with streams.order.child(1).seeded():
        loop.train(
            factory, num_epochs=training.epochs, batch_size=training.batch_size, use_tqdm=False, use_tqdm_batch=False,
            callbacks=clock,
        )  # fmt: skip
    model.eval()
    return model, clock.curve


def epochs_to(curve: list[tuple[int, float]], target: float) -> int:
    """First evaluated epoch that reaches the target; one step after the last if none does."""
    for epoch, value in curve:
        if value >= target:
            return epoch
    return 2 * curve[-1][0] - curve[-2][0] if len(curve) > 1 else curve[-1][0] + 1
