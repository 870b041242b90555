"""The ladder with contexts computed once against a loop that generates an answer to each prompt, and a closure filter
that follows a conversation against one that closes it anew at each message.

    python bench/ununlearning.py [--json] [--repeats 3]

Both ways give the same answers and the same scores, which is checked. Times are medians of the CPU time of alternating
repetitions on one thread; they depend on the machine, their ratios hardly.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from transfuse.data.attribute_table import AttributeTable
from transfuse.methods.unlearning.concepts import Concepts
from transfuse.methods.unlearning.content_filters import ClosureFilter
from transfuse.methods.unlearning.ununlearning import Config, ContextLadder
from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer


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


def things(count: int, axioms: int, theorems: int) -> AttributeTable:
    """Things of random axioms, and rules of two axioms each."""
    rng = np.random.default_rng(0)
    names = tuple(f"axiom{i}" for i in range(axioms))
    objects = {f"thing{i}": frozenset(a for a in names if rng.random() < 0.5) for i in range(count)}
    rules = tuple((f"theorem{i}", tuple(map(str, rng.choice(names, 2, replace=False)))) for i in range(theorems))
    return AttributeTable(objects, names, rules, {})


def ladder(repeats: int, width: int, layers: int) -> dict[str, Any]:
    """All levels about four things, eight questions a context."""
    concepts = Concepts(things(12, 16, 8), tuple(f"thing{i}" for i in range(4)))
    attack = ContextLadder(concepts, Config(draws=1))
    texts = [message["content"] for conversation in attack.conversations for message in conversation]
    tokenizer = word_tokenizer([*texts, *attack.wording.answers])
    torch.manual_seed(0)
    model: Any = tiny_llama(tokenizer, width, layers, positions=512).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    allowed = tokenizer.convert_tokens_to_ids(list(attack.wording.answers))

    def generate(messages: list[dict[str, str]]) -> str:
        inputs = tokenizer(" ".join(m["content"] for m in messages), return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():  # one token is written, the least that a loop of this kind can
            written = model.generate(
                **inputs, max_new_tokens=1, do_sample=False, prefix_allowed_tokens_fn=lambda batch, ids: allowed
            )
        return str(tokenizer.decode(written[0, -1:]))

    def ours(share: bool) -> Any:
        return attack.ask_model(model, tokenizer, share=share).said

    loop = attack.ask_all(generate).said
    assert (loop == ours(True)).all() and (loop == ours(False)).all(), "the answers differ"
    seconds = medians(
        repeats, loop=lambda: attack.ask_all(generate), whole=lambda: ours(False), ours=lambda: ours(True)
    )
    return {
        "name": f"ladder, {len(attack.asked)} questions, {layers} layers of width {width}",
        **{f"{name}_ms": 1e3 * value for name, value in seconds.items()},
        "ratio": seconds["loop"] / seconds["ours"],
        "ratio_batched": seconds["whole"] / seconds["ours"],
    }


def closure(repeats: int, turns: int) -> dict[str, Any]:
    """A conversation of so many messages, two facts each, under 200 rules."""
    table = things(60, 100, 200)
    content_filter = ClosureFilter(Concepts(table, ("thing0",)))
    rng = np.random.default_rng(1)
    said = [f"it is {a} and {b}" for a, b in rng.choice(table.axioms, (turns, 2))]

    def anew() -> list[float]:
        found = []
        for turn in range(turns):
            facts = [atom for text in said[: turn + 1] for _, atom in content_filter.extract(text)]
            state = content_filter.rules.start()
            state.add(*facts)
            found.append(content_filter.completeness(state.known))
        return found

    def ours() -> list[float]:
        watch = content_filter.watch()
        return [watch.hear(text) for text in said]

    assert anew() == ours(), "the scores differ"
    seconds = medians(repeats, loop=anew, ours=ours)
    return {
        "name": f"closure filter, {turns} messages",
        "loop_ms": 1e3 * seconds["loop"],
        "ours_ms": 1e3 * seconds["ours"],
        "ratio": seconds["loop"] / seconds["ours"],
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        ladder(arguments.repeats, 64, 3),
        ladder(arguments.repeats, 256, 6),
        *(closure(arguments.repeats, turns) for turns in (10, 40, 160)),
    ]
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'':<52}   loop ms    ours ms   ratio   over batches without sharing")
    for row in rows:
        batched = f"{row['ratio_batched']:8.1f}" if "ratio_batched" in row else ""
        print(f"{row['name']:<52}{row['loop_ms']:10.1f}{row['ours_ms']:11.2f}{row['ratio']:8.1f}{batched}")


if __name__ == "__main__":
    main()
