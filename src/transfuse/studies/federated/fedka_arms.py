"""The arms of the FedKA study: the eight combinations of blocks, baselines, placebos, sharing modes, and the audit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from transfuse.data.images import Labelled
from transfuse.hosts.flower.client_sampling import SampledStrategy, UniformSampler
from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.fedka import Config, FedKA
from transfuse.methods.federated.group_effect import RoundEffect
from transfuse.methods.federated.group_effect_report import rank_clients, report
from transfuse.methods.federated.split_model import SplitModel, evaluating
from transfuse.studies.federated.fedka_worlds import (
    PairedFedKA,
    PairedFedKAProx,
    Run,
    ShuffledVotes,
    World,
    client_app,
    federate,
    noise_like,
    one_domain,
    pooled,
)
from transfuse.study.design import Measurement
from transfuse.study.streams import Streams

# Block A, block B, block D: the paper's methods with and without voting.
BLOCKS = {
    "fedavg": (False, False, False),
    "fdann": (True, False, False),
    "fdan": (False, True, False),
    "fedka_novote": (True, True, False),
    "fedavg_vote": (False, False, True),
    "fdann_vote": (True, False, True),
    "fdan_vote": (False, True, True),
    "fedka": (True, True, True),
}


class Arms:
    """The arms in one world.

    Args:
        settings: those of the study.
        world: clients, target, model.
        streams: of the seed.
        where: the conditions to report.
    """

    def __init__(self, settings: Any, world: World, streams: Streams, where: dict[str, Any]) -> None:
        self.settings, self.world, self.where = settings, world, where
        self.noise = streams.noise.child("target", where["target"]).numpy()
        self.base = _base(settings, streams)

    def main(self) -> Iterator[Measurement]:
        """Every arm."""
        for arm in BLOCKS:
            yield from self._report(arm, self._run(self._config(arm)))
        full = self._config("fedka")
        averaged = replace(full, broadcast="averaged")
        yield from self._report("fedka_averaged", self._run(averaged))
        yield from self._report("fedka_official", self._run(replace(averaged, official=True)))
        yield from self._report("self_training", self._run(self._config("fedavg_vote", pseudo_labels="averaged")))
        yield from self._report("shuffled_votes", self._run(full, kind=ShuffledVotes))
        noise = replace(self.world, adaptation=noise_like(self.world.adaptation, self.noise))
        yield from self._report("noise_target", self._run(full, noise))
        if self.settings.secondary:
            yield from self._secondary(full)

    def pair(self) -> Iterator[Measurement]:
        """FedAvg and FedKA alone."""
        for arm in ("fedavg", "fedka"):
            yield from self._report(arm, self._run(self._config(arm)))

    def _secondary(self, full: Config) -> Iterator[Measurement]:
        yield from self._report("fedka_embeddings", self._run(replace(full, share="embeddings")))
        yield from self._report("fdan_stats", self._run(self._config("fdan", share="stats")))
        yield from self._report("fedka_gated", self._run(replace(full, min_agreement=1.0)))
        prox = {"kind": PairedFedKAProx, "proximal_mu": self.settings.proximal}
        yield from self._report("fedprox", self._run(self._config("fedavg"), **prox))
        yield from self._report("fedka_prox", self._run(full, **prox))
        yield from self._report("pooled", self._run(self._config("fedka_novote"), pooled(self.world)))

    def _config(self, arm: str, **changes: Any) -> Config:
        disentangle, match, vote = BLOCKS[arm]
        return replace(self.base, disentangle=disentangle, match=match, vote=vote, **changes)

    def _run(self, ka: Config, world: World | None = None, kind: type = PairedFedKA, **arguments: Any) -> Run:
        return federate(world or self.world, ka, self.settings.rounds, kind, **arguments)

    def _report(self, arm: str, run: Run) -> Iterator[Measurement]:
        last = self.settings.last
        effects = np.array([effect.effect for effect in run.effects])
        vote, client, average = run.late(last)
        values = {
            "accuracy": run.accuracy(last),
            "accuracy_last": run.effects[-1].aggregate,
            "ge": float(effects.mean()),
            "ge_negative": float(np.minimum(effects, 0.0).mean()),
            "ge_mean": float(np.mean([effect.mean - np.mean(effect.local) for effect in run.effects])),
            "ge_best": float(np.mean([effect.against_best for effect in run.effects])),
            "vote_accuracy": vote,
            "vote_over_clients": vote - client,
            "vote_over_average": vote - average,
        }
        for metric, value in values.items():
            yield Measurement(arm, metric, value, self.where)
        for effect in run.effects[:: max(1, len(run.effects) // 10)]:
            yield Measurement(arm, "accuracy", effect.aggregate, self.where, step=effect.round)


def _base(settings: Any, streams: Streams) -> Config:
    return Config(
        share="raw",
        rate=settings.rate,
        batch=settings.batch,
        steps=settings.steps,
        vote_steps=settings.vote_steps,
        workspace=settings.workspace,
        broadcast="finetuned",
        seed=streams.order.integer(),
    )


class AuditedFedAvg(SampledStrategy, FedKA):
    """FedAvg (all blocks off) with the Group Effect measured, every client left out in turn."""


def audit_arms(data: Labelled, settings: Any, streams: Streams) -> Iterator[Measurement]:
    """FedAvg among clients of one domain, with correct labels and with one client's labels shuffled; both audited."""
    for domain in settings.targets:
        where = {"target": domain, "statistics": "own"}
        for arm, spoil in (("clean_clients", False), ("shuffled_client", True)):
            world = one_domain(data, domain, settings.audit_clients, settings, streams, spoil)
            effects = audited_run(world, settings, streams)
            found = report(effects, draws=500)
            harms = {row.client: row.harm for row in rank_clients(effects)}
            first = next(iter(harms))
            yield Measurement(arm, "harm", harms[first], where)
            finding = next(f for f in found.findings if f.name == "harmful client")
            yield Measurement(arm, "flagged", float(finding.verdict == "finding"), where)
            if spoil:
                other = max(harm for client, harm in harms.items() if client != "1")
                yield Measurement(arm, "harm_margin", harms["1"] - other, where)
                yield Measurement(arm, "named", float(first == "1"), where)


def audited_run(world: World, settings: Any, streams: Streams) -> list[RoundEffect]:
    """Effects of a FedAvg run; node ids of a `LocalGrid` start at 1."""
    scorer = SplitModel(world.model_fn())
    x, y = world.held_out

    def right(arrays: dict[str, np.ndarray]) -> np.ndarray:
        scorer.model.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
        with evaluating(scorer):
            return (scorer(x).argmax(dim=-1) == y).numpy()

    count = len(world.clients)
    with quiet_flower():
        strategy = AuditedFedAvg(
            model_fn=world.model_fn,
            target=world.adaptation,
            ka=replace(_base(settings, streams), disentangle=False, match=False, vote=False),
            evaluate=right,
            sampler=UniformSampler(count),
            fraction_evaluate=0.0,
            min_available_nodes=count,
        )
        grid = LocalGrid(client_app(world), count, on_error="raise")
        strategy.start(grid, SplitModel(world.model_fn()).arrays(), num_rounds=settings.audit_rounds)
    return strategy.effects
