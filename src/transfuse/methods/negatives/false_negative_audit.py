"""How hard the negatives of a sampler are, and how many of them are not negative at all.

Works for any sampler that turns positives (n, 3) into negatives (n, k, 3), and for any graph given as id triples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transfuse.errors import UserError

Draw = Callable[[Tensor], Tensor]  # positives (n, 3) -> negatives (n, k, 3)
Score = Callable[[Tensor], Tensor]  # triples (n, 3) -> plausibility (n,)
_BATCH = 1024


def triple_codes(triples: Tensor, num_entities: int, num_relations: int) -> Tensor:
    """One integer a triple, (h R + r) N + t; distinct for ids within the limits. Shape (..., 3) -> (...)."""
    head, relation, tail = triples.unbind(-1)
    return (head * num_relations + relation) * num_entities + tail


def find_codes(known: Tensor, asked: Tensor) -> Tensor:
    """Which of the codes are among the sorted ones. Any shape -> the same, bool."""
    if len(known) == 0:
        return torch.zeros_like(asked, dtype=torch.bool)
    flat = asked.reshape(-1)
    at = torch.searchsorted(known, flat).clamp_(max=len(known) - 1)
    return (known.index_select(0, at) == flat).reshape(asked.shape)


class TripleIndex:
    """Exact membership of triples in a set, vectorised: sorted integer codes and a binary search.

    Args:
        triples: shape (n, 3); may be empty.
        num_entities: ids of heads and tails are below this.
        num_relations: ids of relations are below this.
    """

    def __init__(self, triples: Tensor | np.ndarray, num_entities: int, num_relations: int) -> None:
        self.num_entities, self.num_relations = num_entities, num_relations
        rows = torch.as_tensor(triples, dtype=torch.long).reshape(-1, 3)
        limits = torch.tensor([num_entities, num_relations, num_entities])
        if bool((rows < 0).any()) or bool((rows >= limits).any()):
            raise UserError("a triple with an id out of range", f"{num_entities} entities, {num_relations} relations")
        self.codes = torch.unique(triple_codes(rows, num_entities, num_relations))

    def triples(self) -> Tensor:
        """The distinct triples, in order of code. Shape (n, 3)."""
        pair, tail = self.codes // self.num_entities, self.codes % self.num_entities
        return torch.stack([pair // self.num_relations, pair % self.num_relations, tail], dim=-1)

    def contains(self, triples: Tensor) -> Tensor:
        """Which triples are in the set. Shape (..., 3) -> (...), bool."""
        return find_codes(self.codes, triple_codes(triples, self.num_entities, self.num_relations))


@dataclass(frozen=True)
class NegativeProfile:
    """What a sampler's negatives are like.

    Attributes:
        fnr_train: share that are training triples; a filter removes these.
        fnr_held: share that are held-out true triples; no filter can remove these.
        fnr_train_per_positive, fnr_held_per_positive: the same for each positive, for intervals. Shape (n,).
        coverage: entropy of the entities drawn over the entropy of all being drawn equally often; 1 is even.
        typed: share whose new entity stands on that side of that relation in some training triple.
        hardness: mean of model score of the negative minus that of its positive; None without a model. Above 0 the
            model prefers the negative.
        gradient_share: share of negatives within the margin of their positive, those that a margin loss learns from.
        negatives: number of negatives looked at.
    """

    fnr_train: float
    fnr_held: float
    fnr_train_per_positive: np.ndarray
    fnr_held_per_positive: np.ndarray
    coverage: float
    typed: float
    hardness: float | None
    gradient_share: float | None
    negatives: int

    def interval(self, name: str) -> tuple[float, float]:
        """95 % interval of `fnr_train` or `fnr_held`, by positives: negatives of one positive depend."""
        per_positive = getattr(self, f"{name}_per_positive")
        mean = float(per_positive.mean())
        if len(per_positive) < 2:
            return 0.0, 1.0
        half = 1.96 * float(per_positive.std(ddof=1)) / len(per_positive) ** 0.5
        return max(0.0, mean - half), min(1.0, mean + half)


def profile_negatives(
    draw: Draw,
    positives: Tensor,
    train: TripleIndex,
    held: TripleIndex,
    *,
    score: Score | None = None,
    margin: float = 1.0,
    rounds: int = 1,
) -> NegativeProfile:
    """Draw negatives for all positives and look at them; randomness is torch's global generator.

    Args:
        draw: the sampler, for example `sampler.corrupt_batch`.
        positives: shape (n, 3).
        train: the training triples.
        held: the held-out true triples; an empty index where there are none.
        score: a model's plausibility, higher is more plausible, for `hardness` and `gradient_share`.
        margin: of the margin loss, in units of the score.
        rounds: how many times to draw for every positive.
    """
    batches = [b for _ in range(rounds) for b in positives.split(_BATCH)]
    drawn = [draw(batch) for batch in batches]  # each (b, k, 3)
    in_train = torch.cat([train.contains(part).double().mean(1) for part in drawn])
    in_held = torch.cat([held.contains(part).double().mean(1) for part in drawn])
    gaps = [] if score is None else [_gap(score, b, part) for b, part in zip(batches, drawn, strict=True)]
    gap = torch.cat(gaps) if gaps else None
    shape = (rounds, len(positives))
    return NegativeProfile(
        fnr_train=float(in_train.mean()),
        fnr_held=float(in_held.mean()),
        fnr_train_per_positive=in_train.reshape(shape).mean(0).numpy(),
        fnr_held_per_positive=in_held.reshape(shape).mean(0).numpy(),
        coverage=coverage(_new_entities(batches, drawn), train.num_entities),
        typed=_typed_share(batches, drawn, train),
        hardness=None if gap is None else float(gap.mean()),
        gradient_share=None if gap is None else float((gap + margin > 0).double().mean()),
        negatives=sum(part.shape[0] * part.shape[1] for part in drawn),
    )


@torch.no_grad()
def _gap(score: Score, positives: Tensor, negatives: Tensor) -> Tensor:
    of_negatives = score(negatives.reshape(-1, 3)).reshape(negatives.shape[:-1])
    return (of_negatives - score(positives).reshape(-1, 1)).flatten()


def _changed(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """New entity of each negative and whether it is a head; unchanged triples count as tails."""
    is_head = negatives[..., 0] != positives[:, None, 0]
    return torch.where(is_head, negatives[..., 0], negatives[..., 2]), is_head


def _new_entities(positives: Sequence[Tensor], negatives: Sequence[Tensor]) -> Tensor:
    return torch.cat([_changed(b, part)[0].flatten() for b, part in zip(positives, negatives, strict=True)])


def coverage(entities: Tensor, num_entities: int) -> float:
    """Entropy of how often each entity was drawn, over log N. 1: all equally often; 0: always the same."""
    share = torch.bincount(entities, minlength=num_entities).double() / max(1, len(entities))
    share = share[share > 0]
    return float(-(share * share.log()).sum() / np.log(num_entities)) if num_entities > 1 else 0.0


def _typed_share(batches: Sequence[Tensor], drawn: Sequence[Tensor], train: TripleIndex) -> float:
    n, positives = train.num_entities, train.triples()
    heads = torch.unique(positives[:, 1] * n + positives[:, 0])
    tails = torch.unique(positives[:, 1] * n + positives[:, 2])
    typed, total = 0, 0
    for batch, part in zip(batches, drawn, strict=True):
        entity, is_head = _changed(batch, part)
        code = batch[:, None, 1] * n + entity
        typed += int(torch.where(is_head, torch.isin(code, heads), torch.isin(code, tails)).sum())
        total += code.numel()
    return typed / max(1, total)


def profile_all(
    draws: Mapping[str, Draw],
    train: Tensor,
    held_out: Tensor,
    num_entities: int,
    num_relations: int,
    *,
    score: Score | None = None,
    margin: float = 1.0,
    rounds: int = 1,
    seed: int = 0,
    audited: Tensor | None = None,
) -> dict[str, NegativeProfile]:
    """The profile of every sampler on the same positives (`audited`, all of `train` by default), each from one seed."""
    known = TripleIndex(train, num_entities, num_relations)
    held = TripleIndex(held_out, num_entities, num_relations)
    profiles = {}
    for name, draw in draws.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            profiles[name] = profile_negatives(
                draw, train if audited is None else audited, known, held, score=score, margin=margin, rounds=rounds
            )
    return profiles
