"""What a federation's rounds say about its client draws, after the fact: reading histories, and the audit of one.

A history needs, for each round, the indicator or what it is made of (norms of the clients' updates and of their mean).
It may come from any federation; see `read_history` for the three file forms.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from transfuse.atomic import write_text
from transfuse.audit import AuditReport, Finding
from transfuse.errors import UserError
from transfuse.user_file import read_utf8

MIN_ROUNDS = 20  # fewer rounds give a permutation test nothing to work with
_LEVEL = 0.05  # chance that a clean federation is flagged, over all tests of a report together
_FORMS = "JSON (a list of rounds, or {'rounds': [...]}), JSONL (a round a line), or CSV"


@dataclass(frozen=True)
class Round:
    """One round of a federation.

    Attributes:
        round: its number.
        gsi: the indicator of the whole model, at least 1.
        clients: who took part, as ids of any kind.
        update_norms: Euclidean norm of each client's update, in the order of `clients`; may be empty.
        weights: of the clients in the mean; empty means equal.
    """

    round: int
    gsi: float
    clients: tuple[Any, ...] = ()
    update_norms: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class SuspectRound:
    """A round whose indicator lies low against its baseline: similar updates, so perhaps a one-sided draw.

    Attributes:
        round: its number.
        gsi: its indicator.
        ratio: indicator over the running baseline before this round; below 1 means a smaller step.
        clients: who took part.
        distance: total variation between the pooled labels and the population's, 0 to 1; None without label counts.
    """

    round: int
    gsi: float
    ratio: float
    clients: tuple[Any, ...]
    distance: float | None


def as_rounds(history: Sequence[Round | Mapping[str, Any]]) -> list[Round]:
    """Rounds from mappings, in order of their numbers; `gsi` is computed where only norms are given."""
    rounds = [item if isinstance(item, Round) else _round(item, index) for index, item in enumerate(history)]
    for item in rounds:
        if not math.isfinite(item.gsi) or item.gsi < 1.0 - 1e-6:
            raise UserError(f"round {item.round} has gsi {item.gsi}", "a number of at least 1")
    return sorted(rounds, key=lambda item: item.round)


def _round(item: Mapping[str, Any], index: int) -> Round:
    try:
        norms = tuple(float(x) for x in _list(item, "update_norms"))
        weights = tuple(float(x) for x in _list(item, "weights"))
        if not all(0 <= x < math.inf for x in (*norms, *weights)):
            raise ValueError("update_norms or weights that are negative or not finite")
        number = int(item.get("round", index + 1))
        if item.get("gsi") not in (None, ""):
            value = float(item["gsi"])
        else:
            p = np.array(weights or [1.0] * len(norms))
            mean = float(item["mean_update_norm"])
            if not 0 <= mean < math.inf:
                raise ValueError(f"mean_update_norm = {mean}")
            if not norms or len(p) != len(norms) or not p.sum() > 0:
                raise KeyError("update_norms")
            value = math.sqrt(float(p @ np.square(norms)) / float(p.sum())) / mean if mean > 0 else 1.0
        return Round(number, value, tuple(_list(item, "clients")), norms, weights)
    except KeyError as error:
        known = ", ".join(map(str, item)) or "nothing"
        raise UserError(
            f"round {index + 1} of the history has {known}", "gsi, or update_norms and mean_update_norm"
        ) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"round {index + 1} of the history: {error}", "numbers") from None


def _list(item: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = item.get(key) or ()
    if not isinstance(value, list | tuple):
        raise TypeError(f"{key} = {value!r} is no list")
    return value


def read_history(path: Path | str) -> list[Round]:
    """A history from a file.

    JSON: a list of rounds, or an object with the list under "rounds". JSONL: one round a line. CSV: a header with
    `round`, `gsi` and, as far as known, `clients`, `update_norms`, `weights`, `mean_update_norm`; lists are separated
    by semicolons.
    """
    text = read_utf8(path)
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".csv":
            items = [_csv_row(row) for row in csv.DictReader(io.StringIO(text))]
        elif suffix in (".jsonl", ".ndjson"):
            items = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            loaded = json.loads(text)
            items = loaded["rounds"] if isinstance(loaded, dict) else loaded
    except (ValueError, RecursionError, KeyError, csv.Error) as error:
        raise UserError(f"{str(path)!r} cannot be read as a history: {error}", _FORMS) from None
    if not isinstance(items, list) or not items or not all(isinstance(item, Mapping) for item in items):
        raise UserError(f"{str(path)!r} holds no list of rounds", _FORMS)
    return as_rounds(items)


def write_history(rounds: Sequence[Round], path: Path | str) -> None:
    """Write ``strategy.history`` as JSONL for `transfuse audit fedglad`."""
    lines = [json.dumps(asdict(item), separators=(",", ":")) for item in rounds]
    write_text(Path(path), "\n".join(lines) + "\n")


def read_label_counts(path: Path | str) -> dict[str, list[float]]:
    """Client -> examples of each class, from a JSON object."""
    try:
        loaded = json.loads(read_utf8(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is not valid JSON: {error}", "an object client -> list of counts") from None
    if not isinstance(loaded, dict) or not all(map(_is_counts, loaded.values())):
        raise UserError(f"{str(path)!r} holds something else", "an object client -> list of counts")
    return loaded


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) in (int, float) and 0 <= n < 1e15 for n in value)


def _csv_row(row: Mapping[str, str | None]) -> dict[str, Any]:
    lists = ("clients", "update_norms", "weights")
    return {
        key: [part.strip() for part in value.split(";") if part.strip()] if key in lists else value
        for key, value in row.items()
        if value not in (None, "") and value is not None
    }


def ratios(rounds: Sequence[Round], beta: float = 0.9) -> np.ndarray:
    """Indicator over the running baseline before each round, (rounds,); the first is 1."""
    result, baseline = np.ones(len(rounds)), rounds[0].gsi if rounds else 1.0
    for index, item in enumerate(rounds[1:], start=1):
        result[index] = item.gsi / baseline
        baseline = beta * baseline + (1.0 - beta) * item.gsi
    return result


def suspect_rounds(
    history: Sequence[Round | Mapping[str, Any]],
    label_counts: Mapping[Any, Sequence[float]] | None,
    beta: float,
    share: float,
) -> list[SuspectRound]:
    """The `share` of rounds with the lowest ratio, lowest first."""
    rounds = as_rounds(history)
    if not rounds:
        raise UserError("a history without rounds", "at least one round")
    values = ratios(rounds, beta)
    distances = pool_distances(rounds, label_counts) if label_counts is not None else [None] * len(rounds)
    order = np.argsort(values, kind="stable")[: max(1, int(share * len(rounds)))]
    return [
        SuspectRound(rounds[i].round, rounds[i].gsi, float(values[i]), rounds[i].clients, distances[i]) for i in order
    ]


def pool_distances(rounds: Sequence[Round], label_counts: Mapping[Any, Sequence[float]]) -> list[float | None]:
    """Total variation between each round's pooled labels and the population's; None where a client is not known."""
    table = {str(client): np.asarray(counts, dtype=np.float64) for client, counts in label_counts.items()}
    if not table or len({counts.shape for counts in table.values()}) != 1:
        raise UserError("label counts of different lengths", "as many classes for every client, at least one client")
    everyone = sum(table.values(), np.zeros(next(iter(table.values())).shape))
    if not everyone.sum() > 0 or any((counts < 0).any() for counts in table.values()):
        raise UserError("label counts that are negative or all zero", "how many examples of each class a client holds")
    population = everyone / everyone.sum()
    result: list[float | None] = []
    for item in rounds:
        known = [table[str(client)] for client in item.clients if str(client) in table]
        pool = sum(known, np.zeros_like(population))
        complete = bool(item.clients) and len(known) == len(item.clients) and pool.sum() > 0
        result.append(float(0.5 * np.abs(pool / pool.sum() - population).sum()) if complete else None)
    return result


def report(
    history: Sequence[Round | Mapping[str, Any]],
    label_counts: Mapping[Any, Sequence[float]] | None = None,
    *,
    beta: float = 0.9,
    draws: int = 2000,
    subject: str = "history",
    seed: int = 0,
) -> AuditReport:
    """Findings about a federation's client draws.

    Two tests share a false-alarm rate of 5 %: whether rounds with certain clients have low indicators, and, given
    label counts, whether one-sided pools do. Both are calibrated by permuting the rounds' ratios.

    Raises:
        UserError: fewer than 20 rounds, or malformed rounds.
    """
    rounds = as_rounds(history)
    if len(rounds) < MIN_ROUNDS:
        raise UserError(f"a history of {len(rounds)} rounds", f"at least {MIN_ROUNDS}")
    if draws < 200:
        raise UserError(f"{draws} permutations", "at least 200")
    if not 0 <= beta < 1:
        raise UserError(f"beta = {beta}", "the weight of the past, from 0 to below 1")
    logs = np.log(ratios(rounds, beta))[1:]  # the first round has no baseline
    rng = np.random.default_rng(seed)
    shuffled = np.stack([rng.permutation(logs) for _ in range(draws)])  # (draws, rounds - 1)
    membership, names = _membership(rounds[1:])
    distances = pool_distances(rounds, label_counts)[1:] if label_counts is not None else []
    usable = [d for d in distances if d is not None]
    tests = int(len(names) > 1) + int(len(usable) >= MIN_ROUNDS and len(set(usable)) > 1)
    level = _LEVEL / max(tests, 1)
    findings = [_swing(logs, rng), _lowest(rounds, beta, distances)]
    flags = np.zeros(draws, dtype=bool)
    if len(names) > 1:
        finding, null = _client_effect(logs, shuffled, membership, names, level)
        findings.insert(0, finding)
        flags |= null
    if len(usable) >= MIN_ROUNDS and len(set(usable)) > 1:
        finding, null = _pool_effect(logs, shuffled, distances, level)
        findings.insert(0, finding)
        flags |= null
    findings += [f for f in (_ceiling(rounds), _dominance(rounds)) if f is not None]
    return AuditReport(
        subject=subject,
        method="fedglad",
        findings=tuple(findings),
        false_alarm_rate=float(flags.mean()) if tests else None,
        calibration=(
            f"share of {draws} random orders of the rounds' ratios that the tests of clients and pools would flag; "
            "nearness to noise and longest update have fixed limits"
            if tests
            else "the history names no clients, so there was nothing to test; give clients for each round"
        ),
        environment={"rounds": len(rounds), "clients": len(names), "beta": beta, "draws": draws, "seed": seed},
    )


def _membership(rounds: Sequence[Round]) -> tuple[np.ndarray, list[str]]:
    """0/1 matrix (clients, rounds) of the clients that took part in at least three rounds and missed three."""
    names = sorted({str(client) for item in rounds for client in item.clients})
    taking_part = [{str(client) for client in item.clients} for item in rounds]
    matrix = np.array([[name in clients for clients in taking_part] for name in names], dtype=np.float64)
    if not names:
        return np.zeros((0, len(rounds))), []
    taken = matrix.sum(axis=1)
    keep = (taken >= 3) & (taken <= len(rounds) - 3)
    return matrix[keep], [name for name, kept in zip(names, keep, strict=True) if kept]


def _client_effect(
    logs: np.ndarray, shuffled: np.ndarray, membership: np.ndarray, names: list[str], level: float
) -> tuple[Finding, np.ndarray]:
    """Largest standardised shortfall of a client's rounds, against its maximum over clients in shuffled rounds."""
    taken = membership.sum(axis=1)
    spread = max(float(logs.std()), 1e-12)
    scale = np.sqrt(taken * (1 - taken / len(logs))) * spread  # standard deviation under shuffling, up to n/(n-1)

    def shortfall(values: np.ndarray) -> np.ndarray:  # (..., rounds) -> (..., clients)
        return -((values - logs.mean()) @ membership.T) / scale

    observed = shortfall(logs)
    null = shortfall(shuffled).max(axis=1)  # (draws,)
    limit = float(np.quantile(null, 1 - level))
    worst = int(observed.argmax())
    low = [names[i] for i in np.argsort(-observed) if observed[i] > limit][:10]
    found = bool(low)
    lost = float(np.expm1((logs @ membership[worst]) / taken[worst]))
    meaning = (
        f"rounds with client {names[worst]} have an indicator {abs(lost):.1%} {'below' if lost < 0 else 'above'} the "
        f"running baseline; {'more' if found else 'not more'} than random draws explain"
    )
    remedy = f"look at the data of {', '.join(low)}; use FedGLAD, or draw clients in strata" if found else ""
    value = float(observed[worst])
    return Finding("client effect", value, None, limit, "finding" if found else "ok", meaning, remedy), null > limit


def _pool_effect(
    logs: np.ndarray, shuffled: np.ndarray, distances: Sequence[float | None], level: float
) -> tuple[Finding, np.ndarray]:
    """Rank correlation of the ratio with how one-sided the pooled labels are; negative means GLAD sees it."""
    known = np.array([i for i, d in enumerate(distances) if d is not None])
    ranks = stats.rankdata([distances[i] for i in known])
    ranks = (ranks - ranks.mean()) / ranks.std()

    def correlation(values: np.ndarray) -> np.ndarray:
        r = stats.rankdata(values[..., known], axis=-1)
        r = r - r.mean(axis=-1, keepdims=True)
        return (r @ ranks) / (len(known) * np.maximum(r.std(axis=-1), 1e-12))

    observed = float(correlation(logs[None])[0])
    null = correlation(shuffled)
    limit = float(np.quantile(null, level))
    half = 1.96 / math.sqrt(max(len(known) - 3, 1))  # Fisher's interval
    interval = (math.tanh(math.atanh(observed * 0.999999) - half), math.tanh(math.atanh(observed * 0.999999) + half))
    found = observed < limit
    meaning = (
        "rounds whose pooled labels are one-sided have a lower indicator, so one-sided draws happen and can be seen"
        if found
        else "the indicator does not follow how one-sided the pooled labels are"
    )
    remedy = "use FedGLAD, more clients a round, or strata by label" if found else ""
    verdict = "finding" if found else "ok"
    return Finding("one-sided pools", observed, interval, limit, verdict, meaning, remedy), null < limit  # type: ignore[arg-type]


def _swing(logs: np.ndarray, rng: np.random.Generator) -> Finding:
    """How far an adaptive step would move, as the factor between the 5th and the 95th percentile of the ratio."""

    def factor(values: np.ndarray) -> np.ndarray:
        low, high = np.quantile(values, (0.05, 0.95), axis=-1)
        return np.exp(high - low)

    resampled = factor(rng.choice(logs, size=(500, len(logs))))
    low, high = np.quantile(resampled, (0.025, 0.975))
    value = float(factor(logs))
    meaning = f"an unbounded adaptive step would vary by a factor of {value:.2f} between ordinary rounds"
    return Finding("swing of the step", value, (float(low), float(high)), None, "info", meaning)


def _lowest(rounds: Sequence[Round], beta: float, distances: Sequence[float | None]) -> Finding:
    values = ratios(rounds, beta)
    order = np.argsort(values, kind="stable")[: max(1, len(rounds) // 10)]
    shown = []
    for i in order[:5]:
        who = f" (clients {', '.join(map(str, rounds[i].clients[:12]))})" if rounds[i].clients else ""
        shown.append(f"round {rounds[i].round}{who}")
    return Finding(
        "lowest ratio", float(values[order[0]]), None, None, "info", f"lowest tenth begins with {'; '.join(shown)}"
    )


def _ceiling(rounds: Sequence[Round]) -> Finding | None:
    """How near the indicator is to what orthogonal updates give: there it is made of local noise."""
    sizes = [(item, len(item.weights) or len(item.update_norms) or len(item.clients)) for item in rounds]
    shares = [item.gsi / math.sqrt(m) for item, m in sizes if m > 1]
    if not shares:
        return None
    value = float(np.median(shares))
    near = value > 0.95
    meaning = f"the indicator is typically {value:.0%} of what orthogonal updates of equal length give"
    remedy = "clients train on too little data for the indicator to say much; more local data or more clients a round"
    return Finding("nearness to noise", value, None, 0.95, "finding" if near else "ok", meaning, remedy if near else "")


def _dominance(rounds: Sequence[Round]) -> Finding | None:
    """The largest update of a round against that round's median: one long update steers everyone's step."""
    with_norms = [item for item in rounds if len(item.update_norms) > 2 and np.median(item.update_norms) > 0]
    if not with_norms:
        return None
    factors = [max(item.update_norms) / float(np.median(item.update_norms)) for item in with_norms]
    worst = int(np.argmax(factors))
    item, limit = with_norms[worst], 10.0
    found = factors[worst] > limit
    at = int(np.argmax(item.update_norms))
    who = f"client {item.clients[at]}" if len(item.clients) == len(item.update_norms) else "a client"
    meaning = f"in round {item.round}, {who} sent an update {factors[worst]:.1f} times as long as that round's median"
    remedy = "clip update norms: a long update enlarges the adaptive step of everyone" if found else ""
    return Finding("longest update", factors[worst], None, limit, "finding" if found else "ok", meaning, remedy)
