"""Image data as plain arrays: handwritten digits that come with scikit-learn, and Office-Caltech10 visual words."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from transfuse.data.folder import read_bytes

OFFICE_CALTECH = "office-caltech10-surf"
OFFICE_DOMAINS = {
    "amazon": "amazon_SURF_L10.mat",
    "caltech": "Caltech10_SURF_L10.mat",
    "dslr": "dslr_SURF_L10.mat",
    "webcam": "webcam_SURF_L10.mat",
}


@dataclass(frozen=True)
class Labelled:
    """Examples with classes and, where there are several, domains.

    Attributes:
        features: float32, (n, size).
        labels: classes from 0, int64, (n,).
        domains: name of each example's domain, (n,).
        classes: how many classes there are.
    """

    features: np.ndarray
    labels: np.ndarray
    domains: np.ndarray
    classes: int

    def take(self, indices: np.ndarray) -> Labelled:
        """The examples at `indices`."""
        return Labelled(self.features[indices], self.labels[indices], self.domains[indices], self.classes)


def digits() -> Labelled:
    """The 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn, scaled to 0 .. 1."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    features = (bunch.data / 16.0).astype(np.float32)
    return Labelled(features, bunch.target.astype(np.int64), np.full(len(features), "digits"), 10)


def office_caltech(standardise: bool = True) -> Labelled:
    """Office-Caltech10: 2533 images of ten things in four domains as counts of 800 visual words.

    Each row is divided by its sum. With `standardise`, each column is then z-scored within its domain, as the set is
    usually prepared; this uses statistics of all images of a domain, but no label.

    Raises:
        UserError: the set is not in the data folder.
    """
    from scipy.io import loadmat

    parts, labels, domains = [], [], []
    for domain, name in OFFICE_DOMAINS.items():
        content = loadmat(io.BytesIO(read_bytes(OFFICE_CALTECH, name)), variable_names=("fts", "labels"))
        counts = content["fts"].astype(np.float64)  # bytes would overflow in the sum
        rows = counts / counts.sum(axis=1, keepdims=True)
        if standardise:
            spread = rows.std(axis=0)
            rows = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        parts.append(rows.astype(np.float32))
        labels.append(content["labels"].ravel().astype(np.int64) - 1)
        domains.append(np.full(len(rows), domain))
    return Labelled(np.concatenate(parts), np.concatenate(labels), np.concatenate(domains), 10)


def stratified_split(
    labels: np.ndarray, sizes: tuple[int, ...], rng: np.random.Generator
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Disjoint index sets of the given sizes whose class proportions follow `labels`, and the indices left over."""
    from sklearn.model_selection import train_test_split

    left = rng.permutation(len(labels))
    sets = []
    for size in sizes:
        left, taken = train_test_split(
            left, test_size=size, stratify=labels[left], random_state=int(rng.integers(2**31))
        )
        sets.append(np.sort(taken))
    return tuple(sets), np.sort(left)
