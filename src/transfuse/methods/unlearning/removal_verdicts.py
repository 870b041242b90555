"""What probes of an unlearned model say, beside the same probes of the original and of the gold model.

>>> known, never = np.ones((1, 40)), np.zeros((1, 40))
>>> side = lambda base, back: Measured(base, np.ones(9), np.ones((1, 9)), (base[0], None), {"x": Arms({"t": back})}, {})
>>> result = compare("x", side(never, known), side(never, never), side(known, known), untreated=True)
>>> result.found.value, result.outcome                           # all back, and the gold model learned none of it
(1.0, 'SUPPRESSED')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from transfuse.methods.unlearning.recovery import (
    ALPHA,
    Limits,
    Outcome,
    Recovery,
    excess_recovery,
    judge,
    no_exception_bound,
    worst,
    worst_of,
)
from transfuse.methods.unlearning.relearning import area, excess_curve, half_step
from transfuse.methods.unlearning.removal_probes import PROBES, Arms, Case, Measured
from transfuse.methods.unlearning.side_effects import SideEffects, membership_auc, side_effects

UNJUDGED = ("update",)  # who has the original needs no attack: how far a model has moved, not whether it forgot


@dataclass(frozen=True)
class ProbeResult:
    """One probe, compared.

    Attributes:
        probe: a name of `PROBES`.
        found: excess recovery of the worst treatment, on questions.
        outcome: what may be concluded.
        treatment: which one was worst.
        arms: each treatment's own excess recovery.
        by_form: the worst treatment's, in every form; values without interval.
        gold_rate: what the gold model knows after the worst treatment.
        known: what there was to know: the original minus the gold model.
        left_out: treatments that broke the model.
        numbers: of a curve: area under it, step of half recovery (-1 if never).
    """

    probe: str
    found: Recovery
    outcome: Outcome
    treatment: str
    arms: Mapping[str, Recovery]
    by_form: Mapping[str, float]
    gold_rate: float
    known: float
    left_out: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)


def compare(
    probe: str,
    unlearned: Measured,
    gold: Measured | None,
    original: Measured | None,
    *,
    untreated: bool,
    forms: Sequence[str] = (),
    limits: Limits | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> ProbeResult | None:
    """Excess recovery under each treatment of a probe; None if every treatment broke the model.

    Without a gold model its place is taken by the untreated unlearned model, or, for probes that only ask in another
    way, by one that knows nothing. Without an original, it is taken to know everything.

    Args:
        probe: its name among the arms of the models.
        unlearned: the model in question.
        gold: one that never saw the facts.
        original: before unlearning.
        untreated: see `Probe.untreated`.
        forms: names of the rows of treatments that were asked in every form.
        limits: of the verdict.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    limits = limits or Limits()
    usual = float((original or unlearned).kept.mean())
    tables = {name: _four(name, probe, unlearned, gold, original, untreated) for name in unlearned.arms[probe].known}
    broken = _broken(unlearned.arms[probe], limits.broken * usual)
    tables = {name: table for name, table in tables.items() if name not in broken and _askable(table[:, 0])}
    if not tables:
        return None
    judged = tables if untreated else _worth_asking(tables)
    found = {
        name: excess_recovery(*_paired(table[:, 0]), comparisons=len(judged), draws=draws, seed=seed)
        for name, table in judged.items()
    }
    largest = max(found, key=lambda name: found[name].value)
    whole = worst_of(list(found.values()))
    utility = float(unlearned.kept.mean()) / usual if usual else 1.0  # nothing was known that could be lost
    pairs = _paired(judged[largest][:, 0])
    return ProbeResult(
        probe, whole, judge(whole, limits, utility), largest, found, _by_form(judged[largest], forms),
        float(pairs[1].mean()), float(pairs[2].mean() - pairs[3].mean()), broken, _curve(probe, unlearned, gold, pairs),
    )  # fmt: skip


def _four(
    name: str, probe: str, unlearned: Measured, gold: Measured | None, original: Measured | None, untreated: bool
) -> np.ndarray:
    """Treated, treated gold, original, gold: (4, forms, facts) for one treatment."""
    treated = unlearned.arms[probe].known[name]
    rows = len(treated)
    own_gold = gold.arms[probe].known[name] if gold is not None else None
    if untreated:
        never = (gold or unlearned).base[:rows]
        first = original.base[:rows] if original is not None else np.ones_like(treated)
        return np.stack([treated, unlearned.base[:rows] if own_gold is None else own_gold, first, never])
    own_gold = np.zeros_like(treated) if own_gold is None else own_gold
    first = original.arms[probe].known[name] if original is not None else np.ones_like(treated)
    return np.stack([treated, own_gold, first, own_gold])


def _paired(table: np.ndarray) -> np.ndarray:
    """Only facts that all four could be asked for, (4, facts)."""
    return table[:, ~np.isnan(table).any(axis=0)]


def _askable(table: np.ndarray) -> bool:
    return not np.isnan(table).any(axis=0).all()


def _worth_asking(tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Ways of asking in which the original itself knows more than the gold model; all of them if there is none."""
    known = {name: _paired(table[:, 0]) for name, table in tables.items()}
    good = {name: tables[name] for name, pairs in known.items() if pairs[2].mean() - pairs[3].mean() >= 0.1}
    return good or dict(tables)


def _broken(arms: Arms, floor: float) -> tuple[str, ...]:
    return tuple(name for name, share in arms.kept.items() if share < floor)


def _by_form(table: np.ndarray, forms: Sequence[str]) -> dict[str, float]:
    if table.shape[1] != len(forms):
        return {}
    rows = {form: table[:, i] for i, form in enumerate(forms) if _askable(table[:, i])}
    return {form: excess_recovery(*_paired(row), draws=1).value for form, row in rows.items()}


def _curve(probe: str, unlearned: Measured, gold: Measured | None, pairs: np.ndarray) -> dict[str, float]:
    own = unlearned.arms[probe].curve
    if own is None:
        return {}
    other = gold.arms[probe].curve if gold is not None else None
    never = other.curve() if other is not None else np.full(len(own.steps), float(pairs[3].mean()))
    curve = excess_curve(own, never, float(pairs[2].mean() - pairs[3].mean()))
    half = half_step(own.steps, curve)
    return {"area": area(own.steps, curve), "half_step": -1.0 if half is None else float(half)}


def compare_all(
    unlearned: Measured, gold: Measured | None, original: Measured | None, case: Case,
    limits: Limits | None = None, *, draws: int = 2000, seed: int = 0,
) -> dict[str, ProbeResult]:  # fmt: skip
    """All probes that all given models went through, in order."""
    found = {}
    for name in unlearned.arms:
        needed = (gold,) if PROBES[name].untreated else (gold, original)
        if all(other is None or name in other.arms for other in needed):
            result = compare(
                name, unlearned, gold, original, untreated=PROBES[name].untreated, forms=case.facts.forms,
                limits=limits, draws=draws, seed=seed,
            )  # fmt: skip
            if result is not None:
                found[name] = result
    return found


def overall(results: Mapping[str, ProbeResult]) -> Outcome:
    """The verdict on the claim that the facts are gone: that of its worst probe."""
    return worst([result.outcome for name, result in results.items() if name not in UNJUDGED])


@dataclass(frozen=True)
class Neighbours:
    """Side effects with the interval of the drop in the nearest bin."""

    effects: SideEffects
    nearest: tuple[float, float]


def neighbours(unlearned: Measured, original: Measured, case: Case, *, draws: int = 2000, seed: int = 0) -> Neighbours:
    """Drops on kept facts by closeness; both models are asked for the same facts."""
    lost = float(np.nanmean(original.base[0]) - np.nanmean(unlearned.base[0]))
    effects = side_effects(original.kept, unlearned.kept, case.near, lost)
    drop = (original.kept - unlearned.kept)[case.near == case.near.max()]
    low, high = _interval(drop, draws, seed)
    unseen = no_exception_bound(len(drop))
    return Neighbours(effects, (min(low, effects.drops[-1] - unseen), max(high, effects.drops[-1], unseen)))


def two_hop_damage(unlearned: Measured, original: Measured, case: Case, form: str) -> tuple[float, float, float] | None:
    """Drop on two-hop questions over kept facts, with its interval; None where the file has none."""
    if form not in case.kept.forms:
        return None
    row = case.kept.forms.index(form)
    drop = original.kept_forms[row] - unlearned.kept_forms[row]
    drop = drop[~np.isnan(drop)]
    low, high = _interval(drop, 2000, 0)
    return float(drop.mean()), low, high


def _interval(values: np.ndarray, draws: int, seed: int) -> tuple[float, float]:
    drawn = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (ALPHA / 2, 1 - ALPHA / 2))
    return float(low), float(high)


@dataclass(frozen=True)
class Membership:
    """Do losses tell forgotten facts from facts never seen?

    Attributes:
        auc: of the unlearned model; one half says nothing, far below tells as well.
        reference: the gold model's, or one half.
        distance: |auc - reference| with its interval over facts.
    """

    auc: float
    reference: float
    distance: Recovery


def membership(unlearned: Measured, gold: Measured | None, *, draws: int = 1000, seed: int = 0) -> Membership | None:
    """Compare the AUC of mean log probabilities with the gold model's; None without unseen facts."""
    members, others = unlearned.scores
    if others is None:
        return None
    rng = np.random.default_rng(seed)

    def auc(model: Measured, a: np.ndarray, b: np.ndarray) -> float:
        seen, unseen = model.scores
        return membership_auc(seen[a], unseen[b]) if unseen is not None else 0.5

    def gap(a: np.ndarray, b: np.ndarray) -> float:
        return auc(unlearned, a, b) - (auc(gold, a, b) if gold is not None else 0.5)

    whole = np.arange(len(members)), np.arange(len(others))
    value = gap(*whole)
    drawn = [gap(rng.integers(len(members), size=len(members)), rng.integers(len(others), size=len(others)))
             for _ in range(draws)]  # fmt: skip
    low, high = (float(q) for q in np.quantile(drawn, (ALPHA / 2, 1 - ALPHA / 2)))
    nearest = 0.0 if low <= 0.0 <= high else min(abs(low), abs(high))
    distance = Recovery(abs(value), nearest, max(abs(low), abs(high)), min(len(members), len(others)), False)
    return Membership(auc(unlearned, *whole), auc(gold, *whole) if gold is not None else 0.5, distance)
