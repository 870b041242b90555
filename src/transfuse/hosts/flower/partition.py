"""How examples are dealt to clients. Partitions that differ between libraries make tables incomparable, so the
definitions stand here in full."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from transfuse.errors import UserError


def prior_dirichlet(labels: np.ndarray, clients: int, alpha: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Clients of equal size whose label mixes are drawn around the population's.

    Client k draws q_k ~ Dir(alpha * prior), where prior is the vector of class proportions, and takes ``n // clients``
    examples in these proportions (largest remainders). Where a class has run out, the rest is filled at random from
    what is left; the last client takes what remains. This is not the usual Dirichlet over clients for each class: sizes
    do not vary, and because alpha multiplies a probability vector, alpha = 0.1 with ten classes means parameters 0.01.

    Args:
        labels: class of each example, (n,), any hashable integers.
        clients: how many clients.
        alpha: concentration; small values give clients with few classes.
        rng: source of all draws.

    Returns:
        Indices into `labels`, one array a client; together they are every example once.
    """
    labels = np.asarray(labels)
    if not 1 <= clients <= len(labels):
        raise UserError(f"{clients} clients for {len(labels)} examples", "between 1 and as many as there are examples")
    if not alpha > 0:
        raise UserError(f"alpha {alpha}", "a positive concentration")
    classes, counts = np.unique(labels, return_counts=True)
    pools = [rng.permutation(np.flatnonzero(labels == label)).tolist() for label in classes]
    size = len(labels) // clients
    parts = []
    for _ in range(clients - 1):
        mix = rng.dirichlet(np.maximum(alpha * counts / counts.sum(), 1e-12))
        wanted = np.minimum(largest_remainders(mix, size), [len(pool) for pool in pools])
        part = [pool.pop() for pool, number in zip(pools, wanted, strict=True) for _ in range(int(number))]
        for _ in range(size - len(part)):
            left = np.array([len(pool) for pool in pools])
            part.append(pools[int(rng.choice(len(pools), p=left / left.sum()))].pop())
        parts.append(np.array(part, dtype=np.int64))
    parts.append(np.array([index for pool in pools for index in pool], dtype=np.int64))
    return [rng.permutation(part) for part in parts]


def by_domain_and_class(domains: Sequence[str] | np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """One client for each pair of domain and class that occurs, in sorted order: the natural, extreme skew."""
    pairs = sorted(set(zip(np.asarray(domains).tolist(), np.asarray(labels).tolist(), strict=True)))
    domains, labels = np.asarray(domains), np.asarray(labels)
    return [np.flatnonzero((domains == domain) & (labels == label)) for domain, label in pairs]


def largest_remainders(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that add up to `total`, as near to ``shares * total`` as rounding allows, (classes,)."""
    exact = np.asarray(shares, dtype=np.float64) * total
    whole = np.floor(exact).astype(np.int64)
    missing = total - int(whole.sum())
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[:missing]] += 1
    return whole


def label_counts(parts: Sequence[np.ndarray], labels: np.ndarray, classes: int) -> np.ndarray:
    """Examples of each class that each client holds, (clients, classes)."""
    return np.stack([np.bincount(np.asarray(labels)[part], minlength=classes) for part in parts])


def total_variation(counts: np.ndarray, prior: np.ndarray) -> float:
    """Half the absolute difference between two label distributions, given as counts or shares; 0 same, 1 disjoint."""
    p = np.asarray(counts, dtype=np.float64)
    q = np.asarray(prior, dtype=np.float64)
    if p.sum() <= 0 or q.sum() <= 0:
        raise UserError("label counts without a single example", "a positive total")
    return float(0.5 * np.abs(p / p.sum() - q / q.sum()).sum())
