"""Rows of the verdict tables and of the summary, as plain strings that both HTML and Markdown print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transfuse.study.claims import OUTCOMES, Claim, Outcome, Trend, Verdict, Within, needed_note
from transfuse.study.evidence import Evidence
from transfuse.study.report.arrange import Arranged
from transfuse.study.report.figures import conditions, effect, interval, p_value, seed_list, with_deviation
from transfuse.study.report.palette import SIGNS, outcome_class
from transfuse.study.report.provenance import own_settings

SCALES = {
    "quick": "plumbing only, a few seconds; no claim is judged",
    "small": "data that comes with installed packages, small models, minutes on two CPU cores",
    "public": "public data sets, models that fit a CPU",
    "full": "the models and data of the paper's kind, on a GPU",
}


@dataclass(frozen=True)
class ClaimRow:
    """One claim at one scale, ready to print. `sort_*` are numbers for the sorting of columns."""

    anchor: str
    study: str
    family: str
    scale: str
    control: bool
    text: str
    head: str  # the text without its conditions,
    where: str  # and those
    outcome: Outcome
    sign: str
    css: str
    effect: str
    interval: str
    items: str
    pairs: int
    p_holm: str
    p_flip: str
    meaning: str
    tally: str
    needed: str
    paper: str
    published: str
    ours: str
    likely: str
    stale: bool
    sort_effect: float
    sort_p: float


def anchor(evidence: Evidence) -> str:
    """The fragment of a group's section: stable, and unique among groups."""
    return f"{evidence.study.id}-{evidence.scale}-{evidence.cells[0].spec.key[:6]}"


def label(evidence: Evidence) -> str:
    """The scale, with what was set by hand, so that two groups of one scale can be told apart."""
    own = [f"{setting.name} = {setting.value}" for setting in own_settings(evidence)]
    more = f" and {len(own) - 1} more" if len(own) > 1 else ""
    return f"{evidence.scale}, {own[0]}{more}" if own else evidence.scale


def claim_rows(evidence: Evidence) -> list[ClaimRow]:
    """One row a claim, in the order of declaration."""
    return [_row(evidence, verdict) for verdict in evidence.verdicts]


def _row(evidence: Evidence, verdict: Verdict) -> ClaimRow:
    claim, estimate = verdict.claim, verdict.estimate
    items = evidence.item_interval(claim) if estimate is not None else None
    judged = verdict.outcome != "too few seeds"
    return ClaimRow(
        anchor=anchor(evidence),
        study=evidence.study.id,
        family=evidence.entry.card.family,
        scale=label(evidence),
        control=claim.control,
        text=claim.text(),
        head=head(claim),
        where=conditions(claim.where),
        outcome=verdict.outcome,
        sign=SIGNS[verdict.outcome],
        css=outcome_class(verdict.outcome),
        effect=_rho(claim) + effect(estimate) if estimate else "not measured",
        interval=interval(estimate) if estimate else "",
        items=interval(items) if items else "",
        pairs=len(verdict.effects),
        p_holm=p_value(verdict.p_holm) if judged else "",
        p_flip=p_value(verdict.p_sign_flip) if judged else "",
        meaning=verdict.meaning,
        tally=_tally(verdict),
        needed=needed_note(verdict),
        paper=claim.paper,
        published=claim.published,
        ours=_ours(evidence, claim),
        likely=claim.likely if verdict.outcome == "contradicted" else "",
        stale=bool(evidence.stale),
        sort_effect=estimate.mean if estimate else 0.0,
        sort_p=verdict.p_holm,
    )


def head(claim: Claim) -> str:
    """What a claim says, without the conditions under which it says it."""
    return claim.text().removesuffix(f", {conditions(claim.where)}")


def _tally(verdict: Verdict) -> str:
    """How many seeds lie where the claim says, for readers who trust counts more than tests."""
    claim, effects = verdict.claim, verdict.effects.values()
    if not effects:
        return ""
    if isinstance(claim, Within):
        return f"{sum(abs(x) < claim.margin for x in effects)} of {_count(len(effects), 'seed')} inside the margin"
    side = f"beyond the margin of {claim.margin:g}" if claim.margin else "in favour"
    return f"{sum(x > claim.margin for x in effects)} of {_count(len(effects), 'seed')} {side}"


def _rho(claim: Claim) -> str:
    """What an effect is, where it is not in the unit of the metric."""
    return "rho " if isinstance(claim, Trend) else ""


def _ours(evidence: Evidence, claim: Claim) -> str:
    """Our own figures for the arms of a claim: mean and deviation over seeds."""
    parts = []
    for arm in claim.arms:
        if isinstance(claim, Trend):
            parts.append(_along(evidence, claim))
        elif values := list(evidence.values.by_seed(arm, claim.on, claim.where).values()):
            parts.append(f"{arm} {with_deviation(values)}")
    unit = evidence.study.metrics[claim.on].unit
    return "; ".join(part for part in parts if part) + (f" {unit}" if parts and unit != "1" else "")


def _along(evidence: Evidence, claim: Trend) -> str:
    """First and last point of a trend, as means over seeds."""
    curves = list(evidence.values.along(claim.arm, claim.on, claim.where, claim.key).values())
    if not curves:
        return ""
    ends = [with_deviation([curve[place][1] for curve in curves]) for place in (0, -1)]
    first, last = curves[0][0][0], curves[0][-1][0]
    return f"{claim.arm} {ends[0]} at {claim.key} {first}; {ends[1]} at {claim.key} {last}"


@dataclass(frozen=True)
class SummaryRow:
    """Counts of one group of cells."""

    anchor: str
    study: str
    title: str
    family: str
    scale: str
    seeds: str
    counts: tuple[int, ...]  # in the order of OUTCOMES, claims of the paper only
    controls: str
    stale: str


def summary_rows(evidence: Sequence[Evidence]) -> list[SummaryRow]:
    """One row for each study and scale."""
    rows = []
    for group in evidence:
        counts = Counter(v.outcome for v in group.verdicts if not v.claim.control)
        checks = [v.outcome for v in group.verdicts if v.claim.control]
        rows.append(
            SummaryRow(
                anchor=anchor(group),
                study=group.study.id,
                title=group.entry.card.title,
                family=group.entry.card.family,
                scale=label(group),
                seeds=f"{len(group.seeds)}",
                counts=tuple(counts[outcome] for outcome in OUTCOMES),
                controls=_controls(checks),
                stale=f"seeds {seed_list(group.stale)}" if group.stale else "",
            )
        )
    return rows


def _controls(outcomes: Sequence[Outcome]) -> str:
    """How many of the claims that check the study hold."""
    judged = [outcome for outcome in outcomes if outcome != "too few seeds"]
    if not judged:
        return "not judged" if outcomes else "no claim checks the study"
    parts = [f"{judged.count('supported')} of {len(judged)} hold"]
    others: tuple[tuple[Outcome, str], ...] = (("contradicted", "failed"), ("inconclusive", "undecided"))
    parts += [f"{judged.count(outcome)} {words}" for outcome, words in others if outcome in judged]
    return ", ".join(parts)


def summary_sentence(evidence: Sequence[Evidence]) -> str:
    """What was found, in words that claim no more than was measured."""
    verdicts = [v for group in evidence for v in group.verdicts if not v.claim.control]
    cells = sum(len(group.cells) for group in evidence)
    methods = len({group.study.id for group in evidence})
    if not verdicts:
        return f"{_count(cells, 'cell')} of {_count(methods, 'study', 'studies')}; no claim was tested."
    counts = Counter(v.outcome for v in verdicts)
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
    return (
        f"{_count(cells, 'cell')} of {_count(methods, 'study', 'studies')} put {_count(len(verdicts), 'claim')} of "
        f"papers to the test: {told}."
    )


def _count(number_: int, one: str, many: str = "") -> str:
    return f"{number_:,} {one if number_ == 1 else many or one + 's'}"


@dataclass(frozen=True)
class MeansTable:
    """Arm x condition means of one metric."""

    metric: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def means_tables(evidence: Evidence, arranged: Arranged) -> list[MeansTable]:
    """Means and standard deviations over seeds of all final measurements.

    Arms are rows where there are few conditions; where there are many, conditions are rows. What all conditions share
    is said once.
    """
    tables = []
    for metric, by_where in arranged.finals.items():
        wheres = list(by_where)
        arms = [arm for arm in evidence.study.arms if any(arm in by_where[where] for where in wheres)]
        shared = dict(set(wheres[0]).intersection(*map(set, wheres)))
        names = [conditions({k: v for k, v in where if k not in shared}) or "mean ± sd" for where in wheres]
        words = {
            (arm, name): with_deviation(list(by_where[where][arm].values()))
            for name, where in zip(names, wheres, strict=True)
            for arm in arms
            if arm in by_where[where]
        }
        if len(wheres) <= 6 or len(wheres) <= len(arms):
            columns, rows = names, [(arm, tuple(words.get((arm, name), "") for name in names)) for arm in arms]
        else:
            columns, rows = arms, [(name, tuple(words.get((arm, name), "") for arm in arms)) for name in names]
        note = _metric_note(evidence, metric)
        if shared:
            note += f"; {conditions({key: shared[key] for key, _ in wheres[0] if key in shared})}"
        tables.append(MeansTable(metric, note, tuple(columns), tuple(rows)))
    return tables


def _metric_note(evidence: Evidence, metric: str) -> str:
    declared = evidence.study.metrics[metric]
    better = {"higher": "higher is better", "lower": "lower is better", "neither": "a diagnostic, no way is better"}
    unit = "" if declared.unit == "1" else f"in {declared.unit}; "
    meaning = f"{declared.meaning}; " if declared.meaning else ""
    return f"{meaning}{unit}{better[declared.better]}; mean ± standard deviation over seeds"
