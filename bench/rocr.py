"""ROCR's edit against the published way: the update of one layer, and whole edits with what they read of the model.

    python bench/rocr.py [--json] [--repeats 5] [--large]

The published way is written here as its authors' code works: P as a dense matrix, a d_ff x d_ff solve in float32, and
the whole model with its head run for every reading, one prompt at a time. Outputs are checked: both against a solve in
float64 (--large adds d_ff 14336, Llama-3-8B's, with a random projector of rank 1000 and without that check). Times are
medians of the CPU time of alternating repetitions on one thread; they depend on the machine, their ratios hardly.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from transfuse.methods.unlearning.decoder_blocks import Block, decoder_blocks
from transfuse.methods.unlearning.rank_one_redirection import redirect_keys
from transfuse.methods.unlearning.rocr import ConceptRedirector, Config
from transfuse.nets.tiny_llama import word_tokenizer

TEXTS = ("the sea is blue and the sky is blue", "ann lee was born in leeds", "dora was born in york",
         "tell me about it now please", "who is that man and what is that box")  # fmt: skip
CONTEXTS = ("{s}", "tell me about {s}", "who is {s}", "what is {s}", "please tell me about {s}", "now {s}")


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


def published_update(P: Tensor, key: Tensor, residual: Tensor, ridge: float) -> Tensor:
    """One layer's change as published, (d, d_ff)."""
    system = P @ (key @ key.T) + ridge * torch.eye(len(P), dtype=P.dtype)
    return torch.linalg.solve(system, P @ key @ residual.T).T


def update(d_ff: int, d: int, used: int, repeats: int, check: bool = True) -> dict[str, Any]:
    """The change of one layer from the same key, residual and projector."""
    generator = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(d_ff, used, generator=generator))[0]
    P = torch.eye(d_ff) - U @ U.T
    key, residual = torch.randn(d_ff, 1, generator=generator), torch.randn(d, 1, generator=generator)
    differences = {}
    if check:
        exact = published_update(P.double(), key.double(), residual.double(), 1.0)
        for name, change in (
            ("published", published_update(P, key, residual, 1.0)),
            ("ours", redirect_keys(U, key, residual, 1.0).delta()),
        ):
            differences[name] = float((change.double() - exact).abs().max() / exact.abs().max())
        assert differences["ours"] < 1e-3, differences
    seconds = medians(
        repeats,
        published=lambda: published_update(P, key, residual, 1.0),
        ours=lambda: redirect_keys(U, key, residual, 1.0).delta(),
    )
    return _row(f"update, d_ff {d_ff}, d {d}", seconds, differences)


def published_edit(model: Any, tokenizer: Any, blocks: list[Block], P: list[Tensor], ridge: float) -> None:
    """A whole edit as published: every reading runs the whole model on one prompt."""

    def at_name(name: str, block: Block, inside: bool) -> Tensor:
        found = []
        for context in CONTEXTS:
            seen: list[Tensor] = []
            ids = torch.tensor([tokenizer(context.format(s=name))["input_ids"]])
            handle = (
                block.down.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0][0, -1]))
                if inside
                else block.module.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out[0, -1]))
            )
            model(ids)
            handle.remove()
            found.append(seen[0])
        return torch.stack(found).mean(0)[:, None]

    target = at_name("dora", blocks[-1], False)
    for i, (block, projector) in enumerate(zip(blocks, P, strict=True)):
        key, now = at_name("ann lee", block, True), at_name("ann lee", blocks[-1], False)
        change = published_update(projector, key, (target - now) / (len(blocks) - i), ridge)
        block.weight().add_(change)
    for block in blocks:
        at_name("ann lee", block, True)  # keys to protect from later edits


@torch.no_grad()
def whole_edit(repeats: int) -> dict[str, Any]:
    """One name in a GPT-2 small of random weights, its vocabulary included."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = word_tokenizer(TEXTS)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    config = Config(layers=(1, 2, 3), contexts=CONTEXTS, ridge=0.1, null_share=0.0, null_least=0.5)
    redirector = ConceptRedirector(model, tokenizer, config).fit_nullspace(TEXTS, without=["ann lee"])
    P = [torch.eye(len(U)) - U @ U.T for U in redirector.used]
    blocks = [decoder_blocks(model)[index] for index in (1, 2, 3)]
    before = [block.weight().clone() for block in blocks]

    def changes(edit: Callable[[], object]) -> list[Tensor]:
        edit()
        found = [block.weight() - start for block, start in zip(blocks, before, strict=True)]
        for block, start in zip(blocks, before, strict=True):
            block.weight().copy_(start)
        return found

    def ours() -> None:
        redirector.edits.clear()
        redirector.redirect("ann lee", "dora")

    def published() -> None:
        published_edit(model, tokenizer, blocks, P, 0.1)

    found = zip(changes(ours), changes(published), strict=True)
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in found)
    assert difference < 1e-2, difference  # the published solve's own error in float32 is 2e-3
    seconds = medians(repeats, published=lambda: changes(published), ours=lambda: changes(ours))
    return _row("whole edit, three layers, GPT-2 small", seconds, {"ours": difference})


def _row(name: str, seconds: dict[str, float], differences: dict[str, float]) -> dict[str, Any]:
    return {
        "name": name,
        "published_ms": 1e3 * seconds["published"],
        "ours_ms": 1e3 * seconds["ours"],
        "ratio": seconds["published"] / seconds["ours"],
        "relative_difference": copy.copy(differences),
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # random weights: every key is a common one
    rows = [
        update(512, 768, 400, arguments.repeats),
        update(3072, 768, 1500, arguments.repeats),
        *([update(14336, 4096, 1000, 1, check=False)] if arguments.large else []),
        whole_edit(arguments.repeats),
    ]
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'':<42}published ms   ours ms    ratio   largest difference, relative")
    for row in rows:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in row["relative_difference"].items())
        print(f"{row['name']:<42}{row['published_ms']:12.2f}{row['ours_ms']:10.2f}{row['ratio']:9.1f}   {differences}")


if __name__ == "__main__":
    main()
