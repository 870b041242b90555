"""Histories of Group Effects: reading and writing them, and the audit of one.

The history may come from any federation: its aggregate's and its clients' scores on one held-out task, round by round.
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
from scipy.signal import lfilter

from transfuse.atomic import write_text
from transfuse.audit import AuditReport, Finding
from transfuse.errors import UserError
from transfuse.methods.federated.group_effect import RoundEffect
from transfuse.user_file import read_utf8

MIN_ROUNDS = 20  # fewer say too little about how much rounds resemble their neighbours
MIN_SEEN = 8  # rounds of a client before it is judged
_LEVEL = 0.05  # chance that a clean federation is flagged, over both tests together
_FORMS = "JSON (a list of rounds, or {'rounds': [...]}), JSONL (a round a line), or CSV"
_LISTS = ("clients", "local", "without", "without_error")


def read_effects(path: Path | str) -> list[RoundEffect]:
    """A history from a file.

    JSON: a list of rounds, or an object with the list under "rounds". JSONL: one round a line. CSV: a header. A round
    has `aggregate` and `local`, and as far as known `round`, `clients`, `mean`, `without`, `without_error`; in CSV,
    lists are separated by semicolons.
    """
    text, suffix = read_utf8(path), Path(path).suffix.lower()
    try:
        if suffix == ".csv":
            items: Any = [_csv_row(row) for row in csv.DictReader(io.StringIO(text))]
        elif suffix in (".jsonl", ".ndjson"):
            items = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            loaded = json.loads(text)
            items = loaded["rounds"] if isinstance(loaded, dict) else loaded
    except (json.JSONDecodeError, KeyError, csv.Error) as error:
        raise UserError(f"{str(path)!r} cannot be read as a history: {error}", _FORMS) from None
    if not isinstance(items, list) or not items or not all(isinstance(item, Mapping) for item in items):
        raise UserError(f"{str(path)!r} holds no list of rounds", _FORMS)
    return sorted((_effect(item, index) for index, item in enumerate(items)), key=lambda effect: effect.round)


def write_effects(effects: Sequence[RoundEffect], path: Path | str) -> None:
    """Write ``strategy.effects`` as JSONL for `transfuse audit fedka`."""
    rows = [{key: value for key, value in asdict(item).items() if value == value} for item in effects]  # no NaN
    write_text(Path(path), "\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n")


def _csv_row(row: Mapping[str, str | None]) -> dict[str, Any]:
    known = {key: value for key, value in row.items() if key and value not in (None, "")}
    return {
        key: [p.strip() for p in str(v).split(";") if p.strip()] if key in _LISTS else v for key, v in known.items()
    }


def _effect(item: Mapping[str, Any], index: int) -> RoundEffect:
    where = f"round {index + 1} of the history"
    if "aggregate" not in item or not item.get("local"):
        raise UserError(f"{where} has {', '.join(map(str, item)) or 'nothing'}", "aggregate and local")
    try:
        number = int(item.get("round", index + 1))
        aggregate, mean = float(item["aggregate"]), float(item.get("mean", "nan"))
        local, without, errors = (tuple(map(float, item.get(name) or ())) for name in _LISTS[1:])
        clients = tuple(item.get("clients") or range(len(local)))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}", "numbers") from None
    lengths = {len(part) for part in (clients, local, without or local, errors or local)}
    if len(lengths) != 1 or (without and math.isnan(mean)):
        raise UserError(f"{where}: lists of lengths {sorted(lengths)}", "one entry a client, and `mean` with `without`")
    if not all(map(math.isfinite, (aggregate, *local, *without, *errors))):
        raise UserError(f"{where} holds values that are not finite", "finite scores")
    return RoundEffect(number, aggregate, clients, local, mean, without, errors)


@dataclass(frozen=True)
class ClientHarm:
    """What a client costs the held-out task.

    Attributes:
        client: its id.
        harm: mean over its rounds of the score without it minus the score with it; above 0, leaving it out helps.
        interval: 95 % interval over rounds, wider where rounds resemble their neighbours.
        error: what the sampling of held-out examples adds, at most; 0 where it is not known.
        rounds: how many rounds it was measured in.
    """

    client: str
    harm: float
    interval: tuple[float, float]
    error: float
    rounds: int


def rank_clients(effects: Sequence[RoundEffect], higher_is_better: bool = True) -> list[ClientHarm]:
    """Clients by harm, most harmful first; those seen in fewer than eight rounds are left out."""
    names, harm, errors = _harm_table(effects)
    harm = harm if higher_is_better else -harm
    persistence = _persistence(harm)
    rows = []
    for index, name in enumerate(names):
        own = harm[~np.isnan(harm[:, index]), index]
        rows.append(ClientHarm(name, float(own.mean()), _interval(own, persistence), float(errors[index]), len(own)))
    return sorted(rows, key=lambda row: -row.harm)


def _harm_table(effects: Sequence[RoundEffect]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, harm in each round (rounds, clients) with NaN where absent, and example errors, (clients,)."""
    names = sorted({str(client) for effect in effects if effect.without for client in effect.clients})
    column = {name: index for index, name in enumerate(names)}
    harm, error = (np.full((len(effects), len(names)), np.nan) for _ in range(2))
    for row, effect in enumerate(effects):
        for at, value in enumerate(effect.without):
            index = column[str(effect.clients[at])]
            harm[row, index] = value - effect.mean
            error[row, index] = effect.without_error[at] if effect.without_error else 0.0
    keep = (~np.isnan(harm)).sum(axis=0) >= MIN_SEEN
    kept = [name for name, good in zip(names, keep, strict=True) if good]
    return kept, harm[:, keep], np.nanmean(error[:, keep], axis=0) if kept else np.zeros(0)


def _persistence(series: np.ndarray) -> float:
    """Correlation of a round with the next, over all columns together, corrected for the bias of short series."""
    if series.size == 0:
        return 0.0
    centred = series - np.nanmean(series, axis=0)
    products = centred[1:] * centred[:-1]
    both = ~np.isnan(products)
    power = np.where(both, np.square(centred[1:]) + np.square(centred[:-1]), 0.0).sum() / 2
    if not power > 0:
        return 0.0
    raw = float(np.where(both, products, 0.0).sum() / power)
    return float(np.clip(raw + (1 + 3 * raw) / len(series), 0.0, 0.9))  # Kendall 1954


def _interval(values: np.ndarray, persistence: float) -> tuple[float, float]:
    """95 % interval of a mean over rounds that resemble their neighbours."""
    half = 1.96 * float(values.std(ddof=1)) * math.sqrt((1 + persistence) / (1 - persistence) / len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def report(
    effects: Sequence[RoundEffect],
    *,
    minimum: float = 0.0,
    higher_is_better: bool = True,
    draws: int = 2000,
    subject: str = "history",
    seed: int = 0,
) -> AuditReport:
    """Findings about a federation's aggregation and its clients.

    Two tests share a false-alarm rate of 5 %: whether averaging lowers the score, and whether the score rises when a
    client is left out. The null: federations of as many rounds, in which each resembles its neighbours as much as
    here, with no effect at all. Half of the draws set the limits, the other half measure the false-alarm rate.

    Raises:
        UserError: fewer than 20 rounds.
    """
    if len(effects) < MIN_ROUNDS:
        raise UserError(f"a history of {len(effects)} rounds", f"at least {MIN_ROUNDS}")
    if draws < 400:
        raise UserError(f"{draws} draws", "at least 400")
    sign = 1.0 if higher_is_better else -1.0
    names, harm, errors = _harm_table(effects)
    table = sign * np.column_stack([[-effect.effect for effect in effects], harm])  # loss first, then clients
    persistence = _persistence(table)
    loss, worst = _null(table, persistence, draws, seed)  # (draws,) each
    level = _LEVEL / (2 if names else 1)
    half = draws // 2
    limit = float(np.quantile(loss[:half], 1 - level))
    findings = [_group_finding(table[:, 0], limit, persistence)]
    flags = loss[half:] > limit
    if names:
        limit = float(np.quantile(worst[:half], 1 - level))
        findings.append(_harm_finding(names, table[:, 1:], errors, limit, minimum, persistence))
        flags |= worst[half:] > limit
        findings.append(_ranking(names, table[:, 1:]))
    findings += _information(effects, sign)
    return AuditReport(
        subject=subject,
        method="fedka",
        findings=tuple(findings),
        false_alarm_rate=float(flags.mean()),
        calibration=(
            f"share of {len(flags)} simulated federations without any effect, whose rounds resemble their neighbours "
            f"as these do (correlation {persistence:.2f}), that the two tests would flag"
            + ("" if names else "; the history has no scores without single clients, so only the aggregate was tested")
            + ("" if errors.any() else "; which examples were held out is not part of it: give without_error")
        ),
        environment={"rounds": len(effects), "clients": len(names), "minimum": minimum, "draws": draws, "seed": seed},
    )


def _studentised(table: np.ndarray) -> np.ndarray:
    """Mean over its naive standard error along the rounds, (..., rounds, series) -> (..., series); NaN is absent."""
    known = (~np.isnan(table)).sum(axis=-2)
    spread = np.nanstd(table, axis=-2, ddof=1)
    return np.nanmean(table, axis=-2) * np.sqrt(known) / np.maximum(spread, 1e-12)


def _null(table: np.ndarray, persistence: float, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The statistics in autoregressive noise with the table's gaps: the aggregate's, and the largest of a client."""
    rng = np.random.default_rng(seed)
    rounds, series = table.shape
    results = []
    block = max(1, 4_000_000 // table.size)  # draws at once, to keep the memory small
    for start in range(0, draws, block):
        noise = rng.standard_normal((min(block, draws - start), rounds, series))
        noise[:, 0] /= math.sqrt(1 - persistence**2)  # stationary from the first round on
        values = lfilter([1.0], [1.0, -persistence], noise, axis=1)
        results.append(_studentised(np.where(np.isnan(table), np.nan, values)))
    found = np.concatenate(results)  # (draws, series)
    return found[:, 0], found[:, 1:].max(axis=1, initial=-np.inf)


def _error(values: np.ndarray) -> np.ndarray:
    return np.nanstd(values, axis=0, ddof=1) / np.sqrt((~np.isnan(values)).sum(axis=0))


def _group_finding(loss: np.ndarray, limit: float, persistence: float) -> Finding:
    """Is the aggregate worse than the mean client?"""
    value = -float(loss.mean())
    low, high = _interval(-loss, persistence)
    threshold = -limit * float(_error(loss))
    found = value < threshold
    meaning = f"the aggregate is {abs(value):.4g} {'worse' if value < 0 else 'better'} than the mean client" + (
        " on the held-out task: negative transfer" if found else " on the held-out task"
    )
    remedy = "leave out or weigh down the clients ranked below, or align their domains (FedKA)" if found else ""
    return Finding("group effect", value, (low, high), threshold, "finding" if found else "ok", meaning, remedy)


def _harm_finding(
    names: list[str], table: np.ndarray, errors: np.ndarray, limit: float, minimum: float, persistence: float
) -> Finding:
    """The most harmful client; flagged beyond chance, beyond the sampling of examples, and beyond what matters."""
    harm = np.nanmean(table, axis=0)
    needed = np.maximum(np.maximum(limit * _error(table), 1.96 * errors), minimum)  # (clients,)
    low = [int(i) for i in np.argsort(-harm, kind="stable") if harm[i] > needed[i]]
    worst = low[0] if low else int(np.argmax(harm - needed))
    meaning = (
        f"without client {names[worst]} the mean of the others is {abs(harm[worst]):.4g} "
        f"{'better' if harm[worst] > 0 else 'worse'} on the held-out task; "
        f"{'more' if low else 'not more'} than chance explains"
    )
    who = ", ".join(names[i] for i in low[:10])
    remedy = f"look at the data of client {who}; leave it out or weigh it down" if low else ""
    own = table[~np.isnan(table[:, worst]), worst]
    interval, threshold = _interval(own, persistence), float(needed[worst])
    return Finding(
        "harmful client", float(harm[worst]), interval, threshold, "finding" if low else "ok", meaning, remedy
    )


def _ranking(names: list[str], table: np.ndarray) -> Finding:
    harm, seen = np.nanmean(table, axis=0), (~np.isnan(table)).sum(axis=0)
    order = np.argsort(-harm, kind="stable")
    shown = ", ".join(f"{names[i]} ({harm[i]:+.4f}, {seen[i]} rounds)" for i in order[:12])
    return Finding("spread of harm", float(np.ptp(harm)), None, None, "info", f"most harmful first: {shown}")


def _information(effects: Sequence[RoundEffect], sign: float) -> list[Finding]:
    values = sign * np.array([effect.effect for effect in effects])
    best = np.array([effect.aggregate * sign - max(sign * x for x in effect.local) for effect in effects])
    lost, share = float(np.minimum(values, 0.0).mean()), float((values < 0).mean())
    below = "mean over rounds; below 0, some client alone is better, though nobody knows which without labels"
    return [
        Finding("negative part", lost, None, None, "info", f"averaging lowered the score in {share:.0%} of the rounds"),
        Finding("against the best client", float(best.mean()), None, None, "info", below),
    ]
