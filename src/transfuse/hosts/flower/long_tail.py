"""Long-tailed class sizes, as studies of federated learning cut them from balanced data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from transfuse.errors import UserError


def exponential_sizes(largest: int, ratio: float, classes: int) -> np.ndarray:
    """Examples of each class from head to tail, n_c = largest * ratio^(-c / (classes - 1)), at least one, (classes,).

    Args:
        largest: examples of the most frequent class.
        ratio: how many times more frequent it is than the rarest.
        classes: how many there are.
    """
    if largest < 1 or classes < 2 or not ratio >= 1.0:
        raise UserError(f"largest {largest}, ratio {ratio}, {classes} classes", "at least 1, 1 and 2")
    exact = largest * ratio ** (-np.arange(classes) / (classes - 1))
    return np.maximum(np.rint(exact).astype(np.int64), 1)


def binary_sizes(largest: int, ratio: float, classes: int, minority: Sequence[int]) -> np.ndarray:
    """Examples of each class where those listed are `ratio` times rarer than the others, at least one, (classes,)."""
    sizes = exponential_sizes(largest, 1.0, classes)
    if not set(minority) <= set(range(classes)) or not ratio >= 1.0:
        raise UserError(f"minority classes {list(minority)}, ratio {ratio}", f"classes below {classes}, at least 1")
    sizes[list(minority)] = max(1, round(largest / ratio))
    return sizes


def cut_long_tail(
    labels: np.ndarray, sizes: np.ndarray, rng: np.random.Generator, shuffle_classes: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Keep so many examples of each class.

    Args:
        labels: class of each example, (n,).
        sizes: how many to keep, from head to tail, (classes,).
        rng: draws the examples and the order of classes.
        shuffle_classes: which class is rare is drawn too; else class 0 is the head.

    Returns:
        Indices of the examples kept, in random order, and the classes from head to tail, (classes,).

    Raises:
        UserError: a class has fewer examples than it should keep.
    """
    order = rng.permutation(len(sizes)) if shuffle_classes else np.arange(len(sizes))
    kept = []
    for size, label in zip(sizes.tolist(), order.tolist(), strict=True):
        there = np.flatnonzero(np.asarray(labels) == label)
        if len(there) < size:
            raise UserError(f"{len(there)} examples of class {label}", f"at least {size}")
        kept.append(rng.permutation(there)[:size])
    return rng.permutation(np.concatenate(kept)), order
