"""Ours against two usual forms of the same work: Mahalanobis scores, and features of mixed-length texts.

    python bench/gnome_ood.py [--texts 5000] [--repeats 5] [--no-features] [--json]

1. Scores of N texts against C classes with one covariance, features given. Peers: the row-wise form of the installed
   pytorch-ood (a product with the precision for every class), and the form that builds an N x N matrix for every
   class and keeps its diagonal. The N x N form runs once: its cost grows with N squared.
2. Features and scores of 1000 texts of mixed length through the packaged MiniLM. Peer: every batch padded to the
   longest text of all.

Outputs must agree (tolerances are printed); no time is asserted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

CLASSES, WIDTH = 150, 384


def seconds(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def alternate(functions: dict[str, Callable[[], Tensor]], repeats: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Median seconds of each, run in turns, so that a change of the machine's load meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    results: dict[str, Tensor] = {}
    for _ in range(repeats):
        for name, function in functions.items():
            taken, results[name] = seconds(function)
            times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}, results


def diagonal_form(means: Tensor, precision: Tensor, features: Tensor) -> Tensor:
    """For every class the full product of all pairs of texts, of which the diagonal is used."""
    best = torch.full((len(features),), -torch.inf)
    for mean in means:
        centred = features - mean
        best = torch.maximum(best, -(centred @ precision @ centred.T).diagonal())
    return best


def scoring(texts: int, repeats: int) -> dict[str, float]:
    from pytorch_ood.detector import Mahalanobis

    from transfuse.methods.monitoring.tied_gaussian import TiedGaussian, fit_gaussian

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(15_000) % CLASSES  # CLINC150's training set: 100 texts a class
    means = 0.6 * torch.randn(CLASSES, WIDTH, generator=generator)
    mix = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    train = means[labels] + torch.randn(len(labels), WIDTH, generator=generator) @ mix
    features = means[torch.arange(texts) % CLASSES] + torch.randn(texts, WIDTH, generator=generator) @ mix

    peer = Mahalanobis(None).fit_features(train, labels)
    # one set of parameters for all, the peer's scaled to a covariance: only the scoring differs
    cov = peer.cov.double() / len(train) * 0.9
    cov += 0.1 * cov.diagonal().mean() * torch.eye(WIDTH, dtype=torch.float64)
    precision = torch.linalg.inv(cov)
    peer.precision = precision.float()
    centre = train.mean(dim=0)
    whitener = torch.linalg.cholesky(precision).float()
    gaussian = TiedGaussian(centre, whitener, (peer.mu - centre) @ whitener)

    whole, _ = alternate(
        {
            "ours, fit and score": lambda: fit_gaussian(train, labels)(features),
            "pytorch-ood, fit and score": lambda: (
                Mahalanobis(None).fit_features(train, labels).predict_features(features)
            ),
        },
        max(1, repeats // 2),
    )
    times, results = alternate(
        {
            "ours": lambda: gaussian(features),
            "row-wise (pytorch-ood)": lambda: -2 * peer.predict_features(features),
        },
        repeats,
    )
    times["N x N diagonal"], results["N x N diagonal"] = seconds(
        lambda: diagonal_form(peer.mu, precision.float(), features)
    )
    exact = torch.stack(
        [-((features.double() - m) @ precision * (features.double() - m)).sum(1) for m in peer.mu.double()]
    )
    largest = float(exact.amax(dim=0).abs().max())
    for name, result in results.items():
        off = float((result.double() - exact.amax(dim=0)).abs().max()) / largest
        assert off < 3e-4, f"{name} differs from float64 by {off:.1e} of the largest score"
        times[f"error of {name}"] = off
    return times | whole


def mixed_length_texts(count: int) -> list[str]:
    """Most are short requests, some are long: words of the public intents' kind, lengths log-normal."""
    rng = np.random.default_rng(0)
    sentence = "please tell me what the balance of my account is and book a table for two near home tomorrow"
    words = sentence.split()
    lengths = np.clip(rng.lognormal(2.3, 0.8, size=count).astype(int), 2, 200)
    return [" ".join(rng.choice(words, size=n)) for n in lengths]


def end_to_end(repeats: int) -> dict[str, float]:
    from transfuse.hosts.encoder_features import Pooling, extract
    from transfuse.methods.monitoring.detection_metrics import auroc
    from transfuse.methods.monitoring.tied_gaussian import fit_gaussian
    from transfuse.nets.encoder import packaged_encoder

    encoder, tokenizer = packaged_encoder()
    texts = mixed_length_texts(1000)
    # a stand-in for ID and foreign texts: every second text from 500 on gets other words
    texts[500:] = [text.replace("account", "galaxy").replace("table", "quark") for text in texts[500:]]

    def features(by_length: bool) -> Tensor:
        return extract(encoder, tokenizer, texts, (Pooling(),), max_length=256, by_length=by_length).features[Pooling()]

    times, results = alternate({"ours": lambda: features(True), "pad to longest": lambda: features(False)}, repeats)
    areas = []
    for z in results.values():
        score = fit_gaussian(z[:400], torch.arange(400) % 2)(z)
        areas.append(auroc(score[400:500], score[500:]))
    assert abs(areas[0] - areas[1]) < 1e-3, f"AUROC differs: {areas}"
    difference = float((results["ours"] - results["pad to longest"]).abs().max())
    return {**times, "AUROC of both": areas[0], "largest difference of features": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-features", action="store_true", help="leave the second, slower part out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    parts = {
        f"scores of {options.texts} texts, {CLASSES} classes, d = {WIDTH}": scoring(options.texts, options.repeats)
    }
    if not options.no_features:
        parts["features of 1000 mixed-length texts"] = end_to_end(max(1, options.repeats // 2))
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), **parts}, indent=2))
        return
    for title, figures in parts.items():
        print(f"{title} ({torch.get_num_threads()} threads)")
        for name, value in figures.items():
            timed = not name.startswith(("error", "AUROC", "largest"))
            print(
                f"  {name:<34}" + (f"{value:9.3f} s   {value / figures['ours']:6.1f} x" if timed else f"{value:9.2g}")
            )


if __name__ == "__main__":
    main()
