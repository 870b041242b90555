"""The audit of a federation's updates: do clients fall into camps that pull apart, and does one average mix them?

Two tests a group of parameters. *Camps*: if clients share one direction and otherwise differ at random, cosines of what
is left beside that direction lie as if dealt at random to the pairs; camps make them transitive, which shows in the
largest eigenvalue. *Labels*: with clusters or labels known, pairs within one agree more than pairs across. The first is
calibrated by dealing the cosines anew, the second by dealing the labels anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from transfuse.audit import AuditReport, Finding
from transfuse.audit.finding import Result
from transfuse.errors import UserError
from transfuse.methods.federated.update_conflict import ConflictRound, as_rounds
from transfuse.user_file import read_utf8

MIN_CLIENTS = 6  # fewer leave too few pairs to tell camps from chance
_LEVEL = 0.05  # chance that a clean federation is flagged, over all tests of a report together
_CAUTION = 0.4  # clean federations of few dimensions pass the limit up to 2.5 times as often as cosines dealt anew do
_REMEDY = "average such clients apart: ClusteredFedAvg with clusters='family', 'gradient' or lists of your own"

Losses = Mapping[str, tuple[np.ndarray, np.ndarray]]


def mean_cosines(rounds: Sequence[ConflictRound], group: str) -> tuple[list[str], np.ndarray, dict[str, str]]:
    """Clients, their mean cosines over the rounds, (clients, clients), and their labels as far as known.

    Clients that never met all the others are left out, those with the fewest meetings first.
    """
    present = [item for item in rounds if group in item.groups]
    names = sorted({str(client) for item in present for client in item.clients})
    place = {name: index for index, name in enumerate(names)}
    total, count = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
    labels: dict[str, str] = {}
    for item in present:
        here = [place[str(client)] for client in item.clients]
        cosines = np.asarray(item.groups[group].cosines)
        known = np.isfinite(cosines)
        total[np.ix_(here, here)] += np.where(known, cosines, 0.0)
        count[np.ix_(here, here)] += known
        labels.update(zip(map(str, item.clients), map(str, item.groups[group].clusters), strict=False))
    keep = list(range(len(names)))
    while keep and (count[np.ix_(keep, keep)] == 0).any():
        met = (count[np.ix_(keep, keep)] > 0).sum(axis=1)
        keep.pop(int(met.argmin()))
    chosen = np.ix_(keep, keep)
    return [names[i] for i in keep], total[chosen] / np.maximum(count[chosen], 1), labels


def beside_common(cosines: np.ndarray, steps: int = 50) -> np.ndarray:
    """Cosines of the updates after their common direction is taken out, (clients, clients), with a zero diagonal.

    One factor explains cosine i, j by u_i u_j; what is left is divided by the lengths of the rests, as in a partial
    correlation. A client with more data follows the common direction more closely; that is no camp.
    """
    c = np.array(cosines, dtype=np.float64)
    np.fill_diagonal(c, 0.0)
    u = np.full(len(c), np.sqrt(max(c.sum() / (len(c) * (len(c) - 1)), 1e-4)))
    for _ in range(steps):
        fit = c @ u / np.maximum((u**2).sum() - u**2, 1e-12)
        u = np.clip(0.5 * (u + fit), 0.0, 0.99)  # camps on two sides of nothing are not common
    left = (c - np.outer(u, u)) / np.sqrt(np.outer(1 - u**2, 1 - u**2))
    np.fill_diagonal(left, 0.0)
    return left


def residuals(pairs: np.ndarray, clients: int) -> np.ndarray:
    """What is left of pairwise values after the least-squares level of each client, (..., pairs)."""
    a, b = np.triu_indices(clients, 1)
    design = np.zeros((len(a), clients))
    design[np.arange(len(a)), a] = design[np.arange(len(a)), b] = 1.0
    hat = design @ np.linalg.pinv(design)  # (pairs, pairs)
    return pairs - pairs @ hat.T


def studentised(pairs: np.ndarray, clients: int) -> np.ndarray:
    """Residuals over the scale of both their clients, (..., pairs): noise differs between clients, camps or not."""
    left = residuals(pairs, clients)
    a, b = np.triu_indices(clients, 1)
    member = np.zeros((len(a), clients))
    member[np.arange(len(a)), a] = member[np.arange(len(a)), b] = 1.0
    scale = np.sqrt(np.maximum(np.square(left) @ member / (clients - 1), 1e-24))  # (..., clients)
    return residuals(left / (scale[..., a] * scale[..., b]), clients)


def camp_strength(pairs: np.ndarray, clients: int) -> np.ndarray:
    """Largest eigenvalue of the matrix of studentised values, over their root mean square, (...,); more = camps."""
    left = studentised(pairs, clients)
    a, b = np.triu_indices(clients, 1)
    matrix = np.zeros((*left.shape[:-1], clients, clients))
    matrix[..., a, b] = matrix[..., b, a] = left
    scale = np.maximum(np.sqrt(np.square(left).mean(axis=-1)), 1e-12)
    return np.linalg.eigvalsh(matrix)[..., -1] / scale


def report(
    history: Sequence[ConflictRound | Mapping[str, Any]],
    losses: Losses | None = None,
    *,
    draws: int = 2000,
    subject: str = "history",
    seed: int = 0,
) -> AuditReport:
    """Findings about the conflict between a federation's clients.

    All tests share a false-alarm rate of 5 %.

    Args:
        history: rounds, or mappings as `read_history` takes them.
        losses: client -> losses of its test sentences by the federated and by its own local model, paired.
        draws: of each null calibration.
        subject: how the report calls the history.
        seed: of the draws.

    Raises:
        UserError: too few clients that met, or malformed rounds.
    """
    rounds = as_rounds(history)
    if draws < 200:
        raise UserError(f"{draws} draws", "at least 200")
    groups = list(dict.fromkeys(name for item in rounds for name in item.groups))
    tables = {name: mean_cosines(rounds, name) for name in groups}
    usable = {name: table for name, table in tables.items() if len(table[0]) >= MIN_CLIENTS}
    if not usable:
        most = max((len(table[0]) for table in tables.values()), default=0)
        raise UserError(f"a history of {most} clients that all met", f"at least {MIN_CLIENTS}")
    labelled = {name for name, (clients, _, labels) in usable.items() if _splits(clients, labels)}
    level = _LEVEL / (len(usable) + len(labelled) + (losses is not None))
    rng = np.random.default_rng(seed)
    findings, flags = [], np.zeros(draws, dtype=bool)
    for name, (clients, cosines, labels) in usable.items():
        pairs = beside_common(cosines)[np.triu_indices(len(clients), 1)]
        finding, null = _camps(name, clients, pairs, rng, draws, _CAUTION * level)
        findings.append(finding)
        flags |= null
        if name in labelled:
            finding, null = _labels(name, [labels[c] for c in clients], cosines, rng, draws, level)
            findings.append(finding)
            flags |= null
    if losses is not None:
        findings.append(_harm(losses, level))
    findings.sort(key=lambda f: f.verdict != "finding")
    for name, (_, cosines, _) in usable.items():
        findings += _facts(name, cosines, rounds)
    return AuditReport(
        subject=subject,
        method="fed_mnmt",
        findings=tuple(findings),
        false_alarm_rate=float(flags.mean()),
        calibration=(
            f"share of {draws} draws in which the tests of camps (cosines dealt anew to the pairs) and of labels "
            "(labels dealt anew to the clients) would flag anything"
        ),
        environment={"rounds": len(rounds), "groups": len(groups), "draws": draws, "seed": seed},
    )


def _splits(clients: Sequence[str], labels: Mapping[str, str]) -> bool:
    """Whether labels are known for all, differ, and some clients share one."""
    found = [labels.get(client) for client in clients]
    return None not in found and 1 < len(set(found)) < len(found)


def _camps(
    name: str, clients: list[str], pairs: np.ndarray, rng: np.random.Generator, draws: int, level: float
) -> tuple[Finding, np.ndarray]:
    k = len(clients)
    left = studentised(pairs, k)
    observed = float(camp_strength(left, k))
    null = camp_strength(rng.permuted(np.tile(left, (draws, 1)), axis=1), k)
    limit = float(np.quantile(null, 1 - level))
    found = observed > limit
    first, second = _two_sides(left, clients)
    meaning = (
        f"{name}: the updates fall into camps: {', '.join(first)} against {', '.join(second)}"
        if found
        else f"{name}: no camps among {k} clients beyond what chance makes"
    )
    verdict: Result = "finding" if found else "ok"
    remedy = _REMEDY if found else ""
    return Finding(f"camps in {name}", observed, None, limit, verdict, meaning, remedy), null > limit


def _two_sides(left: np.ndarray, clients: list[str]) -> tuple[list[str], list[str]]:
    """Clients by the sign of the leading eigenvector, the smaller side first."""
    k = len(clients)
    matrix = np.zeros((k, k))
    a, b = np.triu_indices(k, 1)
    matrix[a, b] = matrix[b, a] = left
    vector = np.linalg.eigh(matrix)[1][:, -1]
    sides = [[c for c, v in zip(clients, vector, strict=True) if (v > 0) == up] for up in (True, False)]
    first, second = sorted(sides, key=len)
    return first, second


def _labels(
    name: str, labels: list[str], cosines: np.ndarray, rng: np.random.Generator, draws: int, level: float
) -> tuple[Finding, np.ndarray]:
    a, b = np.triu_indices(len(labels), 1)
    pairs = cosines[a, b]
    codes = np.unique(labels, return_inverse=True)[1]

    def gap(dealt: np.ndarray) -> np.ndarray:  # (draws, clients) -> (draws,)
        same = dealt[:, a] == dealt[:, b]
        return (same @ pairs) / same.sum(axis=1) - (~same @ pairs) / (~same).sum(axis=1)

    observed = float(gap(codes[None])[0])
    null = gap(rng.permuted(np.tile(codes, (draws, 1)), axis=1))
    limit = float(np.quantile(null, 1 - level))
    found = observed > limit
    agreement = f"updates agree by {observed:+.3f} in cosine more within a cluster than across"
    meaning = f"{name}: {agreement}; {'more' if found else 'not more'} than other clusters of these sizes give"
    remedy = "keep these clusters apart in the average" if found else ""
    verdict: Result = "finding" if found else "ok"
    return Finding(f"clusters in {name}", observed, None, limit, verdict, meaning, remedy), null > limit


def _harm(losses: Losses, level: float) -> Finding:
    """How many clients the federation serves worse than training alone, by paired t tests with Holm's correction."""
    effects, ps = {}, {}
    for client, (federated, local) in losses.items():
        difference = np.asarray(federated, dtype=np.float64) - np.asarray(local, dtype=np.float64)
        effects[client] = float(difference.mean())
        spread = len(difference) > 1 and difference.std() > 0
        ps[client] = float(stats.ttest_1samp(difference, 0.0, alternative="greater").pvalue) if spread else 1.0
    harmed: list[str] = []
    for rank, client in enumerate(sorted(ps, key=ps.__getitem__)):
        if ps[client] * (len(ps) - rank) >= level:
            break
        harmed.append(client)
    worst = max(effects, key=effects.__getitem__)
    meaning = (
        f"worse off than alone: {', '.join(harmed)}"
        if harmed
        else f"no client is reliably worse off than alone (largest loss: {worst}, {effects[worst]:+.3g})"
    )
    remedy = _REMEDY if harmed else ""
    return Finding("negative transfer", float(len(harmed)), None, 0.0, "finding" if harmed else "ok", meaning, remedy)


def _facts(name: str, cosines: np.ndarray, rounds: Sequence[ConflictRound]) -> list[Finding]:
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    share = float((pairs < 0).mean())
    facts = [
        Finding(
            f"opposed pairs in {name}", share, None, None, "info",
            f"{name}: {share:.0%} of the pairs have a negative mean cosine; the mean over pairs is {pairs.mean():+.3f}",
        )
    ]  # fmt: skip
    signs = [g.sign_conflict for item in rounds if (g := item.groups.get(name)) and g.sign_conflict is not None]
    if signs:
        value = float(np.mean(signs))
        text = f"{name}: an update has the minority's sign in {value:.0%} of the parameters"
        facts.append(Finding(f"sign conflict in {name}", value, None, None, "info", text))
    return facts


def read_losses(path: Path | str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Client -> paired losses, from a JSON object client -> {"federated": [...], "local": [...]}."""
    expected = 'an object client -> {"federated": [losses], "local": [losses of the same sentences]}'
    try:
        loaded = json.loads(read_utf8(path))
        read = {
            str(client): (np.array(both["federated"], dtype=np.float64), np.array(both["local"], dtype=np.float64))
            for client, both in loaded.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read as losses: {error}", expected) from None
    if not read or any(f.ndim != 1 or f.shape != g.shape or not len(f) for f, g in read.values()):
        raise UserError(f"{str(path)!r} holds losses that do not pair", expected)
    if not all(np.isfinite(f).all() and np.isfinite(g).all() for f, g in read.values()):
        raise UserError(f"{str(path)!r} holds losses that are not finite", expected)
    return read
