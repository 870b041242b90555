"""What class-wise gradients reveal. For a class with one example, weight gradient over bias gradient is its feature
vector, exactly; with more examples it is a weighted mean of theirs.

The audit asks whether features recovered from uploads lie nearer to the examples behind them than to as many random
examples of the same class, whoever holds them. The latter are its null: where an upload reveals nothing, the client's
own examples are such a random choice too.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from transfuse.audit import AuditReport, Finding
from transfuse.errors import UserError
from transfuse.methods.federated.gradient_prototypes import Prototypes, class_gradients, defended

_LEVEL = 0.05  # chance that uploads which reveal nothing are flagged
_RANK_ONE = 1e-3  # relative residual below which an upload is one example's; float32 leaves about 1e-6
_NEAR = 0.99  # cosine from which a recovered feature vector is as good as the true one
_COUNTS = ((1, 1), (2, 3), (4, 8), (9, None))  # groups of classes by their number of examples
_FILE = "an npz file with features (n,d), labels (n), client (n), weight (C,d), bias (C), or upload_weight, upload_bias"


@dataclass(frozen=True)
class Case:
    """What an audit looks at: a federation's examples and classifier, or uploads alone."""

    features: np.ndarray  # (n, d)
    labels: np.ndarray  # (n,)
    client: np.ndarray  # owner of each example, (n,)
    weight: np.ndarray  # (C, d)
    bias: np.ndarray  # (C,)


@dataclass(frozen=True)
class Uploads:
    """Captured uploads, one a client and class."""

    weight: np.ndarray  # (u, C, d)
    bias: np.ndarray  # (u, C)


@dataclass(frozen=True)
class Recovered:
    """What one upload gave away.

    Attributes:
        count: examples behind it.
        own: largest cosine of the recovered features with those examples.
        chance: largest cosine with as many random examples of the class, one a draw; empty where nobody else has any.
    """

    count: int
    own: float
    chance: np.ndarray


def recover_features(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The features that explain an upload best: least squares of ``weight ~ bias h^T``.

    Args:
        weight: gradients with respect to the weight, (..., C, d).
        bias: and to the bias, (..., C).

    Returns:
        h, (..., d); of a class with one example and no defence, that example's.
    """
    squares = np.maximum(np.square(bias).sum(axis=-1), 1e-30)
    return np.einsum("...cd,...c->...d", weight, bias) / squares[..., None]


def residual(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """How far uploads are from one example's, |P - q h^T| / |P|, 0 to 1, (...,)."""
    fit = bias[..., None] * recover_features(weight, bias)[..., None, :]
    norm = np.sqrt(np.square(weight).sum(axis=(-2, -1)))
    return np.sqrt(np.square(weight - fit).sum(axis=(-2, -1))) / np.maximum(norm, 1e-30)


def read_case(path: Path | str) -> Case | Uploads:
    """Examples with their owners, or captured uploads, from an npz file without pickled objects."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "cannot be read"
        raise UserError(f"{str(path)!r}: {reason.lower()}", _FILE) from None
    for kind, names in ((Uploads, ("upload_weight", "upload_bias")), (Case, tuple(Case.__dataclass_fields__))):
        if set(names) <= set(found):
            return _checked(kind(*(found[name] for name in names)), path)
    raise UserError(f"{str(path)!r} holds {', '.join(found) or 'nothing'}", _FILE)


def _checked(case: Case | Uploads, path: Path | str) -> Case | Uploads:
    weight, bias = case.weight, case.bias
    good = weight.ndim == bias.ndim + 1 and weight.shape[:-1] == bias.shape and weight.size > 0
    arrays: Sequence[np.ndarray] = (weight, bias)
    if isinstance(case, Case):
        n, classes = len(case.labels), len(bias)
        good = good and bias.ndim == 1 and case.features.shape == (n, weight.shape[-1]) and case.client.shape == (n,)
        good = good and case.labels.dtype.kind in "iu" and n > 0
        good = good and bool(case.labels.min() >= 0 and case.labels.max() < classes)
        arrays = (*arrays, case.features)
    else:
        good = good and bias.ndim == 2
    if not good or not all(a.dtype.kind == "f" and np.isfinite(a).all() for a in arrays):
        raise UserError(f"{str(path)!r} has arrays that do not fit together, or are not finite", _FILE)
    return case


def leakage(
    case: Case, min_count: int = 1, clip: float | None = None, noise_std: float = 0.0, draws: int = 300, seed: int = 0
) -> list[Recovered]:
    """Make every client's upload as the method would, recover features, and compare them with the examples.

    Args:
        case: examples, owners, classifier.
        min_count: classes with fewer examples are not uploaded.
        clip: norm of each prototype.
        noise_std: on each number of an upload.
        draws: of random examples.
        seed: of draws and noise.
    """
    rng = np.random.default_rng(seed)
    unit = case.features / np.maximum(np.linalg.norm(case.features, axis=1, keepdims=True), 1e-12)
    found = []
    for client in np.unique(case.client):
        mine = case.client == client
        features = torch.from_numpy(case.features[mine])
        logits = features @ torch.from_numpy(case.weight.T.copy()).to(features) + torch.from_numpy(case.bias).to(
            features
        )
        labels = torch.from_numpy(case.labels[mine].astype(np.int64))
        weight, bias, counts = (part.numpy() for part in class_gradients(logits, features, labels))
        held = np.flatnonzero(counts >= min_count)
        upload = defended(Prototypes(held, weight[held], bias[held]), clip, noise_std, rng)
        for label, h in zip(held, recover_features(upload.weight, upload.bias), strict=True):
            if not counts[label]:
                continue
            cosine = unit @ (h / max(float(np.linalg.norm(h)), 1e-12))  # (n,)
            same = case.labels == label
            pool, count = cosine[same], int(counts[label])
            tries = draws if len(pool) > count else 0
            chance = [rng.choice(pool, count, replace=False).max() for _ in range(tries)]
            found.append(Recovered(count, float(cosine[same & mine].max()), np.array(chance)))
    return found


def report(
    case: Case | Uploads,
    *,
    min_count: int = 1,
    clip: float | None = None,
    noise_std: float = 0.0,
    draws: int = 300,
    subject: str = "uploads",
    seed: int = 0,
) -> AuditReport:
    """Findings about what uploads reveal.

    Raises:
        UserError: too few draws, or no upload that could be compared.
    """
    if draws < 150:
        raise UserError(f"{draws} draws", "at least 150")
    if isinstance(case, Uploads):
        return _report_uploads(case, draws, subject, seed)
    found = leakage(case, min_count, clip, noise_std, draws, seed)
    compared = [item for item in found if len(item.chance)]
    if not compared:
        raise UserError(
            "no class that two clients share", "examples of at least two clients", "audit captured uploads instead"
        )
    nearer, rate = _nearer(compared)
    findings = [nearer, _singles(found), *_by_count(found)]
    return AuditReport(
        subject=subject,
        method="redgrape",
        findings=tuple(findings),
        false_alarm_rate=rate,
        calibration=(
            f"share of {draws // 3} draws of random examples of the same classes that would have been flagged in "
            "place of the clients' own; ranks and threshold are from the other draws"
        ),
        environment={
            "examples": len(case.labels),
            "clients": len(np.unique(case.client)),
            "uploads": len(found),
            "uploads compared": len(compared),
            "min_count": min_count,
            "prototype_clip": clip,
            "noise_std": noise_std,
            "draws": draws,
            "seed": seed,
        },
    )


def _nearer(compared: Sequence[Recovered]) -> tuple[Finding, float]:
    """How often a client's own examples are nearer to what is recovered than random ones, mean over uploads."""
    chance = np.stack([item.chance for item in compared])  # (uploads, draws)
    fit, choose, check = (np.sort(chance[:, i::3], axis=1) if i == 0 else chance[:, i::3] for i in range(3))

    def nearer(values: np.ndarray) -> np.ndarray:  # (uploads, k) -> share of the first draws that lie below, ties half
        pairs = zip(fit, values, strict=True)
        below = [np.searchsorted(row, v, "left") + np.searchsorted(row, v, "right") for row, v in pairs]
        return np.stack(below) / (2 * fit.shape[1])

    threshold = float(np.quantile(nearer(choose).mean(axis=0), 1 - _LEVEL, method="higher"))
    rate = float((nearer(check).mean(axis=0) > threshold).mean())
    shares = nearer(np.array([[item.own] for item in compared]))[:, 0]
    value, found = float(shares.mean()), bool(shares.mean() > threshold)
    half = 1.96 * float(shares.std() / np.sqrt(len(shares)))
    meaning = (
        f"what is recovered from {len(shares)} uploads lies nearer to the client's own examples than to random ones "
        f"of the class with probability {value:.2f}; 0.5 is chance"
    )
    remedy = "raise min_count, use a secure sum (upload='dense'), or add clipping and noise" if found else ""
    interval = (max(0.0, value - half), min(1.0, value + half))
    name, verdict = "recovered examples", "finding" if found else "ok"
    return Finding(name, value, interval, threshold, verdict, meaning, remedy), rate  # type: ignore[arg-type]


def _singles(found: Sequence[Recovered]) -> Finding:
    """Uploads that stem from one example and give it away."""
    single = [item.own for item in found if item.count == 1]
    exposed = sum(cosine >= _NEAR for cosine in single)
    share = exposed / len(found) if found else 0.0
    meaning = f"{len(single)} of {len(found)} uploads stem from one example; {exposed} of them give its features away"
    remedy = "raise min_count to at least 2: these are features of single examples" if exposed else ""
    return Finding("single examples", share, None, 0.0, "finding" if exposed else "ok", meaning, remedy)


def _by_count(found: Sequence[Recovered]) -> list[Finding]:
    findings = []
    for low, high in _COUNTS:
        cosines = [item.own for item in found if item.count >= low and (high is None or item.count <= high)]
        if cosines:
            name = "one example" if high == 1 else f"{low} {'and more' if high is None else f'to {high}'} examples"
            value = float(np.mean(cosines))
            meaning = (
                f"largest cosine of recovered features with an example behind them, mean over {len(cosines)} uploads"
            )
            findings.append(Finding(f"cosine, {name}", value, None, None, "info", meaning))
    return findings


def _report_uploads(case: Uploads, draws: int, subject: str, seed: int) -> AuditReport:
    """From uploads alone: which ones are of rank one along their bias, as a single example's are."""
    values = residual(case.weight, case.bias)
    flagged = values < _RANK_ONE
    rng = np.random.default_rng(seed)
    rate = None
    if len(values) > 1:  # a mean of two uploads stems from at least two examples
        pairs = np.array([rng.choice(len(values), 2, replace=False) for _ in range(draws)])
        null = residual(case.weight[pairs].mean(axis=1), case.bias[pairs].mean(axis=1))
        rate = float((null < _RANK_ONE).mean())
    count = int(flagged.sum())
    meaning = f"{count} of {len(values)} uploads are those of one example, whose features they give away"
    remedy = "ask clients to withhold such classes (min_count), or to send a secure sum" if count else ""
    verdict = "finding" if count else "ok"
    finding = Finding("single examples", count / len(values), None, 0.0, verdict, meaning, remedy)  # type: ignore[arg-type]
    low = Finding("smallest residual", float(values.min()), None, _RANK_ONE, "info", "0 is one example's, exactly")
    return AuditReport(
        subject=subject,
        method="redgrape",
        findings=(finding, low),
        false_alarm_rate=rate,
        calibration=(
            f"share of {draws} means of two uploads, which stem from two examples at least, that would be flagged"
            if rate is not None
            else "one upload alone leaves nothing to calibrate with"
        ),
        environment={"uploads": len(values), "draws": draws, "seed": seed},
    )
