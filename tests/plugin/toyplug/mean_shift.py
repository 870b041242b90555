"""Samples from two sites differ in their mean; subtract each site's own. The idea is as old as the mean.

>>> from toyplug.mean_shift import centred
>>> centred([1.0, 3.0])
[-1.0, 1.0]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from transfuse.audit import AuditReport, Finding
from transfuse.card import Card
from transfuse.errors import UserError

CARD = Card(
    id="mean_shift",
    title="Centring as Transfer",
    summary="Removes the mean of each site before samples are pooled.",
    authors="A. Nobody, B. Noone",
    year=2020,
    venue="Journal of Toys",
    url="https://example.org/mean-shift",
    family="transferability",
    host="scikit-learn (TransformerMixin)",
    entry="toyplug.mean_shift.centred",
    needs=("samples of two sites",),
    data="tables of numbers",
    problems=("My sensors drift between sites.", "Does pooling two laboratories help?"),
    extra="text",
    requires=("numpy",),
    differs=("The paper centres twice; once is the same.",),
    showcase=True,
)


@dataclass(frozen=True)
class Config:
    """How to centre."""

    shrink: float = 1.0  # paper, section 2: the whole mean
    robust: bool = False  # the median is for heavy tails


def centred(values: Sequence[float]) -> list[float]:
    """Values minus their mean."""
    mean = sum(values) / len(values)
    return [value - mean for value in values]


def audit(
    samples: Annotated[Path, "text file with one number a line"],
    limit: Annotated[float, "largest mean that is no shift"] = 0.5,
    sites: Annotated[list[str] | None, "names to print; may be repeated"] = None,
    unit: Annotated[Literal["mm", "inch"], "of the numbers"] = "mm",
    strict: Annotated[bool, "count the limit itself as a shift"] = False,
    digits: Annotated[int, "to round to"] = 3,
) -> AuditReport:
    """Is the mean of these samples shifted?"""
    try:
        values = [float(line) for line in samples.read_text(encoding="utf-8").split()]
    except ValueError as error:
        raise UserError(f"{str(samples)!r}: {error}", "one number a line") from None
    mean = round(sum(values) / len(values), digits)
    shifted = mean > limit or (strict and mean == limit)
    finding = Finding(
        "mean", mean, (mean - 1, mean + 1), limit, "finding" if shifted else "ok",
        f"mean of {', '.join(sites or ['the site'])} in {unit}", "centre the site" if shifted else "",
    )  # fmt: skip
    return AuditReport(str(samples), "mean_shift", (finding,), 0.05, "by theory", {"unit": unit})


def apply(
    samples: Annotated[Path, "text file with one number a line"],
    out: Annotated[Path, "file to write"],
    callback: object = None,
) -> Path:
    """Centre a file of numbers."""
    values = [float(line) for line in samples.read_text(encoding="utf-8").split()]
    out.write_text("\n".join(map(str, centred(values))), encoding="utf-8")
    return out
