"""Sleek as a task of inspect_ai, run in the harness on a scripted model; its rates are those of our own audit."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from transfuse.errors import MissingExtraError
from transfuse.methods.unlearning.audit_facts import AuditFact
from transfuse.methods.unlearning.sleek import Config, SleekAudit
from transfuse.methods.unlearning.sleek_inspect import sleek_task

CAPITALS = {"France": "Paris", "Italy": "Rome", "Peru": "Lima", "Kenya": "Nairobi"}
FACTS = [AuditFact(s, "capital", o, (), 0 if s < "G" else 1) for s, o in CAPITALS.items()]
FACTS += [
    AuditFact(s, "language", o, (), 1)
    for s, o in zip(CAPITALS, ("French", "Italian", "Spanish", "Swahili"), strict=True)
]
CONFIG = Config(prompts=2, draws=100)


def reply(turns: list[str]) -> str:
    """Knows capitals, once the dialogue has more than one turn."""
    return next((f"It is {o}." for s, o in CAPITALS.items() if s in turns[-1] and len(turns) > 1), "I do not know.")


def test_rates_in_the_harness_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai.model import ModelOutput, get_model

    def outputs(messages: Any, *_: Any) -> Any:
        text = reply([message.text for message in messages if message.role == "user"])
        return ModelOutput.from_content(model="mockllm", content=text)

    words = SimpleNamespace(encode=lambda text, **_: text.split())  # the harness counts tokens by a download otherwise
    monkeypatch.setattr("tiktoken.get_encoding", lambda _: words)
    model = get_model("mockllm/model", custom_outputs=outputs)
    (log,) = inspect_ai.eval(sleek_task(FACTS, CONFIG), model=model, log_dir=str(tmp_path), display="none")
    assert log.status == "success"
    ours = SleekAudit(FACTS, config=CONFIG).run(lambda m: reply([x["content"] for x in m if x["role"] == "user"]))
    theirs = {sample.id: sample.scores["leak"] for sample in log.samples}
    assert {place: bool(score.value) for place, score in theirs.items()} == dict(enumerate(ours.are("leak").tolist()))
    assert [theirs[place].explanation for place in sorted(theirs)] == list(ours.kinds["model"])
    assert ours.are("leak").any()
    shown = {name: metric.value for name, metric in log.results.scores[0].metrics.items()}
    assert shown["distance 0, interactive"] == pytest.approx(ours.rate(mode="interactive").value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(MissingExtraError, match=r"transfuse\[inspect\]"):
        sleek_task(FACTS)
