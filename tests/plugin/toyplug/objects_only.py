"""A method without a study whose audit takes a callable."""

from collections.abc import Callable

from transfuse.card import Card

CARD = Card(
    id="objects_only",
    title="Method for Python Only",
    summary="Audits a callable.",
    authors="D. Caller",
    year=2022,
    venue="Nowhere",
    url="https://example.org/objects-only",
    family="monitoring",
    host="Python",
    entry="toyplug.objects_only.audit",
    needs=("a callable",),
    data="text",
    problems=("Is my function what it was?",),
    extra="text",
    requires=("numpy",),
    differs=("none known",),
)


def audit(model: Callable[[str], str]) -> None:
    """Takes what nobody can type."""
