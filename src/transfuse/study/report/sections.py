"""What both forms of the report are made of, worked out once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transfuse.study.evidence import Evidence
from transfuse.study.report.arrange import Arranged, arrange
from transfuse.study.report.ledger import LedgerRow, ledger
from transfuse.study.report.tables import ClaimRow, claim_rows


@dataclass(frozen=True)
class Section:
    """One group of cells with its measurements arranged, its claims judged and its ledger entries."""

    group: Evidence
    arranged: Arranged
    rows: list[ClaimRow]
    ledger: list[LedgerRow]


@dataclass(frozen=True)
class Contents:
    """A whole report."""

    title: str
    sections: list[Section]

    @property
    def evidence(self) -> list[Evidence]:
        return [section.group for section in self.sections]

    @property
    def ledger(self) -> list[LedgerRow]:
        return [row for section in self.sections for row in section.ledger]

    def rows(self, control: bool) -> list[ClaimRow]:
        """The claims of the papers, or those that check the studies."""
        return [row for section in self.sections for row in section.rows if row.control == control]


def contents(evidence: Sequence[Evidence], title: str) -> Contents:
    sections = []
    for group in evidence:
        arranged = arrange(group)
        sections.append(Section(group, arranged, claim_rows(group), ledger(group, arranged)))
    return Contents(title, sections)
