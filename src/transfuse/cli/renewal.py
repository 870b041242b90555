"""Stored cells whose code has changed since: run again, or shown to be what today's code gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transfuse.cli.tables import count
from transfuse.errors import UserError
from transfuse.registry import Entry, Registry
from transfuse.study.evidence import Evidence, gather
from transfuse.study.mirror import Mirror
from transfuse.study.plan import Plan, StudyPlan, data_digest, make_plan
from transfuse.study.store import Cell, Store


class Renewal:
    """What `transfuse run --stale` is to do.

    Much code under a study cannot change its numbers: a check of somebody's input, a message, an audit. With `verify`,
    so many seeds of each group of stale cells are run; where every one of them comes out bit for bit as it was stored,
    the other cells of the group are kept and say on which seeds that rests. Otherwise all are run.

    Args:
        registry: all methods.
        entries: only these; none means all.
        store: where the cells lie.
        device: for studies that have one.
        verify: how many seeds; None runs all.

    Attributes:
        plan: the cells to run first.
        lines: what to tell, filled by `keep_equal`.
    """

    def __init__(
        self, registry: Registry, entries: Sequence[Entry], store: Store, device: str, verify: int | None
    ) -> None:
        chosen = [entry.id for entry in entries] or None
        groups = [evidence for evidence in gather(store, registry, chosen) if evidence.stale]
        full = [(evidence, _renewal(evidence, store, device)) for evidence in groups]
        self.store, self.lines = store, list[str]()
        self._groups = [(plan, {cell.spec.seed: cell for cell in evidence.cells}) for evidence, plan in full]
        plans = [plan if verify is None else replace(plan, pending=plan.pending[:verify]) for plan, _ in self._groups]
        self.plan = Plan(tuple(sorted(plans, key=lambda plan: plan.seconds)))

    def keep_equal(self, mirror: Mirror | None = None) -> Plan:
        """After `plan` was run: keep what is shown to be equal; returns the plan with what still has to be run."""
        rest = []
        for plan, before in self._groups:
            run = [cell for cell in plan.cells if self.store.has(cell)]
            open_ = [cell for cell in plan.cells if not self.store.has(cell)]
            if not open_:
                rest.append(replace(plan, pending=()))
                continue
            name = f"{plan.study.id}, scale {plan.scale}"
            equal = [cell.seed for cell in run if _same(self.store.read(self.store.path(cell)), before[cell.seed])]
            if run and len(equal) == len(run):
                for cell in open_:
                    path = self.store.renew(before[cell.seed], cell.code, equal)
                    if mirror is not None:
                        mirror.push(path)
                seeds = ", ".join(map(str, equal))
                self.lines.append(f"{name}: seed {seeds} as stored, bit for bit; {count(len(open_), 'cell')} kept")
                rest.append(replace(plan, pending=()))
            else:
                self.lines.append(f"{name}: other numbers than were stored; {count(len(open_), 'cell')} to run")
                rest.append(replace(plan, pending=tuple(open_)))
        return Plan(tuple(rest))


def _same(new: Cell, old: Cell) -> bool:
    return new.measurements == old.measurements


def _renewal(evidence: Evidence, store: Store, device: str) -> StudyPlan:
    settings: Mapping[str, Any] = evidence.settings
    for set_id in evidence.study.data.get(evidence.scale, ()):
        data_digest(set_id)  # data that are missing have a remedy of their own
    try:
        plan = make_plan(
            [evidence.entry], store, scale=evidence.scale, seeds=evidence.stale, overrides=settings,
            device=str(settings.get("device", device)),
        )  # fmt: skip
    except UserError as error:
        raise UserError(
            f"stale cells of {evidence.study.id!r} at scale {evidence.scale} cannot be renewed as they were ({error})",
            fix=f"delete {str(store.folder / evidence.study.id / evidence.scale)!r} and type: "
            f"transfuse run {evidence.study.id} --scale {evidence.scale}",
        ) from None
    return plan.studies[0]
