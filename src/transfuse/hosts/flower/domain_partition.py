"""Clients that differ in kind rather than in labels: by domain, or by the people the examples come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from transfuse.errors import UserError


def by_domain(
    domains: Sequence[str] | np.ndarray, rng: np.random.Generator, clients_a_domain: int = 1
) -> dict[str, list[np.ndarray]]:
    """Each domain dealt to clients of its own.

    Args:
        domains: of each example, (n,).
        rng: source of the shuffling.
        clients_a_domain: how many clients share a domain, in equal parts up to one example.

    Returns:
        Domain, in sorted order, -> indices of each of its clients; together they are every example once.
    """
    domains = np.asarray(domains)
    found: dict[str, list[np.ndarray]] = {}
    for domain in sorted(set(domains.tolist())):
        members = rng.permutation(np.flatnonzero(domains == domain))
        if not 1 <= clients_a_domain <= len(members):
            raise UserError(
                f"{clients_a_domain} clients for the {len(members)} examples of domain {domain!r}", "at least one each"
            )
        found[domain] = list(np.array_split(members, clients_a_domain))
    return found


def by_subject(subjects: Sequence[str] | np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Whole subjects (people, sites, devices) dealt to clients, so that nobody's examples lie at two clients.

    Subjects are taken in random order, each by the client that has fewest examples so far.

    Args:
        subjects: of each example, (n,).
        clients: how many clients, at most as many as there are subjects.
        rng: source of the order.

    Returns:
        Indices of each client, in random order; together they are every example once.
    """
    subjects = np.asarray(subjects)
    names = sorted(set(subjects.tolist()))
    if not 1 <= clients <= len(names):
        raise UserError(f"{clients} clients for {len(names)} subjects", "between 1 and as many as there are subjects")
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    sizes = np.zeros(clients, dtype=np.int64)
    for index in rng.permutation(len(names)):
        members = np.flatnonzero(subjects == names[index])
        # a client without anyone goes first, so that large subjects cannot leave one empty
        client = min(range(clients), key=lambda k: (bool(parts[k]), sizes[k]))
        parts[client].append(members)
        sizes[client] += len(members)
    return [rng.permutation(np.concatenate(part)) for part in parts]
