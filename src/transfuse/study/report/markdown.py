"""The report as Markdown, and the two tables that README and documentation take from it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from transfuse.registry import Entry, Registry
from transfuse.study.claims import OUTCOMES
from transfuse.study.evidence import Evidence
from transfuse.study.report import provenance, tables
from transfuse.study.report.arrange import Arranged
from transfuse.study.report.figures import conditions, number, seed_list, with_deviation
from transfuse.study.report.ledger import LedgerRow
from transfuse.study.report.sections import Contents, Section
from transfuse.study.report.tables import ClaimRow

# What Markdown or HTML would read as markup; an underscore inside a word is none.
_MARKUP = re.compile(r"[\\|*`\[]|<(?=[A-Za-z/!?])|(?<!\w)_|_(?!\w)")


def verdict_table_markdown(evidence: Sequence[Evidence]) -> str:
    """All claims with their verdicts as one Markdown table; controls are marked."""
    rows = [row for group in evidence for row in tables.claim_rows(group)]
    return _table(
        ("Study", "Scale", "Claim", "Verdict", "Effect (95 % interval)", "Seeds", "p (Holm)"),
        (
            (
                row.study,
                row.scale,
                ("control: " if row.control else "") + row.text,
                _verdict(row),
                _effect(row),
                str(row.pairs),
                row.p_holm,
            )
            for row in rows
        ),
    )


def method_table_markdown(registry: Registry, evidence: Sequence[Evidence]) -> str:
    """One row a method: what it does, in which host's type, what its claims came to, and the paper."""
    rows = []
    for entry in sorted(registry.entries.values(), key=lambda entry: (entry.card.family, entry.id)):
        card = entry.card
        paper = f"[{_cell(card.authors.split(',')[0])} {card.year}]({card.url})"
        rows.append((f"`{card.id}`", _cell(card.summary), _cell(card.host), _counts(entry.id, evidence), paper))
    head = ("Method", "What it does", "Type", "Claims of the paper", "Paper")
    return _lines(head, rows)


def _counts(method: str, evidence: Sequence[Evidence]) -> str:
    """Verdict counts per scale, of the cells that were run with the scale's own settings."""
    parts = []
    for group in evidence:
        verdicts = [v for v in group.verdicts if not v.claim.control] if group.study.id == method else []
        if verdicts and not provenance.own_settings(group):
            counts = Counter(v.outcome for v in verdicts)
            told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
            parts.append(f"{group.scale}: {told}" + (" (stale)" if group.stale else ""))
    return "; ".join(parts) or "not run"


def model_card_markdown(entry: Entry, evidence: Sequence[Evidence]) -> str:
    """A section for the card of a model that was made with a method: what is known about the method, and how."""
    card = entry.card
    lines = [
        f"## Evidence for the method `{card.id}`\n",
        f"{_cell(card.summary)} Paper: {_cell(card.title)}, {_cell(card.authors)}, {card.year}, <{card.url}>\n",
        "Verdicts are about the method in the study named here; they do not measure this model.\n",
    ]
    for group in evidence:
        lines += [f"### Scale {_cell(tables.label(group))}\n"]
        data = ", ".join(sorted(group.cells[0].spec.data)) or "comes with installed packages"
        lines.append(f"{_cell(group.study.question)} Data: {_cell(data)}. Seeds: {seed_list(group.seeds)}.\n")
        if group.stale:
            lines.append(f"**Stale**: seeds {seed_list(group.stale)} were run by other code than today's.\n")
        rows = tables.claim_rows(group)
        lines += [_claims(rows, with_study=False), "", *(line for row in rows for line in _details(row))]
        lines += [f"- note: {_cell(note)}" for note in group.study.notes]
        lines.append(f"\n```sh\n{provenance.command(group)}\n```\n")
    if card.differs:
        lines.append("### Differences from the paper\n")
        lines += [f"{number_}. {_cell(text)}" for number_, text in enumerate(card.differs, 1)]
    return "\n".join(lines).rstrip() + "\n"


def page_markdown(made: Contents) -> str:
    """The whole report, without the drawings."""
    return "\n".join(_page(made)).rstrip() + "\n"


def _page(made: Contents) -> Iterator[str]:
    yield f"# {_cell(made.title)}\n"
    yield tables.summary_sentence(made.evidence) + "\n"
    yield "A verdict speaks of the scale that was run, not of the paper's own experiments.\n"
    head = ("Study", "Scale", "Seeds", *(outcome.capitalize() for outcome in OUTCOMES), "Controls", "Stale")
    summary = tables.summary_rows(made.evidence)
    yield _table(head, ((r.study, r.scale, r.seeds, *map(str, r.counts), r.controls, r.stale) for r in summary))
    yield "\n## Claims of the papers\n"
    yield _claims(made.rows(control=False), with_study=True)
    yield "\n## Controls: they check the study, not the paper\n"
    yield _claims(made.rows(control=True), with_study=True)
    yield "\n## Transfer ledger\n"
    yield "Where transfer helped, where it hurt, by how much, at what cost. Uncorrected; verdicts are above.\n"
    yield _ledger(made.ledger)
    for section in made.sections:
        yield from _section(section)


def _section(section: Section) -> Iterator[str]:
    group, rows = section.group, section.rows
    study, card = group.study, group.entry.card
    yield f"\n## {_cell(card.title)} (`{study.id}`, {tables.label(group)})\n"
    yield f"{_cell(study.question)} Paper: {_cell(card.authors)}, {_cell(card.venue)} {card.year}, <{card.url}>\n"
    if group.stale:
        yield f"**Stale**: seeds {seed_list(group.stale)} were run by other code than today's.\n"
    arms = ", ".join(f"{arm} (control)" if arm in study.controls else arm for arm in study.arms)
    yield f"Arms: {_cell(arms)}. Seeds: {seed_list(group.seeds)}. Scale: {tables.SCALES.get(group.scale, '')}.\n"
    yield _claims(rows, with_study=False) + "\n"
    yield from (line for row in rows for line in _details(row))
    for table in tables.means_tables(group, section.arranged):
        yield f"\n**{_cell(table.metric)}**: {_cell(table.note)}\n"
        yield _table(("", *table.columns), ((name, *entries) for name, entries in table.rows))
    yield from _learning(section.arranged)
    yield from _provenance(group)


def _provenance(group: Evidence) -> Iterator[str]:
    """Cost, machine, warnings, notes, settings and the command."""
    yield "\n**Cost of a cell** (all arms)\n"
    costs = provenance.cost_rows(group)
    yield _table(("Seed", "Wall", "CPU", "Peak memory"), ((row.seed, row.wall, row.cpu, row.memory) for row in costs))
    yield ""
    yield from (f"- {seeds}: {_cell(words)}" for seeds, words in provenance.environments(group))
    yield from (f"- warning, {seeds}: {_cell(words)}" for seeds, words in provenance.warnings(group))
    yield from (f"- note: {_cell(note)}" for note in group.study.notes)
    yield from (
        f"- setting `{s.name}` = `{s.value}` (default `{s.default}`, changed by {s.by})"
        for s in provenance.changed_settings(group)
    )
    yield f"\n```sh\n{provenance.command(group)}\n```"


def _details(row: ClaimRow) -> Iterator[str]:
    """What stands behind one verdict, as a list item and those below it."""
    yield f"- {_cell(row.text)}: " + _cell("; ".join(filter(None, (row.meaning, row.tally, row.needed))))
    if row.paper:
        yield f"  - paper: {_cell(row.paper)}"
    if row.published:
        ours = f"ours: {_cell(row.ours)} (scale {row.scale})"
        yield f"  - published: {_cell(row.published)} (at the paper's scale); {ours}"
    if row.likely:
        yield f"  - likely reason: {_cell(row.likely)}"


def _claims(rows: Sequence[ClaimRow], with_study: bool) -> str:
    head = ("Study", "Scale") if with_study else ()
    return _table(
        (*head, "Claim", "Verdict", "Effect (95 % interval)", "Seeds", "p (Holm)", "p (sign flip)"),
        (
            (
                *((row.study, row.scale) if with_study else ()),
                ("control: " if row.control and not with_study else "") + row.text,
                _verdict(row),
                _effect(row),
                str(row.pairs),
                row.p_holm,
                row.p_flip,
            )
            for row in rows
        ),
    )


def _verdict(row: ClaimRow) -> str:
    return f"{row.sign} {row.outcome}" + (" (stale)" if row.stale else "")


def _effect(row: ClaimRow) -> str:
    return f"{row.effect} ({row.interval})" if row.interval else row.effect


def _ledger(rows: Sequence[LedgerRow]) -> str:
    head = ("Study", "Scale", "Arm", "Against", "Metric", "Reading", "Effect (95 % interval)", "Seeds", "Cost")
    return _table(
        head,
        (
            (
                row.study,
                row.scale + (" (stale)" if row.stale else ""),
                row.arm,
                row.against,
                row.metric + (f", {row.where}" if row.where else ""),
                row.reading + (f" ({row.by_condition})" if row.by_condition else ""),
                f"{row.effect} ({row.interval})",
                str(row.pairs),
                row.cost,
            )
            for row in rows
        ),
    )


def _learning(arranged: Arranged) -> Iterator[str]:
    """First and last point of each learning curve; the drawing is on the HTML page."""
    for metric, by_where in arranged.curves.items():
        yield f"\n**{_cell(metric)} along the steps**\n"
        rows = []
        for where, by_arm in by_where.items():
            for arm, steps in by_arm.items():
                first, last = min(steps), max(steps)
                ends = (f"{with_deviation(steps[step])} at {number(step)}" for step in (first, last))
                rows.append((arm, conditions(dict(where)), *ends))
        yield _table(("Arm", "Condition", "First", "Last"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return _lines(head, [[_cell(value) for value in row] for row in rows])


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    if not rows:
        return "None."
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(text: str) -> str:
    """Text that stays inside its table cell and is read as text."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
