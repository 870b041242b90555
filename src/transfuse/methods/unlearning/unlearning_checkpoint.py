"""From a checkpoint and two files of questions to a checkpoint that forgot, with a model card that says how well."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from transfuse.atomic_folder import new_folder
from transfuse.audit import AuditReport
from transfuse.errors import UserError
from transfuse.hosts.causal_model import Device, load_causal_model
from transfuse.methods.unlearning.answer_scores import score_answers
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, encode_answer
from transfuse.methods.unlearning.qa_file import QARow, read_qa
from transfuse.methods.unlearning.unlearning_methods import make_config, unlearn

AS_USED = ("reinforced_contrast", "icul")  # these act while a model is used; there is no checkpoint to write


@dataclass(frozen=True)
class Sets:
    """The questions to forget and to keep, as text and as tokens; paraphrases of a question stand beside it."""

    forget_rows: Sequence[QARow]
    retain_rows: Sequence[QARow]
    forget: list[EncodedAnswer]
    retain: list[EncodedAnswer]


def read_sets(tokenizer: Any, forget: Path | str, retain: Path | str, *, chat: bool = False) -> Sets:
    """Read and tokenise both files.

    Raises:
        UserError: a file is missing or wrong, or both hold the same question with the same answer.
    """
    gone, kept = read_qa(forget), read_qa(retain)
    both = {(row.prompt, row.answer) for row in gone} & {(row.prompt, row.answer) for row in kept}
    if both:
        prompt, answer = sorted(both)[0]
        raise UserError(
            f"{len(both)} questions both in {str(forget)!r} and in {str(retain)!r}, as {prompt!r} {answer!r}",
            "what is to be forgotten not among what is to be kept",
        )
    return Sets(gone, kept, _encoded(tokenizer, gone, chat), _encoded(tokenizer, kept, chat))


def _encoded(tokenizer: Any, rows: Sequence[QARow], chat: bool) -> list[EncodedAnswer]:
    return [
        encode_answer(tokenizer, prompt, row.answer, chat=chat)
        for row in rows
        for prompt in (row.prompt, *row.paraphrases)
    ]


@dataclass
class Progress:
    """Says on stderr how far the forgetting is, and ends it where little enough is left.

    Attributes:
        encoded: what is to be forgotten.
        pad: id to pad with.
        eos: the end-of-sequence token.
        until: share of these answers that may still be written; None goes on to the last step.
        quiet: whether to say nothing.
    """

    encoded: Sequence[EncodedAnswer]
    pad: int
    eos: int | None
    until: float | None
    quiet: bool = False
    known: list[float] = field(default_factory=list)
    _said: float = 0.0

    def __call__(self, step: int, model: Any) -> bool:
        """Called after each step."""
        due = time.monotonic() - self._said > 2.0
        if self.until is None and not due:
            return False
        self.known.append(self.share(model))
        if not self.quiet and due:
            sys.stderr.write(f"step {step}: {self.known[-1]:.0%} of the answers to forget are left\n")
            sys.stderr.flush()
            self._said = time.monotonic()
        return self.until is not None and self.known[-1] <= self.until

    def share(self, model: Any) -> float:
        """Share of the answers that greedy decoding would write."""
        return float(score_answers(model, self.encoded, self.pad, eos=self.eos).exact().mean())


def unlearn_checkpoint(
    model: str, forget: Path, retain: Path, out: Path, *, method: str, options: Mapping[str, Any], until: float | None,
    seed: int, device: Device, chat: bool, audit: bool, gold: str | None, quiet: bool = False,
) -> Path:  # fmt: skip
    """Unlearn a checkpoint; see `unlearning_methods.apply`."""
    if method in AS_USED:
        raise UserError(
            f"method {method!r} writes no checkpoint, it acts while the model is used",
            fix=f"use it from Python: transfuse.methods.unlearning.{'in_context' if method == 'icul' else method}",
        )
    if method == "kga":
        raise UserError(
            "method 'kga' needs unseen answers besides", fix="use it from Python: transfuse.methods.unlearning.kga"
        )
    if out.exists():  # before the work, not after it
        raise UserError(f"--out {str(out)!r} is there already", "a new folder")
    if until is not None and not 0.0 <= until <= 1.0:
        raise UserError(f"until {until:g}", "a share of 0 to 1")
    config = make_config(method, options)
    loaded, tokenizer = load_causal_model(model, device)
    sets = read_sets(tokenizer, forget, retain, chat=chat)
    watch = Progress(sets.forget, tokenizer.pad_token_id, tokenizer.eos_token_id, until, quiet)
    before = figures(loaded, tokenizer, sets)
    result = unlearn(method, loaded, tokenizer, sets.forget, sets.retain, config, seed=seed, on_step=watch)
    if hasattr(result, "merge_and_unload"):
        result = result.merge_and_unload()  # type: ignore[operator]
    after = figures(result, tokenizer, sets)
    left = after["answers to forget that greedy decoding writes"]
    if not quiet and until is not None and left > until:
        sys.stderr.write(
            f"warning: {left:.0%} of the answers to forget are left, not {until:.0%}; "
            "try a higher --rate or more --steps\n"
        )
    with new_folder(out) as folder:
        result.save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)
        report = _audited(folder, model, forget, retain, gold, seed, device, chat) if audit else None
        card = model_card(model, method, config, seed, before, after, report)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return out


def figures(model: Any, tokenizer: Any, sets: Sets) -> dict[str, float]:
    """What a card shows of a model before and after: from one pass over both sets."""
    scores = score_answers(
        model, [*sets.forget, *sets.retain], tokenizer.pad_token_id, eos=tokenizer.eos_token_id
    )  # fmt: skip
    count = len(sets.forget)
    exact, probability = scores.exact(), scores.probability()
    return {
        "answers to forget that greedy decoding writes": float(exact[:count].mean()),
        "mean probability a token of answers to forget": float(np.mean(probability[:count])),
        "answers to keep that greedy decoding writes": float(exact[count:].mean()),
        "mean probability a token of answers to keep": float(np.mean(probability[count:])),
    }


def _audited(
    folder: Path, original: str, forget: Path, retain: Path, gold: str | None, seed: int, device: Device, chat: bool
) -> AuditReport:
    from transfuse.methods.unlearning.unlearning_open_problems import audit

    return audit(
        model=str(folder), forget=forget, retain=retain, original=original, gold=gold, seed=seed, device=device,
        chat=chat,
    )  # fmt: skip


def model_card(
    model: str, method: str, config: Any, seed: int, before: Mapping[str, float], after: Mapping[str, float],
    report: AuditReport | None,
) -> str:  # fmt: skip
    """A model card in Markdown, as hubs read it: what was done, what it changed, and what the audit found."""
    lines = [*_front_matter(model), "", f"# {Path(model).name}, unlearned by {method}", ""]
    lines += [
        f"Made by `transfuse apply {method}` from `{Path(model).name}`, seed {seed}, with",
        "",
        "```json",
        json.dumps(vars(config), indent=2, default=str),
        "```",
        "",
        "| | before | after |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {before[name]:.3f} | {after[name]:.3f} |" for name in before]
    lines += ["", "Answers that are no longer written may still be there: see the audit.", "", "## Audit", ""]
    return "\n".join(lines + list(_audit_lines(report))) + "\n"


def _front_matter(model: str) -> list[str]:
    """A hub's name of the base goes in; a folder's path is nobody else's business."""
    base = [] if Path(model).exists() else [f"base_model: {json.dumps(model)}"]
    return ["---", "library_name: transformers", "tags: [unlearning, transfuse]", *base, "---"]


def _audit_lines(report: AuditReport | None) -> Iterator[str]:
    if report is None:
        yield "Not audited: `transfuse audit unlearning MODEL --forget ... --retain ...`."
        return
    yield "| verdict | what | value | threshold |"
    yield "|---|---|---|---|"
    for finding in report.findings:
        limit = "" if finding.threshold is None else f"{finding.threshold:g}"
        between = f" [{finding.interval[0]:.3g}, {finding.interval[1]:.3g}]" if finding.interval else ""
        yield f"| {finding.verdict} | {finding.name} | {finding.value:.3g}{between} | {limit} |"
    yield ""
    rate = "not measured" if report.false_alarm_rate is None else f"{report.false_alarm_rate:.1%}"
    yield f"False-alarm rate: {rate} ({report.calibration})."
