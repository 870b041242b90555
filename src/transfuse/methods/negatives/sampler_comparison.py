"""Every sampler of the family on one graph, and the comparison of their false negatives as audit findings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pykeen.sampling import (
    BasicNegativeSampler,
    BernoulliNegativeSampler,
    NegativeSampler,
    PseudoTypedNegativeSampler,
)
from torch import Tensor

from transfuse.audit import AuditReport, Finding
from transfuse.data.graphs import TextGraph
from transfuse.methods.negatives.control_samplers import permuted
from transfuse.methods.negatives.false_negative_audit import NegativeProfile, profile_all
from transfuse.methods.negatives.pool_sampler import Corruption, PoolNegativeSampler
from transfuse.methods.negatives.text_neighbourhoods import Neighbourhoods

_AUDITED = 20_000  # training triples that are corrupted; more change the shares by less than 0.1 %


def build_samplers(
    train: Tensor,
    num_entities: int,
    num_relations: int,
    *,
    text_clusters: Neighbourhoods,
    text_knn: Neighbourhoods,
    structure_knn: Neighbourhoods,
    negatives: int = 8,
    mix: float = 0.5,
    filtered: bool = True,
    corruption: Corruption = "uniform",
    seed: int = 0,
) -> dict[str, NegativeSampler]:
    """Samplers by name: LEMON, its controls, and PyKEEN's own; all draw the same number of negatives.

    Args:
        train: shape (n, 3).
        text_clusters: pools of LEMON, also shuffled for the control `random_clusters` and pure in `lemon_pure`.
        text_knn, structure_knn: pools of nearest neighbours by text and by links.
        negatives: per positive.
        mix: share of uniform negatives of all pool samplers but `lemon_pure`.
        filtered: whether training triples are masked.
        seed: of the shuffling.
    """
    shared: dict[str, Any] = {
        "mapped_triples": train,
        "num_entities": num_entities,
        "num_relations": num_relations,
        "num_negs_per_pos": negatives,
        "filterer": "exact" if filtered else None,  # the same filter for all
    }

    def pools(neighbourhoods: Neighbourhoods, share: float = mix) -> PoolNegativeSampler:
        return PoolNegativeSampler(
            pools=neighbourhoods.pool,
            pool_of=neighbourhoods.pool_of,
            mix=share,
            corruption=corruption,
            filtered=filtered,
            **shared,
        )

    return {
        "uniform": BasicNegativeSampler(**shared),
        "bernoulli": BernoulliNegativeSampler(**shared),
        "pseudo_typed": PseudoTypedNegativeSampler(**shared),
        "random_clusters": pools(permuted(text_clusters, seed)),
        "structure_knn": pools(structure_knn),
        "text_knn": pools(text_knn),
        "lemon": pools(text_clusters),
        "lemon_pure": pools(text_clusters, 0.0),
        "lemon_uniform": pools(text_clusters, 1.0),
    }


def compare_samplers(
    graph: TextGraph,
    samplers: Mapping[str, NegativeSampler],
    neighbourhoods: Neighbourhoods,
    *,
    mix: float,
    negatives: int,
    permutations: int = 19,
    seed: int = 0,
    environment: Mapping[str, Any] | None = None,
) -> AuditReport:
    """False negatives, plausibility and coverage of every sampler, and whether LEMON's exceed those of shuffled text.

    The null: the entities of LEMON's pools exchanged at random, `permutations` times. A share above all of them is a
    finding. How often shuffled text itself would be flagged is counted by leaving each permutation out in turn.
    """
    train = torch.from_numpy(graph.train)
    audited = train
    if len(train) > _AUDITED:
        generator = torch.Generator().manual_seed(seed)
        audited = train[torch.randperm(len(train), generator=generator)[:_AUDITED]]
    sizes = len(graph.entities), len(graph.relations)
    draws = {name: sampler.corrupt_batch for name, sampler in samplers.items() if name != "lemon_uniform"}
    for index in range(permutations):
        control = permuted(neighbourhoods, seed + 1 + index)
        draws[f"null {index}"] = PoolNegativeSampler(
            mapped_triples=train, num_entities=sizes[0], num_relations=sizes[1], num_negs_per_pos=negatives,
            pools=control.pool, pool_of=control.pool_of, mix=mix, filtered=False,
        ).corrupt_batch  # fmt: skip
    profiles = profile_all(draws, train, torch.from_numpy(graph.held_out), *sizes, seed=seed, audited=audited)
    null = [profiles.pop(f"null {index}") for index in range(permutations)]
    metrics = ["fnr_train", *(["fnr_held"] if len(graph.held_out) else [])]
    limits = {metric: max(getattr(profile, metric) for profile in null) for metric in metrics}
    findings = [_finding(metric, name, p, limits) for metric in metrics for name, p in _ordered(profiles)]
    for metric in ("typed", "coverage"):
        findings += [_plain(metric, name, p) for name, p in _ordered(profiles)]
    return AuditReport(
        subject=graph.name,
        method="lemon",
        findings=tuple(findings),
        false_alarm_rate=_false_alarms(null, metrics),
        calibration=f"{permutations} graphs with the texts shuffled among the entities, each against the others",
        environment={**(environment or {}), **_size(graph), "audited_triples": len(audited)},
    )


def _size(graph: TextGraph) -> dict[str, Any]:
    return {
        "entities": len(graph.entities),
        "entities_with_text": sum(text is not None for text in graph.texts),
        "relations": len(graph.relations),
        "train": len(graph.train),
        "held_out": len(graph.held_out),
        "held_out_left_out": graph.unseen,
    }


def _ordered(profiles: Mapping[str, NegativeProfile]) -> list[tuple[str, NegativeProfile]]:
    return sorted(profiles.items(), key=lambda item: (item[0] != "lemon", item[0]))


_MEANING = {
    "fnr_train": "of the negatives are training triples",
    "fnr_held": "of the negatives are held-out true triples, which no filter can know",
    "typed": "of the negatives put an entity where training triples of that relation have it: plausible, hence hard",
    "coverage": "of the greatest possible entropy: how evenly entities are drawn",
}
_REMEDY = {
    "fnr_train": "keep filtered=True (the default of LEMON), or raise mix",
    "fnr_held": "raise mix or lower num_clusters, and compare with uniform on validation triples before trusting it",
}


def _finding(metric: str, name: str, profile: NegativeProfile, limits: Mapping[str, float]) -> Finding:
    value, limit = getattr(profile, metric), limits[metric]
    meaning = f"{value:.2%} {_MEANING[metric]}"
    if name != "lemon":
        return Finding(f"{name} {metric}", value, profile.interval(metric), None, "info", meaning)
    high = value > limit
    relation = "more than" if high else "no more than"
    meaning += f"; {relation} with shuffled texts (at most {limit:.2%})"
    verdict, remedy = ("finding", _REMEDY[metric]) if high else ("ok", "")
    return Finding(f"{name} {metric}", value, profile.interval(metric), limit, verdict, meaning, remedy)  # type: ignore[arg-type]


def _plain(metric: str, name: str, profile: NegativeProfile) -> Finding:
    value = getattr(profile, metric)
    return Finding(f"{name} {metric}", value, None, None, "info", f"{value:.1%} {_MEANING[metric]}")


def _false_alarms(null: list[NegativeProfile], metrics: list[str]) -> float | None:
    if len(null) < 2:
        return None
    flagged = 0
    for index, profile in enumerate(null):
        others = null[:index] + null[index + 1 :]
        flagged += any(getattr(profile, m) > max(getattr(other, m) for other in others) for m in metrics)
    return flagged / len(null)
