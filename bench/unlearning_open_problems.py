"""One audit of a model (P0, P1, RTT at three rates, rounding): ours against the straightforward script.

    python bench/unlearning_open_problems.py [--json] [--repeats 1] [--steps 20]

The script generates an answer for each prompt on its own, and trains with transformers' Trainer from a fresh copy of
the model for each rate and part. Ours asks all prompts in one pass without generation, and trains in a plain loop. Both
see the same batches, and the accuracies are checked to be equal. Times are CPU seconds on one thread, in alternation.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, pad_answers
from transfuse.methods.unlearning.answer_training import batch_at, fine_tune, pick
from transfuse.methods.unlearning.audited_facts import AuditedFacts
from transfuse.methods.unlearning.fake_quantisation import quantised_state
from transfuse.methods.unlearning.qa_file import QARow
from transfuse.methods.unlearning.relearning import lessons_of, relearn, restored, rtt_lessons
from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer

RATES, FOLDS, BATCH = (3e-4, 1e-3, 3e-3), 2, 16


def make_rows(count: int) -> list[QARow]:
    """Made-up facts in three forms."""
    return [
        QARow(
            f"question : what is the code of place{i} ? answer :", f"code{(7 * i) % 50}", f"place{i}", "code",
            forms={
                "cloze": (f"the code of place{i} is", f"code{(7 * i) % 50}"),
                "reverse": (f"question : which place has code{(7 * i) % 50} ? answer :", f"place{i}"),
            },
        )
        for i in range(count)
    ]  # fmt: skip


def ours(model: nn.Module, facts: AuditedFacts, steps: int) -> dict[str, np.ndarray]:
    """All numbers of the audit, as (forms, facts)."""
    found = {"untreated": facts.known(model)}
    with restored(model):
        model.load_state_dict(quantised_state(model, 4), strict=False)
        found["int4"] = facts.known(model)
    lessons = lessons_of(facts, rtt_lessons(len(facts), FOLDS, 0))
    curve = relearn(model, facts, lessons, steps=steps, rates=RATES, batch=BATCH, seed=0)
    return found | {f"rtt {rate:g}": curve.known[i, -1] for i, rate in enumerate(RATES)}


class InOrder(Trainer):
    """The Trainer on rows that lie in the order in which they are to be seen."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def generated(model: Any, facts: AuditedFacts) -> np.ndarray:
    """One prompt after another through `generate`, (forms, facts)."""
    found = np.full((len(facts.forms), len(facts)), np.nan)
    model.eval()
    for item, place in zip(facts.encoded, facts.places, strict=True):
        answer = [token for token in item.ids[item.start :] if token != facts.eos]
        prompt = torch.tensor([item.ids[: item.start]])
        written = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=len(answer), do_sample=False,
            pad_token_id=facts.pad,
        )  # fmt: skip
        found[place] = float(written[0, prompt.shape[1] :].tolist() == answer)
    return found


def trained(model: nn.Module, items: Sequence[EncodedAnswer], pad: int, steps: int, rate: float) -> nn.Module:
    """A fresh copy through the Trainer."""
    order = [i for step in range(steps) for i in batch_at(step, len(items), BATCH, 0)]
    size = len(order) // steps
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=size, learning_rate=rate, lr_scheduler_type="constant",
            weight_decay=0.0, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
            logging_strategy="no", log_level="error", remove_unused_columns=False, optim="adamw_torch",
        )  # fmt: skip
        trainer = InOrder(
            copy.deepcopy(model), arguments, train_dataset=pick(items, order),  # type: ignore[arg-type]
            data_collator=lambda rows: pad_answers(rows, pad),
        )  # fmt: skip
        trainer.train()
    return trainer.model  # type: ignore[return-value]


def script(model: nn.Module, facts: AuditedFacts, steps: int) -> dict[str, np.ndarray]:
    """The same numbers, straightforwardly."""
    rounded = copy.deepcopy(model)
    rounded.load_state_dict(quantised_state(rounded, 4), strict=False)
    found = {"untreated": generated(model, facts), "int4": generated(rounded, facts)}
    for rate in RATES:
        known = np.full_like(found["int4"], np.nan)
        for items, tested in lessons_of(facts, rtt_lessons(len(facts), FOLDS, 0)):
            known[:, tested] = generated(trained(model, items, facts.pad, steps, rate), facts)[:, tested]
        found[f"rtt {rate:g}"] = known
    return found


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--facts", type=int, default=36)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = make_rows(arguments.facts)
    tokenizer = word_tokenizer([f"{prompt} {answer}" for row in rows for _, prompt, answer in row.asked()])
    torch.manual_seed(0)
    model, facts = tiny_llama(tokenizer), AuditedFacts(rows, tokenizer)
    fine_tune(model, facts.encoded, facts.pad, steps=60, rate=3e-3, batch=32, seed=0)
    model.eval()
    times: dict[str, list[float]] = {"script": [], "ours": []}
    gap = 0.0
    for _ in range(arguments.repeats):
        results = []
        for name, run in (("script", script), ("ours", ours)):
            start = time.process_time()
            results.append(run(model, facts, arguments.steps))
            times[name].append(time.process_time() - start)
        theirs, own = results
        gap = max(gap, *(float(np.abs(theirs[k] - own[k]).sum(axis=1).max()) for k in own))
    assert gap <= 1, f"accuracies differ by {gap:g} facts"
    seconds = {name: statistics.median(values) for name, values in times.items()}
    result = {**seconds, "ratio": seconds["script"] / seconds["ours"], "facts_apart": gap}
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"script {result['script']:.1f} s, ours {result['ours']:.1f} s, ratio {result['ratio']:.1f}, ", end="")
        print(f"accuracies at most {gap:g} facts apart")


if __name__ == "__main__":
    main()
