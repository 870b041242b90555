"""RedGrape's arithmetic against the published way: class-wise gradients, a local epoch, CReFF's server step, bytes.

    python bench/redgrape.py [--json] [--repeats 5]

The published way is written here as its authors' code works: one outer product a sample with a copy to the CPU, the
balanced gradient by a second backward pass through the encoder, CReFF's features by differentiating twice, class after
class. Outputs are checked to 1e-5. Times are medians of the CPU time of alternating repetitions on one thread; they
depend on the machine, their ratios hardly.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfuse.methods.federated.creff import match_features
from transfuse.methods.federated.gradient_prototypes import (
    Prototypes,
    class_gradients,
    missing_mean,
    total_bytes,
    write_download,
    write_upload,
)
from transfuse.methods.federated.redgrape import Config, redgrape_train


def medians(repeats: int, **candidates: Callable[[], object]) -> dict[str, float]:
    """Median CPU seconds of each candidate on one thread, in alternation after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, function in candidates.items():
            start = time.process_time()
            function()
            if repeat:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def sample_by_sample(logits: Tensor, features: Tensor, labels: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Class-wise gradients as published: an outer product and two copies a sample."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    counts: dict[int, int] = {}
    for row in range(len(logits)):
        error = torch.softmax(logits[row], dim=-1)
        label = labels[row].item()
        error[label] -= 1
        weight = torch.matmul(error.unsqueeze(1), features[row].unsqueeze(0))
        if label not in found:
            found[label] = copy.deepcopy(weight.cpu()), copy.deepcopy(error.cpu())
        else:
            total, bias = found[label]
            total += copy.deepcopy(weight.cpu())
            bias += copy.deepcopy(error.cpu())
        counts[label] = counts.get(label, 0) + 1
    return {label: (weight / counts[label], bias / counts[label]) for label, (weight, bias) in found.items()}


def gradients(classes: int, repeats: int, n: int = 1000, width: int = 256) -> dict[str, float]:
    """Class-wise gradients of n samples."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(n, width, generator=generator).relu()
    labels = torch.randint(0, classes, (n,), generator=generator)
    logits = features @ torch.randn(width, classes, generator=generator) / 16
    weight, bias, _ = class_gradients(logits, features, labels)
    for label, (their_weight, their_bias) in sample_by_sample(logits, features, labels).items():
        torch.testing.assert_close(weight[label], their_weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(bias[label], their_bias, rtol=0, atol=1e-5)
    seconds = medians(
        repeats,
        published=lambda: sample_by_sample(logits, features, labels),
        ours=lambda: class_gradients(logits, features, labels),
    )
    return _row(f"class-wise gradients, n {n}, C {classes}, d {width}", seconds)


class Encoder(nn.Module):
    """A perceptron whose head can be run alone, with a second classifier."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class ConvEncoder(Encoder):
    """Three residual stages as a ResNet-8 has them, with group normalisation, d = 64."""

    def __init__(self, classes: int) -> None:
        super().__init__(1, 64, classes)

        def stage(a: int, b: int, stride: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.GroupNorm(4, b), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1))

        stages = [nn.Conv2d(3, 16, 3, 1, 1), stage(16, 16, 1), stage(16, 32, 2), stage(32, 64, 2)]
        self.body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU())


Batches = list[tuple[Tensor, Tensor]]


def published_round(model: Encoder, second: nn.Linear, batches: Batches, known: Prototypes, config: Config) -> None:
    """A round of local steps as published; each class has exactly T samples or fewer than T, so no draw is left."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    model.eval()
    sample_by_sample(model(x).detach(), model.body(x).detach(), y)
    model.train()
    counts = torch.bincount(y, minlength=model.head.out_features)
    enough = torch.nonzero(counts >= config.samples_per_class).flatten().tolist()
    x_balanced = torch.cat([x[y == k] for k in enough])
    y_balanced = torch.repeat_interleave(torch.tensor(enough), config.samples_per_class)
    mean = missing_mean(known, (counts >= config.samples_per_class).numpy())
    assert mean is not None
    lacking = int(mean.averaged.sum())
    parameters = [*model.parameters(), *second.parameters()]
    optimiser = torch.optim.SGD(parameters, lr=config.rate, momentum=config.momentum)
    for inputs, labels in batches:
        features = model.body(inputs)
        logits = model.head(features) + second(features)
        optimiser.zero_grad()  # missing in the published code, whose balancing gradient so holds the last natural one
        F.cross_entropy(model.head(model.body(x_balanced).detach()), y_balanced).backward()
        balanced = []
        for parameter, absent in zip(model.head.parameters(), (mean.weight, mean.bias), strict=True):
            mixed = parameter.grad * len(enough) + torch.from_numpy(absent) * lacking
            mixed /= len(enough) + lacking
            balanced.append(copy.deepcopy(mixed))
        optimiser.zero_grad()
        F.cross_entropy(logits, labels).backward()
        for index, parameter in enumerate(model.head.parameters()):
            balanced[index] = balanced[index] * (parameter.grad.norm().item() / balanced[index].norm().item())
        nn.utils.clip_grad_norm_(parameters, config.clip)
        optimiser.step()
        with torch.no_grad():
            for parameter, step in zip(model.head.parameters(), balanced, strict=True):
                parameter -= config.rate * config.balance_rate * step


def local_epoch(name: str, make: Callable[[], Encoder], x: Tensor, repeats: int) -> dict[str, float]:
    """One client's round of one epoch, prototypes included; six of ten classes held, five of them balanced."""
    classes, n = 10, len(x)
    sizes = [2, *[(n - 2) // 5] * 4, n - 2 - 4 * ((n - 2) // 5)]
    per_class = min(sizes[1:])
    labels = torch.repeat_interleave(torch.arange(6), torch.tensor(sizes))
    keep = torch.cat([torch.nonzero(labels == k).flatten()[:per_class] for k in range(6)])
    x, labels = x[keep], labels[keep]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    batches = [(x[rows], labels[rows]) for rows in order.split(32)]
    torch.manual_seed(0)
    start = make()
    known = Prototypes(
        np.arange(classes),
        np.random.default_rng(0).normal(size=(classes, *start.head.weight.shape)).astype(np.float32),
        np.random.default_rng(1).normal(size=(classes, classes)).astype(np.float32),
    )
    config = Config(epochs=1, samples_per_class=per_class)
    made: dict[str, Encoder] = {}

    def ours(start: Encoder = start, batches: Batches = batches) -> None:
        model = copy.deepcopy(start)
        redgrape_train(model, batches, lambda balanced: missing_mean(known, balanced), config, head="head")
        made["ours"] = model

    def published(start: Encoder = start, batches: Batches = batches) -> None:
        model, second = copy.deepcopy(start), copy.deepcopy(start.head)
        with torch.no_grad():
            for parameter in second.parameters():
                parameter.zero_()
        published_round(model, second, batches, known, config)
        made["published"] = model

    exact = copy.deepcopy(start).double(), [(inputs.double(), y) for inputs, y in batches]
    ours(*exact)
    published(*exact)  # in float64, so that rounding does not add up over the steps
    for key, value in made["ours"].state_dict().items():
        torch.testing.assert_close(value, made["published"].state_dict()[key], rtol=0, atol=1e-5)
    return _row(f"a client's round of one epoch, {name}", medians(repeats, published=published, ours=ours))


def creff_step(repeats: int, classes: int = 10, m: int = 100, width: int = 64, steps: int = 5) -> dict[str, float]:
    """CReFF's feature matching."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(classes, m, width)).astype(np.float32)
    target = rng.normal(size=(classes, classes, width)).astype(np.float32)
    weight, bias = rng.normal(size=(classes, width)).astype(np.float32), np.zeros(classes, np.float32)

    def twice() -> np.ndarray:
        moving = torch.tensor(features, requires_grad=True)
        W, b = torch.tensor(weight, requires_grad=True), torch.tensor(bias)
        optimiser = torch.optim.SGD([moving], lr=0.1)
        for _ in range(steps):
            distance = torch.tensor(0.0)
            for label in range(classes):
                loss = F.cross_entropy(moving[label] @ W.T + b, torch.full((m,), label))
                (gradient,) = torch.autograd.grad(loss, W, create_graph=True)
                distance = distance + (1 - F.cosine_similarity(gradient, torch.tensor(target[label]), dim=1)).sum()
            optimiser.zero_grad()
            distance.backward()
            optimiser.step()
        return moving.detach().numpy()

    def ours() -> np.ndarray:
        return match_features(features, np.arange(classes), target, weight, bias, steps, 0.1)

    np.testing.assert_allclose(ours(), twice(), atol=1e-5)
    return _row(
        f"CReFF's features, {steps} steps, C {classes}, m {m}, d {width}", medians(repeats, published=twice, ours=ours)
    )


def bytes_a_client(classes: int = 100, width: int = 256, held: int = 12) -> dict[str, float]:
    """Prototypes on the wire for a client with some of the classes: everything against what it needs."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(classes, classes, width)).astype(np.float32)
    known = Prototypes(np.arange(classes), weight, weight[:, :, 0])
    mine = np.arange(classes) < held
    part = Prototypes(np.flatnonzero(mine), weight[mine], weight[mine, :, 0])
    whole, mean = (total_bytes([write_download(known, balanced)]) for balanced in (None, mine))
    dense, held_only = (total_bytes([write_upload(part, mine, dense)]) for dense in (True, False))
    return {"down_all": whole, "down_mean": mean, "up_dense": dense, "up_held": held_only}


def _row(name: str, seconds: dict[str, float]) -> dict[str, float]:
    return {
        "name": name,  # type: ignore[dict-item]
        "published_ms": 1e3 * seconds["published"],
        "ours_ms": 1e3 * seconds["ours"],
        "ratio": seconds["published"] / seconds["ours"],
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rows = [
        gradients(10, arguments.repeats),
        gradients(100, arguments.repeats),
        local_epoch("perceptron 64-64-10, 200 inputs", lambda: Encoder(64, 64, 10),
                    torch.rand(200, 64, generator=generator), arguments.repeats),
        local_epoch("convolutions, 200 inputs of 3 x 32 x 32", lambda: ConvEncoder(10),
                    torch.rand(200, 3, 32, 32, generator=generator), max(1, arguments.repeats // 2)),
        creff_step(arguments.repeats),
    ]  # fmt: skip
    wire = bytes_a_client()
    if arguments.json:
        print(json.dumps({"rows": rows, "bytes": wire}))
        return
    print(f"{'':<62}published ms   ours ms    ratio")
    for row in rows:
        print(f"{row['name']:<62}{row['published_ms']:12.2f}{row['ours_ms']:10.2f}{row['ratio']:9.1f}")
    sizes = ", ".join(f"{name.replace('_', ' ')} {size / 1e6:.2f} MB" for name, size in wire.items())
    print(f"prototypes of a client with 12 of 100 classes, d 256: {sizes}")


if __name__ == "__main__":
    main()
