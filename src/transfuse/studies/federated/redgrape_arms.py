"""The arms of the RedGrape study in one world: each a strategy, a local rule and its tuned values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from transfuse.hosts.flower.client_sampling import UniformSampler
from transfuse.hosts.flower.cohort import LocalTraining
from transfuse.hosts.flower.local_grid import quiet_flower
from transfuse.methods.federated.redgrape import Config
from transfuse.studies.federated.redgrape_cohort import LocalRule
from transfuse.studies.federated.redgrape_worlds import (
    PairedAvg,
    PairedCReFF,
    PairedRedGrape,
    Task,
    Trajectory,
    World,
    federate,
    late,
    recall,
    retrained,
    tau_normalised,
)
from transfuse.study.design import Measurement
from transfuse.study.streams import Streams


class Arms:
    """The arms in one world.

    Args:
        settings: those of the study.
        task: sizes and tuned values of the data set.
        world: clients, held-out data, initial weights.
        streams: of the seed.
        where: the conditions.
    """

    def __init__(self, settings: Any, task: Task, world: World, streams: Streams, where: dict[str, Any]) -> None:
        self.settings, self.task, self.world, self.streams, self.where = settings, task, world, streams, where
        self.draws = streams.noise.child("clients").integer()
        self.base: Trajectory | None = None

    def every(self) -> Iterator[Measurement]:
        """Every arm."""
        s = self.settings
        yield from self.main()
        yield from self._post_hoc()
        yield from self._report("focal", self.focal(*self.task.focal))
        c = self.config()
        variants = {
            "prototypes_only": replace(c, direction="prototypes"),
            "no_second": replace(c, second_classifier=False),
            "lambda_low": replace(c, balance_rate=c.balance_rate * s.lambda_factors[0]),
            "lambda_high": replace(c, balance_rate=c.balance_rate * s.lambda_factors[1]),
            "more_samples": replace(c, samples_per_class=s.more_samples),
        }
        for name, config in variants.items():
            yield from self._report(name, self.redgrape(config))
        yield from self._report("placebo", self.redgrape(c, placebo=True))

    def main(self) -> Iterator[Measurement]:
        """FedAvg and RedGrape, and the two baselines that the paper's claim stands or falls with."""
        yield from self.pair()
        yield from self._report("logit_adjusted", self.adjusted(*self.task.adjusted))
        yield from self._report("creff", self.creff(self.task.creff_rate, *self.task.creff))

    def pair(self, ablation: bool = True) -> Iterator[Measurement]:
        """FedAvg and RedGrape, and what its prototypes add."""
        self.base = self.plain(self.task.rate, LocalRule())
        yield from self._report("fedavg", self.base)
        ours = self.redgrape(self.config())
        yield from self._report("redgrape", ours)
        if ablation:
            real = self.redgrape(replace(self.config(), direction="local"))
            yield from self._report("real_only", real)
            every = np.arange(len(self.world.order))
            difference = late(ours.test, every, self.settings.last) - late(real.test, every, self.settings.last)
            yield self._measure("redgrape", "prototype_gain", difference)

    def config(self) -> Config:
        """RedGrape's tuned values."""
        s, (rate, balance_rate) = self.settings, self.task.redgrape
        return Config(
            balance_rate=balance_rate,
            samples_per_class=s.samples_per_class,
            rate=rate,
            epochs=s.epochs,
            momentum=s.momentum,
            clip=s.clip,
        )

    def plain(self, rate: float, rule: LocalRule) -> Trajectory:
        """FedAvg with some local loss."""
        keep = self.settings.last if rule.loss == "cross-entropy" else 0
        return federate(self._with(PairedAvg), self.world, self.settings.rounds, self._how(rate), rule, keep)

    def focal(self, rate: float, gamma: float) -> Trajectory:
        """FedAvg with the focal loss."""
        return self.plain(rate, LocalRule(loss="focal", gamma=gamma))

    def adjusted(self, rate: float, tau: float) -> Trajectory:
        """FedAvg whose clients add tau times the log prior, from summed label counts, to the logits in training."""
        prior = self.world.counts.sum(axis=0) / self.world.counts.sum()
        return self.plain(rate, LocalRule(loss="adjusted", offset=(tau * np.log(prior)).astype(np.float32)))

    def creff(self, rate: float, match_rate: float, train_rate: float) -> Trajectory:
        """CReFF on top of FedAvg's own local training."""
        s = self.settings
        strategy = self._with(
            PairedCReFF,
            head="fc2",
            features_per_class=s.creff_features,
            match_steps=s.creff_match_steps,
            match_rate=match_rate,
            train_steps=s.creff_train_steps,
            train_rate=train_rate,
            seed=self.streams.noise.child("creff").integer(),
        )
        return federate(strategy, self.world, s.rounds, self._how(rate), LocalRule(uploads=True))

    def redgrape(self, config: Config, placebo: bool = False) -> Trajectory:
        """RedGrape by some settings."""
        strategy = self._with(PairedRedGrape, head="fc2", redgrape=config)
        rule = LocalRule(redgrape=config, uploads=True, placebo=placebo)
        return federate(strategy, self.world, self.settings.rounds, self._how(config.rate), rule)

    def _how(self, rate: float) -> LocalTraining:
        s = self.settings
        return LocalTraining(s.epochs, s.batch, rate, s.momentum, s.clip)

    def _with(self, kind: type, **arguments: Any) -> Any:
        sampler = UniformSampler(self.task.clients_a_round, self.draws)
        with quiet_flower():  # Flower warns that clients will not evaluate, which is what we ask for
            return kind(sampler=sampler, fraction_evaluate=0.0, **arguments)

    def _post_hoc(self) -> Iterator[Measurement]:
        """What can be done to FedAvg's last models at the server."""
        rate, tau = self.task.tau_norm
        mended = [tau_normalised(model, tau) for model in self.plain(rate, LocalRule()).models]
        yield from self._report("tau_norm", self._judged(mended), curve=False)
        rate, descent = self.task.oracle
        rng, steps = self.streams.noise.child("retrained").numpy(), self.settings.creff_train_steps
        models = self.plain(rate, LocalRule()).models
        oracle = [retrained(model, self.world.validation, steps, descent, rng) for model in models]
        yield from self._report("crt_oracle", self._judged(oracle), curve=False)

    def _judged(self, models: list[dict[str, np.ndarray]]) -> Trajectory:
        return Trajectory(test=[recall(model, self.world.test) for model in models])

    def _report(self, arm: str, run: Trajectory, curve: bool = True) -> Iterator[Measurement]:
        s, order = self.settings, self.world.order
        assert self.base is not None
        groups = {"accuracy": order, "head_accuracy": order[: s.group], "tail_accuracy": order[-s.group :]}
        for metric, classes in groups.items():
            value = late(run.test, classes, s.last)
            yield self._measure(arm, metric, value)
            if metric != "accuracy":
                name = metric.replace("accuracy", "gain")
                yield self._measure(arm, name, value - late(self.base.test, classes, s.last))
        for step in range(0, len(run.test) if curve else 0, s.curve_every):
            yield Measurement(arm, "accuracy", float(run.test[step].mean()), self.where, step=step)

    def _measure(self, arm: str, metric: str, value: float) -> Measurement:
        return Measurement(arm, metric, value, self.where)
