"""FedKA's parts against the published notebook's way: the discrepancy, the vote, and a whole round.

    python bench/fedka.py [--json] [--repeats 7]

Equal outputs are checked to 1e-5. Times are medians of alternating repetitions in one process; they depend on the
machine, their ratios hardly.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from transfuse.methods.federated.federated_voting import majority_vote, predict_each
from transfuse.methods.federated.fedka import Config, round_ramp
from transfuse.methods.federated.fedka_client import DomainHead, LocalTraining, Workspace, reverse_gradient
from transfuse.methods.federated.kernel_matching import mk_mmd
from transfuse.methods.federated.split_model import SplitModel, evaluating, rows_in_batches

SIZE, CLASSES = 800, 10


class Net(nn.Module):
    """800-128-64 features and a linear head, the study's model for 800 visual words."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Linear(SIZE, 128), nn.LayerNorm(128), nn.ReLU(), nn.Linear(128, 64), nn.LayerNorm(64), nn.ReLU()
        )
        self.head = nn.Linear(64, CLASSES)


def medians(repeats: int, **candidates: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each candidate, in alternation after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, function in candidates.items():
            start = time.perf_counter()
            function()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def expanded_mmd(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The published form: (2n, 2n, d) differences, five exponentials, four blocks."""
    both = torch.cat((source, target))
    n = len(both)
    left = both[None].expand(n, n, both.shape[1])
    right = both[:, None].expand(n, n, both.shape[1])
    distances = ((left - right) ** 2).sum(2)
    width = distances.detach().sum() / (n * n - n) / 2**2
    kernels = sum(torch.exp(-distances / (width * 2**j)) for j in range(5))
    h = len(source)
    return torch.mean(kernels[:h, :h] + kernels[h:, h:] - kernels[:h, h:] - kernels[h:, :h])


def discrepancy(n: int, repeats: int) -> dict[str, float]:
    """Forward and backward of one batch of n against n embeddings."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(n, SIZE, generator=generator) + 0.1
    source = torch.randn(n, SIZE, generator=generator).requires_grad_()

    def run(form: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        source.grad = None
        value = form(source, target)
        value.backward()
        return value.detach(), source.grad.clone()

    for ours, theirs in zip(run(mk_mmd), run(expanded_mmd), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    return medians(repeats, ours=lambda: run(mk_mmd), published=lambda: run(expanded_mmd))


def voting(repeats: int, samples: int = 2048, clients: int = 4) -> dict[str, float]:
    """Pseudo-labels of all samples; where two classes tie the notebook's choice is arbitrary and not compared."""
    torch.manual_seed(0)
    model, nets = SplitModel(Net()), [SplitModel(Net()).eval() for _ in range(clients)]
    for net in nets:  # copies that have drifted apart, as after a round
        net.load_state_dict({k: v + 0.01 * torch.randn_like(v) for k, v in nets[0].state_dict().items()})
    arrays = [net.arrays() for net in nets]
    x = torch.randn(samples, SIZE)

    def published() -> list[int]:
        labels = []
        with torch.no_grad():
            for batch in x.split(16):
                votes = [net(batch).argmax(1) for net in nets]
                pairs = zip(*[list(vote) for vote in votes], strict=True)
                labels.extend(int(max(set(ballots), key=ballots.count)) for ballots in pairs)
        return labels

    ours = majority_vote(predict_each(model, arrays, x))
    with torch.no_grad():
        ballots = torch.stack([net(x).argmax(1) for net in nets])
    counts = F.one_hot(ballots, CLASSES).sum(0).sort(dim=1, descending=True).values
    clear = counts[:, 0] > counts[:, 1]
    assert torch.equal(ours.labels[clear], ballots.mode(dim=0).values[clear])  # the notebook's rule, without ties
    timed = medians(repeats, ours=lambda: majority_vote(predict_each(model, arrays, x)), published=published)
    return {**timed, "clear": float(clear.float().mean())}


def one_round(repeats: int) -> dict[str, float]:
    """Blocks A and B of one client, 32 + 32 batches of 16: the notebook's loop and ours, equal weights afterwards.

    Both accumulate the matching loss in full and start from the same weights; the notebook embeds the target under the
    global model anew for each client, ours reads what the server computed once.
    """
    config = Config(share="raw", rounds=10)
    torch.manual_seed(0)
    start, domain = Net(), DomainHead(64, config.domain_hidden)
    x, y, target = torch.randn(512, SIZE), torch.randint(CLASSES, (512,)), torch.randn(512, SIZE) + 0.1
    anchor = SplitModel(start)
    with evaluating(anchor):
        embeddings = anchor.embed(target)
    state = {key: value.clone() for key, value in start.state_dict().items()}
    heads = {key: value.clone() for key, value in domain.state_dict().items()}

    def ours() -> dict[str, torch.Tensor]:
        net = Net()
        net.load_state_dict(state)
        training = LocalTraining(SplitModel(net), config, 64)
        training.domain.load_state_dict(heads)
        training.round(x, y, Workspace(embeddings, target), 5, torch.Generator().manual_seed(0))
        return net.state_dict()

    def published() -> dict[str, torch.Tensor]:
        net, own, fixed = Net(), DomainHead(64, config.domain_hidden), Net()
        net.load_state_dict(state)
        fixed.load_state_dict(state)
        own.load_state_dict(heads)
        optimiser = torch.optim.Adam([*net.parameters(), *own.parameters()], lr=config.rate)
        generator, alphas = torch.Generator().manual_seed(0), round_ramp(5, 32, 10)
        first, second = (rows_in_batches(512, 32, 16, generator) for _ in range(2))
        for i, alpha in enumerate(alphas):
            optimiser.zero_grad()
            es, et = net.features(x[first[i]]), net.features(target[second[i]])
            loss = F.nll_loss(net.head(es).log_softmax(1), y[first[i]])
            for e, label in ((es, 0), (et, 1)):
                guess = own.layers(reverse_gradient(e, alpha)).log_softmax(1)
                loss = loss + F.nll_loss(guess, torch.full((16,), label))
            loss.backward()
            optimiser.step()
        first, second = (rows_in_batches(512, 32, 16, generator) for _ in range(2))
        total: torch.Tensor | float = 0.0
        for i, alpha in enumerate(alphas):
            total = total + alpha * expanded_mmd(net.features(x[first[i]]), fixed.features(target[second[i]]))
            if (i + 1) % 8 == 0:
                optimiser.zero_grad()
                (total / 8).backward()  # type: ignore[union-attr]
                optimiser.step()
                total = 0.0
        return net.state_dict()

    theirs = published()
    for key, value in ours().items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=1e-5)  # after 36 steps of Adam
    return medians(repeats, ours=ours, published=published)


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {f"MMD forward and backward, n = {n}, d = {SIZE}": discrepancy(n, arguments.repeats) for n in (16, 64, 256)}
    rows["vote, 2048 samples, 4 clients"] = voting(arguments.repeats)
    rows["blocks A and B of a client, 800 features"] = one_round(arguments.repeats)
    if arguments.json:
        print(json.dumps({name: {**row, "ratio": row["published"] / row["ours"]} for name, row in rows.items()}))
        return
    print(f"{'what':<45}{'ours ms':>9}{'published ms':>14}{'published/ours':>16}")
    for name, row in rows.items():
        ratio = row["published"] / row["ours"]
        print(f"{name:<45}{1e3 * row['ours']:9.2f}{1e3 * row['published']:14.2f}{ratio:16.1f}")


if __name__ == "__main__":
    main()
