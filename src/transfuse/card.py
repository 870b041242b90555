"""The card of a method: the facts that a reader wants before importing anything.

A card is written as a literal (``CARD = Card(id="...", ...)``) so that the registry can read it from
the source text. Only the standard library is used here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Family = Literal[
    "distillation",
    "composition",
    "federated",
    "continual",
    "transferability",
    "negatives",
    "alignment",
    "unlearning",
    "robustness",
    "monitoring",
]
Status = Literal["experimental", "stable"]

FAMILIES: tuple[str, ...] = get_args(Family)


@dataclass(frozen=True)
class Card:
    """Facts about one method. All text is plain, without markup.

    Attributes:
        id: file name, command-line name and test name.
        title: the paper's title.
        summary: what the method does for its user, in one sentence.
        authors: as cited, "A. Author, B. Author".
        year: year of publication.
        venue: journal or conference, short.
        url: where the paper is (an arXiv or DOI address).
        family: one of the ten families.
        host: the tool whose type the method takes, with the type.
        entry: dotted path of the class or function that users import.
        needs: what the user must bring (models, labels, access).
        data: the kind of data, for `transfuse choose`.
        problems: questions a user would ask that this method answers, for `transfuse choose`.
        extra: the pip extra that installs the host.
        requires: importable packages that must be there.
        differs: numbered differences from the paper, in order.
        status: experimental or stable.
        showcase: whether `transfuse run --showcase` includes its study.
    """

    id: str
    title: str
    summary: str
    authors: str
    year: int
    venue: str
    url: str
    family: Family
    host: str
    entry: str
    needs: tuple[str, ...]
    data: str
    problems: tuple[str, ...]
    extra: str
    requires: tuple[str, ...]
    differs: tuple[str, ...]
    status: Status = "experimental"
    showcase: bool = False

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"card {self.id!r}: family {self.family!r} is none of {', '.join(FAMILIES)}")
        if self.status not in get_args(Status):
            raise ValueError(f"card {self.id!r}: status {self.status!r} is none of {', '.join(get_args(Status))}")
        for name in ("needs", "problems", "requires", "differs"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"card {self.id!r}: {name} must be a tuple of strings")

    def bibtex(self) -> str:
        """The paper as a BibTeX entry."""
        fields = {
            "title": "{" + self.title + "}",
            "author": self.authors.replace(", ", " and "),
            "year": str(self.year),
            "journal": self.venue,
            "url": self.url,
        }
        body = ",\n".join(f"  {key:<8}= {{{value}}}" for key, value in fields.items())
        return f"@article{{{self.id}{self.year},\n{body}\n}}"
