"""With skewed clients and few of them a round, some rounds draw clients that pull the model astray; FedAvg takes the
same server step along all of them.

FedGLAD reads from the updates alone how far they disagree: similar updates mean a redundant, one-sided draw and a
smaller step; updates that cancel one another cover more classes and earn a larger one. The ratio to a running
baseline scales the server step, for each tensor apart or for the whole model, under a bound that opens with the rounds.

>>> from flwr.serverapp.strategy import FedAdam
>>> strategy = FedGLAD(server_learning_rate=0.5, fraction_train=0.1)     # a Flower Strategy: strategy.start(grid, ...)
>>> class GLADAdam(GLADMixin, FedAdam): ...                              # the same on top of another strategy
>>> adam = GLADAdam(glad=Config(groups="model"), eta=0.03)
>>> round(gsi(np.array([[1.0, 0.0], [0.0, 1.0]]))[0], 3)                 # orthogonal updates: sqrt(2)
1.414

Yang, Lin, Zhao, Li, Zhou, Sun: When to Trust Aggregated Gradients: Addressing Negative Client Sampling in Federated
Learning. Transactions on Machine Learning Research, 2023. https://arxiv.org/abs/2301.10400
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from logging import WARNING, getLogger
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from transfuse.audit import AuditReport
from transfuse.card import Card
from transfuse.errors import UserError
from transfuse.hosts.flower.update_moments import UpdateMoments
from transfuse.methods.federated import round_history
from transfuse.methods.federated.server_step import ServerStepAdapter, StepAdapter

CARD = Card(
    id="fedglad",
    title="When to Trust Aggregated Gradients: Addressing Negative Client Sampling in Federated Learning",
    summary="Scales the server step of a federated round by how far clients disagree, to trust one-sided draws less.",
    authors="Wenkai Yang, Yankai Lin, Guangxiang Zhao, Peng Li, Jie Zhou, Xu Sun",
    year=2023,
    venue="Transactions on Machine Learning Research",
    url="https://arxiv.org/abs/2301.10400",
    family="federated",
    host="Flower (flwr.serverapp.strategy.Strategy)",
    entry="transfuse.methods.federated.fedglad.FedGLAD",
    needs=("a Flower server", "nothing new from the clients"),
    data="any; label-skewed clients under partial participation",
    problems=(
        "federated training jumps up and down from round to round",
        "few clients a round with very different labels",
        "which rounds drew a misleading set of clients",
        "adapt the server learning rate of FedAvg, FedProx or FedAdam",
    ),
    extra="federated",
    requires=("flwr",),
    differs=(
        "the indicator is a ratio of weighted norms; the reference code's subtraction breaks for unequal weights",
        "which tensors are rescaled is an explicit list, not the words weight and bias in their names",
        "a tensor without any update has ratio one; the indicator is capped far above what orthogonal updates give",
        "a client drawn twice under multinomial sampling sends one message with weight two",
        "SCAFFOLD is not offered, because Flower has no such strategy",
        "new: correction for differential-privacy noise, a cap on the bound, refusal of broken replies",
    ),
    status="stable",
    showcase=True,
)

_LOG = getLogger("flwr")
_CAP = 10.0  # times what orthogonal updates of equal norm would give; met only where the mean update vanishes


@dataclass(frozen=True)
class Config:
    """How the step is adapted.

    Attributes:
        server_learning_rate: constant factor on the parent's step; tune it as one would without GLAD. Leave it at one
            for parents with a rate of their own (FedAvgM, FedAdam, FedYogi).
        beta: weight of the past in the running baseline of the indicator.
        gamma: growth of the bound a round; the step stays within (1 - gamma t, 1 + gamma t) of its constant value.
        gamma_max: largest value of ``gamma t``; None means none, and then the bound is wide open after 1/gamma rounds.
        groups: "tensor" adapts each tensor apart, "model" all together; a mapping gives tensor -> group name.
        trainable: the tensors that are adapted; None takes all floating ones that are not running statistics.
        dp_noise_std: standard deviation of the noise that each client added to each coordinate of its update.
    """

    server_learning_rate: float = 1.0  # the paper uses 0.5 or 1.0, by data set
    beta: float = 0.9  # reference code
    gamma: float = 0.02  # reference code; the paper finds values around it alike
    gamma_max: float | None = None  # the paper has no cap
    groups: Literal["tensor", "model"] | Mapping[str, str] = "tensor"  # the variant that the paper recommends
    trainable: tuple[str, ...] | None = None  # found from dtype and name; give the list where the model is known
    dp_noise_std: float = 0.0  # noise inflates the indicator unless it is subtracted

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta < 1.0:
            raise UserError(f"beta {self.beta}", "a number in [0, 1)")
        if not self.gamma >= 0.0 or (self.gamma_max is not None and not self.gamma_max >= 0.0):
            raise UserError(f"gamma {self.gamma}, gamma_max {self.gamma_max}", "numbers of at least 0")
        if not self.server_learning_rate > 0.0:
            raise UserError(f"server_learning_rate {self.server_learning_rate}", "a positive number")
        if not self.dp_noise_std >= 0.0:
            raise UserError(f"dp_noise_std {self.dp_noise_std}", "a standard deviation of at least 0")
        if isinstance(self.groups, str) and self.groups not in ("tensor", "model"):
            raise UserError(f"groups {self.groups!r}", "'tensor', 'model' or a mapping of tensors to group names")


def gsi(
    deltas: np.ndarray,
    weights: np.ndarray | Sequence[float] | None = None,
    segments: Sequence[int] | np.ndarray | None = None,
    noise_std: float = 0.0,
) -> tuple[float, np.ndarray]:
    """Gradient-similarity indicator sqrt(sum_k p_k |g_k|^2 / |sum_k p_k g_k|^2), at least 1; more = less alike.

    1 when all updates coincide, sqrt(m) when m updates are orthogonal and equally long. With equal weights this is the
    form of the paper's code, (1 - sum_k |g_k - gbar|^2 / sum_k |g_k|^2)^(-1/2).

    Args:
        deltas: one flat update a client, (clients, size).
        weights: of the clients, (clients,), need not add up to 1; None means equal.
        segments: sizes of the tensors in a flat update, adding up to size; None means one tensor.
        noise_std: of independent noise on every coordinate of every update, which is subtracted.

    Returns:
        The indicator of the whole update, and that of each segment, (segments,).
    """
    g = np.asarray(deltas, dtype=np.float64)  # (clients, size)
    if g.ndim != 2 or g.size == 0:
        raise UserError(f"deltas of shape {g.shape}", "(clients, size) with at least one of each")
    p = np.full(len(g), 1.0) if weights is None else np.asarray(weights, dtype=np.float64)  # (clients,)
    if p.shape != (len(g),) or not (p >= 0).all() or not p.sum() > 0:
        raise UserError(f"weights of shape {p.shape}", f"{len(g)} numbers of at least 0 with a positive sum")
    sizes = np.array([g.shape[1]] if segments is None else segments, dtype=np.int64)
    if (sizes < 0).any() or sizes.sum() != g.shape[1]:
        raise UserError(f"segments that add up to {sizes.sum()}", f"sizes that add up to {g.shape[1]}")
    p = p / p.sum()
    ends = np.cumsum(sizes)
    mean = p @ g  # (size,)
    square_of_mean = np.array([mean[e - n : e] @ mean[e - n : e] for e, n in zip(ends, sizes, strict=True)])
    mean_square = np.array([p @ np.square(g[:, e - n : e]).sum(axis=1) for e, n in zip(ends, sizes, strict=True)])
    per_segment = indicator(mean_square, square_of_mean, p, noise_std**2 * sizes)
    whole = indicator(mean_square.sum(), square_of_mean.sum(), p, noise_std**2 * sizes.sum())
    return float(whole), per_segment


def indicator(mean_square: Any, square_of_mean: Any, p: np.ndarray, noise: Any = 0.0) -> np.ndarray:
    """The indicator from its two moments, elementwise; 1 where nothing moved.

    Args:
        mean_square: sum_k p_k |g_k|^2.
        square_of_mean: |sum_k p_k g_k|^2.
        p: the clients' weights, adding up to 1, (clients,).
        noise: expected squared norm of the noise in one client's update.
    """
    concentration = float(np.square(p).sum())  # 1/m for equal weights
    over = np.maximum(np.asarray(mean_square, dtype=np.float64) - noise, 0.0)
    under = np.maximum(np.asarray(square_of_mean, dtype=np.float64) - np.asarray(noise) * concentration, 0.0)
    cap = _CAP / np.sqrt(concentration)
    moved = over > np.finfo(np.float64).tiny
    ratio = np.where(moved, over, 1.0) / np.where(moved, np.maximum(under, over / cap**2), 1.0)
    return np.sqrt(np.maximum(ratio, 1.0))  # Jensen: below 1 only by rounding or by an over-corrected noise


class GLADMixin:
    """Adapts the step of any strategy built on Flower's FedAvg: ``class X(GLADMixin, FedAdam)``.

    The parent makes its own step from the unscaled mean update, so its moments stay what they were; the result is
    ``W_t + f (parent(W_t, gbar) - W_t)`` with a factor f a tensor. Arrays that are not trainable stay as the parent
    made them. Clients need no change. A reply with another shape or with values that are not finite is left out, and
    the log says so.

    The aggregated metrics gain `gsi`, `gsi_ratio` (before clipping), `server_lr` (length of the step taken, in units of
    the parent's step, times `server_learning_rate`), `gsi_refused`, and with groups the three as lists.

    Do not use it with few clients that a stranger controls and no norm clipping: one long update that is orthogonal to
    the others enlarges the step of all.

    Attributes:
        adapter: a `ServerStepAdapter` over the groups and, last, the whole model; made in the first round.
        history: one record a round, for `negative_sampling_report` and `transfuse audit fedglad`.
    """

    def __init__(self, *args: Any, glad: Config | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.glad = glad or Config()
        self.adapter: StepAdapter | None = None
        self.history: list[round_history.Round] = []
        self._moments: UpdateMoments | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._group_of = np.empty(0, dtype=np.int64)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent; the rest is the parent's."""
        shapes = {key: tuple(array.shape) for key, array in arrays.items()}
        if self._moments is None or shapes != self._shapes:
            self._moments, self._shapes = UpdateMoments(arrays, self.glad.trainable), shapes
            self._group_of, groups = _group_indices(self._moments.layout.keys, self.glad.groups)
            if self.adapter is None:
                self.adapter = ServerStepAdapter(self.glad.beta, self.glad.gamma, self.glad.gamma_max, groups + 1)
        self._moments.reset(arrays)
        return super().configure_train(server_round, arrays, config, grid)  # type: ignore[misc]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The parent's aggregate, with its step rescaled."""
        if self._moments is None or self.adapter is None:
            raise UserError("aggregate_train before configure_train", fix="let Strategy.start run the rounds")
        replies = list(replies)
        kept, refused = self._measure(replies)
        arrays, metrics = super().aggregate_train(server_round, kept)  # type: ignore[misc]
        if arrays is None or not self._moments.weights:
            return arrays, metrics
        tensors, factors = self._factors(server_round, kept)
        arrays = self._moments.layout.scale_step(arrays, self._moments.sent, factors)
        if isinstance(getattr(self, "current_arrays", None), ArrayRecord):
            self.current_arrays: Any = arrays  # FedAvgM keeps its own copy of the model
        metrics = MetricRecord() if metrics is None else metrics
        metrics.update({**tensors, "gsi_refused": refused})
        return arrays, metrics

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold (see `hosts.flower.checkpoint`): the baseline, and the rounds for the audit."""
        steps = self.adapter.state() if isinstance(self.adapter, ServerStepAdapter) else {}
        return {**steps, "history": [asdict(entry) for entry in self.history]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.history = [
            round_history.Round(**{**entry, "clients": tuple(entry["clients"])}) for entry in state["history"]
        ]
        if "baseline" in state and self.adapter is None:
            groups = len(state["baseline"])
            self.adapter = ServerStepAdapter(self.glad.beta, self.glad.gamma, self.glad.gamma_max, groups)
        if isinstance(self.adapter, ServerStepAdapter):
            self.adapter.restore(state)

    def sent_arrays(self) -> dict[str, np.ndarray]:
        """Copies of the adapted tensors as the clients of the latest round received them."""
        if self._moments is None:
            return {}
        return {key: array.copy() for key, array in self._moments.layout.unflatten(self._moments.sent).items()}

    def _measure(self, replies: Sequence[Message]) -> tuple[list[Message], int]:
        """Count all usable replies in; returns the messages that the parent may see and how many were refused."""
        assert self._moments is not None
        kept, refused = [], 0
        shapes = Counter(_names(message) for message in replies if message.has_content())
        usual = shapes.most_common(1)[0][0] if shapes else frozenset()
        for message in replies:
            if message.has_content():
                reason = self._count_in(message, usual)
                if reason:
                    refused += 1
                    node = message.metadata.src_node_id
                    _LOG.log(WARNING, "aggregate_train: the reply of node %s was left out: %s", node, reason)
                    continue
            kept.append(message)
        return kept, refused

    def _count_in(self, message: Message, usual: frozenset[tuple[str, str]]) -> str:
        assert self._moments is not None
        records = list(message.content.array_records.values())
        metrics = list(message.content.metric_records.values())
        if _names(message) != usual or len(records) != 1 or len(metrics) != 1:
            return "its records are not those of the other clients"
        weight = metrics[0].get(self.weighted_by_key)  # type: ignore[attr-defined]
        if not isinstance(weight, int | float):
            return f"it has no number {self.weighted_by_key!r}"  # type: ignore[attr-defined]
        return self._moments.add(records[0], float(weight))

    def _factors(self, server_round: int, kept: Sequence[Message]) -> tuple[dict[str, Any], np.ndarray]:
        """Metrics of this round, and the factor of each tensor, (tensors,)."""
        assert self._moments is not None
        assert self.adapter is not None
        tensor_square, tensor_mean, p = self._moments.finish()  # (tensors,), (tensors,), (clients,)
        groups = int(self._group_of.max()) + 1
        noise = self.glad.dp_noise_std**2 * self._moments.layout.sizes
        over, under, noise = (_with_total(v, self._group_of, groups) for v in (tensor_square, tensor_mean, noise))
        values = indicator(over, under, p, noise)  # (groups + 1,), the whole model last
        steps = self.glad.server_learning_rate * self.adapter.update(values, server_round - 1)
        ratio = getattr(self.adapter, "ratio", steps)
        by_group = self.glad.groups != "model"
        factors = steps[self._group_of] if by_group else np.full(len(self._group_of), steps[-1])
        mass = tensor_mean.sum()
        taken = float(np.sqrt((factors**2 * tensor_mean).sum() / mass)) if mass > 0 else float(steps[-1])
        metrics: dict[str, Any] = {"gsi": float(values[-1]), "gsi_ratio": float(ratio[-1]), "server_lr": taken}
        if by_group:
            lists = {"gsi": values, "gsi_ratio": ratio, "server_lr": steps}
            metrics.update({f"{name}_by_group": array[:-1].tolist() for name, array in lists.items()})
        nodes = [message.metadata.src_node_id for message in kept if message.has_content()]
        self.history.append(
            round_history.Round(
                server_round, float(values[-1]), tuple(nodes), tuple(self._moments.norms), tuple(p.tolist())
            )
        )
        return metrics, factors


class FedGLAD(GLADMixin, FedAvg):
    """FedAvg whose server step follows the disagreement of the clients.

    Args:
        server_learning_rate: constant factor on the step; tune it as for FedAvg.
        beta: weight of the past in the baseline of the indicator.
        gamma: growth of the bound a round; 0 gives FedAvg with a constant server learning rate.
        gamma_max: cap of the bound's half-width.
        groups: "tensor", "model", or tensor -> group name.
        trainable: names of the tensors to adapt, best made from ``model.named_parameters()``.
        dp_noise_std: noise on each coordinate of each client's update, to be subtracted.
        **kwargs: those of Flower's FedAvg.
    """

    def __init__(
        self,
        *,
        server_learning_rate: float = Config.server_learning_rate,
        beta: float = Config.beta,
        gamma: float = Config.gamma,
        gamma_max: float | None = Config.gamma_max,
        groups: Literal["tensor", "model"] | Mapping[str, str] = Config.groups,
        trainable: Sequence[str] | None = None,
        dp_noise_std: float = Config.dp_noise_std,
        **kwargs: Any,
    ) -> None:
        names = None if trainable is None else tuple(trainable)
        glad = Config(server_learning_rate, beta, gamma, gamma_max, groups, names, dp_noise_std)
        super().__init__(glad=glad, **kwargs)


def _names(message: Message) -> frozenset[tuple[str, str]]:
    """Names of all arrays and metrics of a reply; Flower's parent wants them alike in all replies."""
    arrays, metrics = message.content.array_records, message.content.metric_records
    pairs = [(name, key) for name, record in arrays.items() for key in record]
    pairs += [(name, key) for name, numbers in metrics.items() for key in numbers]
    return frozenset(pairs)


def _group_indices(keys: Sequence[str], groups: str | Mapping[str, str]) -> tuple[np.ndarray, int]:
    """Group number of each tensor, and how many groups there are."""
    if isinstance(groups, str):
        return np.arange(len(keys)), len(keys)
    missing = [key for key in keys if key not in groups]
    if missing:
        raise UserError(f"groups without {', '.join(missing[:3])}", "a group for every trainable tensor")
    names = list(dict.fromkeys(groups[key] for key in keys))
    return np.array([names.index(groups[key]) for key in keys]), len(names)


def _with_total(values: np.ndarray, group_of: np.ndarray, groups: int) -> np.ndarray:
    """Sums over each group, and over all as the last element, (groups + 1,)."""
    return np.append(np.bincount(group_of, weights=values, minlength=groups), values.sum())


def negative_sampling_report(
    history: Iterable[round_history.Round | Mapping[str, Any]],
    label_counts: Mapping[Any, Sequence[float]] | None = None,
    beta: float = Config.beta,
    share: float = 0.1,
) -> list[round_history.SuspectRound]:
    """The rounds with the lowest indicator ratio, with their clients and, given label counts, how one-sided they were.

    Args:
        history: ``strategy.history``, or any mappings with `round`, `gsi` and `clients`.
        label_counts: examples of each class that each client holds; where a federation may know them.
        beta: of the baseline.
        share: how many of the rounds to list.
    """
    return round_history.suspect_rounds(list(history), label_counts, beta, share)


def audit(
    history: Annotated[Path, "rounds of any federation: JSON, JSONL or CSV with gsi, or update norms, for each round"],
    labels: Annotated[Path | None, "JSON file: client -> examples of each class, where they may be known"] = None,
    beta: Annotated[float, "weight of the past in the baseline of the indicator"] = Config.beta,
    draws: Annotated[int, "permutations of rounds for the null calibration"] = 2000,
) -> AuditReport:
    """Does this federation suffer from one-sided client draws, and would an adaptive server step see them?"""
    rounds = round_history.read_history(history)
    counts = None if labels is None else round_history.read_label_counts(labels)
    return round_history.report(rounds, counts, beta=beta, draws=draws, subject=str(history))
