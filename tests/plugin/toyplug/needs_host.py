"""A method whose host is not installed anywhere."""

from transfuse.card import Card

CARD = Card(
    id="needs_host",
    title="Method of a Missing Host",
    summary="Cannot be imported here.",
    authors="C. Absent",
    year=2021,
    venue="Nowhere",
    url="https://example.org/needs-host",
    family="federated",
    host="a host that does not exist",
    entry="toyplug.needs_host.audit",
    needs=("a host",),
    data="text",
    problems=("Nothing in particular.",),
    extra="federated",
    requires=("no_such_host_of_transfuse",),
    differs=("all of it",),
)


def audit(history: str) -> None:
    """Never called."""
