"""The arms of the FedGLAD study: baselines with tuned server rates, GLAD on top of them, controls, correlations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transfuse.hosts.flower.local_grid import quiet_flower
from transfuse.methods.federated.fedglad import Config, ServerStepAdapter
from transfuse.methods.federated.round_history import Round, ratios
from transfuse.studies.federated.fedglad_worlds import (
    GivenSteps,
    Look,
    PairedAdam,
    PairedAvg,
    PairedGLAD,
    PairedGLADAdam,
    PairedGLADProx,
    RecordingSteps,
    Trajectory,
    World,
    federate,
    half_split_floor,
    look,
    make_sampler,
    spearman,
)
from transfuse.study.design import Measurement
from transfuse.study.streams import Streams


class Arms:
    """The arms in one world under one sampling policy.

    Args:
        settings: those of the study.
        world: clients, held-out data, initial weights.
        streams: of the seed.
        policy: "uniform", "md" or "adafl".
        source: name of the data.
        alpha: concentration of the partition, where it has one.
    """

    def __init__(
        self, settings: Any, world: World, streams: Streams, policy: str, source: str, alpha: float | None = None
    ) -> None:
        self.settings, self.world, self.policy = settings, world, policy
        self.rounds = settings.office_rounds if source == "office" else settings.rounds
        self.draws = streams.noise.child("clients").integer()
        self.shuffle = streams.noise.child("permuted steps").numpy()
        self.where: dict[str, Any] = {"data": source, "policy": policy}
        if alpha is not None:
            self.where["alpha"] = alpha

    def main(self) -> Iterator[Measurement]:
        """Every arm, and the correlations."""
        s = self.settings
        eta, base = self._tuned(lambda rate: self._avg(rate), s.eta_grid)
        yield from self._report("fedavg", base, base, eta)
        group = self._glad(Config(eta))
        yield from self._report("glad_group", group, base)
        yield from self._report("glad_universal", self._glad(Config(eta, groups="model")), base)
        for name, gamma in zip(("glad_gamma_low", "glad_gamma_high"), s.gammas, strict=True):
            yield from self._report(name, self._glad(Config(eta, gamma=gamma)), base)
        yield from self._report("glad_unbounded", self._glad(Config(eta, gamma=np.inf)), base)
        yield from self._controls(eta, group, base)
        yield from self._report("oracle_step", self._oracle(eta), base)
        rate, prox = self._tuned(lambda rate: self._avg(rate, s.proximal), s.eta_grid)
        yield from self._report("fedprox", prox, base, rate)
        yield from self._report("fedprox_glad", self._glad(Config(rate), PairedGLADProx, proximal_mu=s.proximal), base)
        rate, adam = self._tuned(lambda rate: self._run(self._with(PairedAdam, eta=rate)), s.adam_grid)
        yield from self._report("fedadam", adam, base, rate)
        yield from self._report("fedadam_glad", self._glad(Config(), PairedGLADAdam, eta=rate), base)
        yield from self._correlations(eta)

    def pair(self) -> Iterator[Measurement]:
        """FedAvg and GLAD; the correlations too where there is no skew, as a control."""
        eta, base = self._tuned(lambda rate: self._avg(rate), self.settings.eta_grid)
        yield from self._report("fedavg", base, base, eta)
        yield from self._report("glad_group", self._glad(Config(eta)), base)
        if self.where["alpha"] == max(self.settings.alphas):
            yield from self._correlations(eta)

    def office(self) -> Iterator[Measurement]:
        """FedAvg, both variants, the controls and the correlations."""
        eta, base = self._tuned(lambda rate: self._avg(rate), self.settings.eta_grid)
        yield from self._report("fedavg", base, base, eta)
        group = self._glad(Config(eta))
        yield from self._report("glad_group", group, base)
        yield from self._report("glad_universal", self._glad(Config(eta, groups="model")), base)
        yield from self._controls(eta, group, base)
        yield from self._correlations(eta)

    def _controls(self, eta: float, group: Trajectory, base: Trajectory) -> Iterator[Measurement]:
        """The steps that GLAD took, as their mean over rounds, and in random order."""
        steps = np.array(group.steps)  # (rounds, groups + 1)
        mean, mixed = steps.mean(axis=0), self.shuffle.permutation(steps)
        yield from self._report("mean_step", self._glad(Config(eta), adapter=GivenSteps(lambda t: mean)), base)
        yield from self._report("permuted_step", self._glad(Config(eta), adapter=GivenSteps(lambda t: mixed[t])), base)

    def _with(self, kind: type, **arguments: Any) -> Any:
        sampler = make_sampler(self.policy, self.settings.clients_a_round, self.draws)
        with quiet_flower():  # Flower warns that clients will not evaluate, which is what we ask for
            return kind(sampler=sampler, fraction_evaluate=0.0, **arguments)

    def _run(self, strategy: Any, proximal: float = 0.0) -> Trajectory:
        return federate(strategy, self.world, self.rounds, proximal)

    def _avg(self, rate: float, proximal: float = 0.0) -> Trajectory:
        return self._run(self._with(PairedAvg, server_learning_rate=rate), proximal)

    def _glad(
        self, config: Config, kind: type = PairedGLAD, *, adapter: Any = None, proximal: float = 0.0, **arguments: Any
    ) -> Trajectory:
        strategy = self._with(kind, glad=config, **arguments)
        groups = len(self.world.initial) + 1
        steps: list[np.ndarray] = []
        inner = adapter or ServerStepAdapter(config.beta, config.gamma, config.gamma_max, groups)
        strategy.adapter = inner if adapter is not None else RecordingSteps(inner, steps)
        trajectory = self._run(strategy, proximal)
        trajectory.steps = steps
        return trajectory

    def _tuned(self, make: Any, grid: Sequence[float]) -> tuple[float, Trajectory]:
        """The rate with the best late validation accuracy, and its run."""
        runs = [(rate, make(rate)) for rate in grid]
        return max(runs, key=lambda pair: pair[1].late("validation", self.settings.last))

    def _oracle(self, eta: float) -> Trajectory:
        """FedAvg with the step that is best in hindsight, from the updates of all clients."""
        strategy = self._with(PairedGLAD, glad=Config(eta, groups="model"))
        steps = GivenSteps(lambda t: np.array([self._look(strategy, t + 1).best_step / eta]))
        strategy.adapter = steps
        return self._run(strategy)

    def _look(self, strategy: Any, server_round: int) -> Look:
        start = strategy.sent_arrays()
        draw = strategy.last_draw
        return look(self.world, start, {node - 1: weight for node, weight in draw.weights.items()}, server_round)

    def _correlations(self, eta: float) -> Iterator[Measurement]:
        """What the indicator says along FedAvg's own trajectory, judged with all clients trained every round."""
        strategy = self._with(PairedGLAD, glad=Config(eta, gamma=0.0))
        looks: list[Look] = []
        floors: list[float] = []

        def watch(t: int) -> np.ndarray:
            looks.append(self._look(strategy, t + 1))
            if t % 10 == 0:
                client = t // 10 % len(self.world.counts)
                m = self.settings.clients_a_round
                floors.append(half_split_floor(self.world, strategy.sent_arrays(), client, m, t + 1))
            return np.ones(len(self.world.initial) + 1)

        strategy.adapter = GivenSteps(watch)
        self._run(strategy)
        values = np.array([item.gsi for item in looks])
        best = np.array([item.best_step for item in looks])
        balance = -np.array([item.distance for item in looks])
        relative = ratios([Round(t, value) for t, value in enumerate(values)])
        yield self._measure("fedavg", "rho_eta", spearman(values, best))
        yield self._measure("fedavg", "rho_tv", spearman(values, balance))
        yield self._measure("fedavg", "rho_eta_ratio", spearman(relative, best / _baseline(best)))
        yield self._measure("fedavg", "rho_tv_ratio", spearman(relative, balance))
        unit, spread = np.array([item.gsi_unit for item in looks]), np.array([item.spread for item in looks])
        yield self._measure("fedavg", "rho_eta_within", float(np.mean([item.within_eta for item in looks])))
        yield self._measure("fedavg", "rho_tv_within", float(np.mean([item.within_tv for item in looks])))
        yield self._measure("fedavg", "rho_eta_unit", spearman(unit, best))
        yield self._measure("fedavg", "rho_spread", spearman(values, spread))
        yield self._measure("fedavg", "gsi", float(values.mean()))
        yield self._measure("fedavg", "gsi_floor", float(np.mean(floors)))

    def _report(self, arm: str, run: Trajectory, base: Trajectory, eta: float | None = None) -> Iterator[Measurement]:
        s, test = self.settings, np.array(run.test)
        late = run.late("test", s.last)
        yield self._measure(arm, "accuracy", late)
        reached = np.flatnonzero(test >= 0.8)
        yield self._measure(arm, "rounds_to_80", float(reached[0]) if len(reached) else float(len(test)))
        yield self._measure(arm, "early_drop", float(np.maximum(-np.diff(test[: s.early + 1]), 0.0).mean()))
        yield self._measure(arm, "gain", late - base.late("test", s.last))
        if eta is not None:
            yield self._measure(arm, "eta", eta)
        for step in range(0, len(test), s.curve_every):
            yield Measurement(arm, "accuracy", float(test[step]), self.where, step=step)

    def _measure(self, arm: str, metric: str, value: float) -> Measurement:
        return Measurement(arm, metric, value, self.where)


def _baseline(values: np.ndarray, beta: float = Config.beta) -> np.ndarray:
    """Running mean of the absolute values before each round, as GLAD's baseline."""
    result, running = np.empty(len(values)), abs(float(values[0])) or 1.0
    for t, value in enumerate(np.abs(values)):
        result[t] = running
        running = beta * running + (1.0 - beta) * float(value)
    return result
