"""Do the clients of a federation pull against one another? What their updates say, and the audit of a history.

A history needs the cosines between the clients' updates, for each round and group of parameters. `UpdateHistory`
records them on top of any Flower strategy; `read_history` says which plain files do as well.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from transfuse.atomic import write_text
from transfuse.errors import UserError
from transfuse.hosts.flower.flat_records import FlatLayout, trainable_keys
from transfuse.hosts.flower.reply_check import array_problem
from transfuse.user_file import read_utf8

_FORMS = "JSON (a list of rounds, or {'rounds': [...]}), JSONL (a round a line), or CSV (a pair of clients a line)"


@dataclass(frozen=True)
class GroupUpdates:
    """How the clients' updates of one group of parameters lie to one another in a round.

    Attributes:
        cosines: between the updates of each two clients, (clients, clients).
        norms: Euclidean norm of each update, (clients,); may be empty.
        sign_conflict: share of parameters whose update has the minority's sign, averaged over clients, 0 to 0.5.
        clusters: which cluster each client is averaged in, or what label it has, (clients,); may be empty.
    """

    cosines: tuple[tuple[float, ...], ...]
    norms: tuple[float, ...] = ()
    sign_conflict: float | None = None
    clusters: tuple[Any, ...] = ()


@dataclass(frozen=True)
class ConflictRound:
    """One round: who took part, and for each group of parameters how their updates lie."""

    round: int
    clients: tuple[Any, ...]
    groups: Mapping[str, GroupUpdates] = field(default_factory=dict)


class UpdateProducts:
    """Inner products and signs of the updates of a round, a tensor at a time: no update lies in memory whole."""

    def __init__(self, clients: int) -> None:
        self.products = np.zeros((clients, clients))
        self.minority, self.moved = 0, 0

    def add(self, block: np.ndarray) -> None:
        """Count one tensor in: the update of each client, (clients, size)."""
        self.products += block @ block.T
        up, down = (block > 0).sum(axis=0), (block < 0).sum(axis=0)
        self.minority += int(np.minimum(up, down).sum())
        self.moved += int((up + down).sum())

    def finish(self, clusters: Sequence[Any] = ()) -> GroupUpdates:
        """How the updates lie. A client without an update has cosine 0 with all others."""
        norms = np.sqrt(np.maximum(np.diag(self.products), 0.0))
        safe = np.where(norms > 0, norms, 1.0)
        cosines = np.clip(self.products / np.outer(safe, safe), -1.0, 1.0)
        np.fill_diagonal(cosines, 1.0)
        share = self.minority / max(self.moved, 1)
        return GroupUpdates(tuple(map(tuple, cosines.tolist())), tuple(norms.tolist()), share, tuple(clusters))


def conflict(updates: np.ndarray, clusters: Sequence[Any] = ()) -> GroupUpdates:
    """Cosines, norms and sign conflict of flat updates, (clients, parameters).

    Raises:
        UserError: not a matrix, or values that are not finite.
    """
    x = np.asarray(updates)
    if x.ndim != 2 or x.size == 0 or not np.isfinite(x).all():
        raise UserError(f"updates of shape {x.shape}", "a finite matrix (clients, parameters)")
    products = UpdateProducts(len(x))
    products.add(x)
    return products.finish(clusters)


def update_products(layout: FlatLayout, sent: Sequence[ArrayRecord], replies: Sequence[ArrayRecord]) -> UpdateProducts:
    """Of the chosen tensors of some clients: what each was sent, and what each replied."""
    products = UpdateProducts(len(replies))
    before = zip(*(layout.views(record) for record in sent), strict=True)
    after = zip(*(layout.views(record) for record in replies), strict=True)
    for old, new in zip(before, after, strict=True):
        products.add(np.stack([np.subtract(b, a, dtype=np.float32) for a, b in zip(old, new, strict=True)]))
    return products


class UpdateHistory:
    """Mixin: any strategy built on Flower's FedAvg also records how its clients' updates lie to one another.

    ``class Watched(UpdateHistory, FedAvg): ...`` and then ``Watched(group_of=by_stack)``; afterwards
    ``write_history(strategy.conflicts, "history.jsonl")`` and ``transfuse audit fed_mnmt --history history.jsonl``.

    Args:
        group_of: name of a parameter -> its group; None puts all into one group.

    Attributes:
        conflicts: one record a round. Replies with other shapes or values that are not finite are left out of it.
    """

    arrayrecord_key: str  # FedAvg's own

    def __init__(self, *args: Any, group_of: Callable[[str], str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group_of = group_of or (lambda key: "model")
        self.conflicts: list[ConflictRound] = []
        self._sent: ArrayRecord | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent; the rest is the parent's."""
        self._sent = arrays
        return super().configure_train(server_round, arrays, config, grid)  # type: ignore[misc]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Record the round, then aggregate as the strategy does."""
        replies = list(replies)
        if self._sent is not None:
            self._record(server_round, self._sent, replies)
        return super().aggregate_train(server_round, replies)  # type: ignore[misc]

    def _record(self, server_round: int, sent: ArrayRecord, replies: Sequence[Message]) -> None:
        shapes = {key: tuple(array.shape) for key, array in sent.items()}
        records = {}
        for message in replies:
            found = list(message.content.array_records.values()) if message.has_content() else []
            if len(found) == 1 and not array_problem(found[0], shapes):
                records[message.metadata.src_node_id] = found[0]
        if len(records) < 2:
            return
        groups = {}
        for name, keys in keys_of_groups(trainable_keys(sent), self.group_of).items():
            layout = FlatLayout(sent, keys)
            groups[name] = update_products(layout, [sent] * len(records), list(records.values())).finish()
        self.conflicts.append(ConflictRound(server_round, tuple(records), groups))


def keys_of_groups(keys: Iterable[str], group_of: Callable[[str], str]) -> dict[str, list[str]]:
    """Group -> its parameters, both in the order of first appearance."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(group_of(key), []).append(key)
    return groups


def write_history(rounds: Sequence[ConflictRound], path: Path | str) -> None:
    """Write ``strategy.conflicts`` as JSONL for `transfuse audit fed_mnmt`."""
    lines = [json.dumps(asdict(item), separators=(",", ":")) for item in rounds]
    write_text(Path(path), "\n".join(lines) + "\n")


def read_history(path: Path | str) -> list[ConflictRound]:
    """A history from a file.

    JSON or JSONL: rounds with `round`, `clients` and `groups`; a group has `cosines`, (clients, clients), or `updates`,
    (clients, numbers): whole updates or random projections of them; and may have `clusters`, a label a client.
    CSV: a header with `round`, `client_a`, `client_b`, `cosine`, and `group`, `cluster_a`, `cluster_b` where known.
    """
    text = read_utf8(path)
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".csv":
            return _from_pairs(list(csv.DictReader(io.StringIO(text))), str(path))
        if suffix in (".jsonl", ".ndjson"):
            items = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            loaded = json.loads(text)
            items = loaded["rounds"] if isinstance(loaded, dict) else loaded
    except (json.JSONDecodeError, KeyError, csv.Error) as error:
        raise UserError(f"{str(path)!r} cannot be read as a history: {error}", _FORMS) from None
    if not isinstance(items, list) or not items or not all(isinstance(item, Mapping) for item in items):
        raise UserError(f"{str(path)!r} holds no list of rounds", _FORMS)
    return as_rounds(items)


def as_rounds(history: Sequence[ConflictRound | Mapping[str, Any]]) -> list[ConflictRound]:
    """Rounds from mappings, in order of their numbers."""
    rounds = [item if isinstance(item, ConflictRound) else _round(item, i) for i, item in enumerate(history)]
    return sorted(rounds, key=lambda item: item.round)


def _round(item: Mapping[str, Any], index: int) -> ConflictRound:
    where = f"round {index + 1} of the history"
    try:
        clients = tuple(item["clients"])
        groups = {name: _group(group, len(clients)) for name, group in dict(item["groups"]).items()}
        number = int(item.get("round", index + 1))
    except KeyError as error:
        known = ", ".join(map(str, item)) or "nothing"
        raise UserError(f"{where} has {known}", f"clients and groups ({error} is missing)") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}", "clients as a list, groups as an object") from None
    if not groups or len(set(map(str, clients))) != len(clients):
        raise UserError(f"{where} has {len(groups)} groups and clients {clients}", "a group, and each client once")
    return ConflictRound(number, clients, groups)


def _group(group: Mapping[str, Any], clients: int) -> GroupUpdates:
    clusters = tuple(group.get("clusters") or ())
    if clusters and len(clusters) != clients:
        raise ValueError(f"{len(clusters)} clusters for {clients} clients")
    if "cosines" not in group:
        updates = np.asarray(group["updates"], dtype=np.float64)
        if len(updates) != clients:
            raise ValueError(f"{len(updates)} updates for {clients} clients")
        return conflict(updates, clusters)
    cosines = np.asarray(group["cosines"], dtype=np.float64)
    if cosines.shape != (clients, clients) or not np.isfinite(cosines).all() or np.abs(cosines).max() > 1 + 1e-6:
        raise ValueError(f"cosines of shape {cosines.shape} for {clients} clients, or outside [-1, 1]")
    norms = tuple(float(x) for x in group.get("norms") or ())
    share = group.get("sign_conflict")
    rows = tuple(map(tuple, (0.5 * (cosines + cosines.T)).tolist()))
    return GroupUpdates(rows, norms, None if share is None else float(share), clusters)


def _from_pairs(rows: Sequence[Mapping[str, str | None]], path: str) -> list[ConflictRound]:
    """Rounds from lines that name two clients each; a pair that has no line in a round counts as absent."""
    needed = ("round", "client_a", "client_b", "cosine")
    if not rows or any(key not in rows[0] for key in needed):
        raise UserError(f"{path!r} has the columns {', '.join(map(str, rows[0] if rows else ()))}", ", ".join(needed))
    tables: dict[int, dict[str, dict[tuple[str, str], float]]] = {}
    labels: dict[tuple[str, str], str] = {}
    for number, row in enumerate(rows, 2):
        group = row.get("group") or "model"
        a, b = str(row["client_a"]), str(row["client_b"])
        try:
            value = float(row["cosine"] or "")
            tables.setdefault(int(row["round"] or ""), {}).setdefault(group, {})[a, b] = value
        except ValueError:
            raise UserError(
                f"line {number} of {path!r}: round {row['round']}, cosine {row['cosine']}", "numbers"
            ) from None
        if not abs(value) <= 1 + 1e-6:
            raise UserError(f"line {number} of {path!r}: cosine {value}", "a number from -1 to 1")
        labels.update({(group, c): str(row[k]) for c, k in ((a, "cluster_a"), (b, "cluster_b")) if row.get(k)})
    return [_round_of_pairs(number, groups, labels) for number, groups in sorted(tables.items())]


def _round_of_pairs(
    number: int, groups: Mapping[str, Mapping[tuple[str, str], float]], labels: Mapping[tuple[str, str], str]
) -> ConflictRound:
    clients = sorted({client for pairs in groups.values() for pair in pairs for client in pair})
    made = {}
    for name, pairs in groups.items():
        cosines = np.full((len(clients), len(clients)), math.nan)
        for (a, b), value in pairs.items():
            i, j = clients.index(a), clients.index(b)
            cosines[i, j] = cosines[j, i] = value
        np.fill_diagonal(cosines, 1.0)
        clusters = tuple(labels[name, c] for c in clients) if all((name, c) in labels for c in clients) else ()
        made[name] = GroupUpdates(tuple(map(tuple, cosines.tolist())), clusters=clusters)
    return ConflictRound(number, tuple(clients), made)
