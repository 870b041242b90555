"""The handwritten digits of scikit-learn in four domains: real images under fixed, known shifts."""

from __future__ import annotations

import numpy as np

from transfuse.data.images import Labelled, digits, stratified_split

DIGIT_DOMAINS = ("plain", "inverted", "rotated", "blurred")
ANGLE = 30.0  # degrees
BLUR, NOISE = 0.7, 0.15  # pixels, and standard deviation for pixels from 0 to 1


def shifted_digits(rng: np.random.Generator) -> Labelled:
    """The 1797 digits dealt to four domains of equal size, so that no image occurs in two of them.

    Domains: plain; inverted (1 - x); rotated by 30 degrees; blurred (Gaussian of 0.7 pixels) with noise of 0.15.

    Args:
        rng: source of the split and of the noise.
    """
    data = digits()
    size = len(data.labels) // len(DIGIT_DOMAINS)
    parts, rest = stratified_split(data.labels, (size,) * (len(DIGIT_DOMAINS) - 1), rng)
    features, labels, names = [], [], []
    for domain, part in zip(DIGIT_DOMAINS, (*parts, rest), strict=True):
        images = shift(data.features[part].reshape(-1, 8, 8), domain, rng)
        features.append(images.reshape(len(part), -1).astype(np.float32))
        labels.append(data.labels[part])
        names.append(np.full(len(part), domain))
    return Labelled(np.concatenate(features), np.concatenate(labels), np.concatenate(names), data.classes)


def shift(images: np.ndarray, domain: str, rng: np.random.Generator) -> np.ndarray:
    """Images (n, h, w) from 0 to 1 as a domain shows them."""
    from scipy.ndimage import gaussian_filter, rotate

    if domain == "inverted":
        return 1.0 - images
    if domain == "rotated":
        return np.clip(rotate(images, ANGLE, axes=(1, 2), reshape=False, order=1), 0.0, 1.0)
    if domain == "blurred":
        soft = gaussian_filter(images, (0.0, BLUR, BLUR))
        return np.clip(soft + NOISE * rng.standard_normal(images.shape), 0.0, 1.0)
    return images
