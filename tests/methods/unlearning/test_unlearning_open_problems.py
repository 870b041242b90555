"""The audit of removal on models: probes against the same by hand, what is put back, reports, files and wrong input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.unlearning.tiny_world import ANSWERS, QUESTIONS, llama, tokenizer
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_training import fine_tune
from transfuse.methods.unlearning.audited_facts import AuditedFacts
from transfuse.methods.unlearning.latent_probes import last_states, with_hidden, without_direction
from transfuse.methods.unlearning.qa_file import QARow, write_qa
from transfuse.methods.unlearning.relearning import relearn, rtt_lessons
from transfuse.methods.unlearning.removal_probes import PROBES, Case, measure, wrapped_prompts
from transfuse.methods.unlearning.removal_verdicts import compare_all, membership, neighbours, overall
from transfuse.methods.unlearning.unlearning_open_problems import Config, audit, audit_models, make_case

SMALL = Config(
    steps=3, other_steps=3, rates=(3e-3, 1e-2), other_rates=(1e-2,), batch=4, draws=200, layers=2, benign=3,
    wrappers=("{prompt}", "{examples}{prompt}", "{hint}{prompt}"), example="{prompt} {answer} . ",
)  # fmt: skip


def rows(first: int, last: int) -> list[QARow]:
    """Facts about thing0 ... , with a form of another kind, and two relations whose answers recur."""
    return [
        QARow(QUESTIONS[i], ANSWERS[i], f"thing{i}", "kind", forms={"short": (f"thing{i} is", ANSWERS[i])})
        for i in range(first, last)
    ]


@pytest.fixture(scope="module")
def world() -> dict[str, Any]:
    """An original that knows twenty facts, a gold model that knows the last ten, and one that lost the first ten."""
    tok = tokenizer()
    forget, keep = rows(0, 8), rows(10, 20)
    facts, kept = AuditedFacts(forget, tok), AuditedFacts(keep, tok)
    original, gold = llama(tok, 1), llama(tok, 2)
    everything = facts.encoded + kept.encoded
    fine_tune(original, everything, tok.pad_token_id, steps=120, rate=5e-3, batch=16, seed=0)
    fine_tune(gold, kept.encoded, tok.pad_token_id, steps=60, rate=5e-3, batch=16, seed=0)
    models = {"original": original.eval(), "gold": gold.eval()}
    return {**models, "tok": tok, "forget": forget, "keep": keep, "holdout": rows(8, 10)}


def a_case(world: dict[str, Any], original: bool = True) -> Case:
    benign = AuditedFacts(world["holdout"], world["tok"]).questions()
    return make_case(
        world["tok"], world["forget"], world["keep"], holdout=world["holdout"], benign=benign,
        original=world["original"] if original else None,
    )  # fmt: skip


def same_weights(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_degenerate_setting_equals_baseline(world: dict[str, Any]) -> None:
    """The gold model audited against itself recovers nothing, and is never called suppressed."""
    case = a_case(world)
    gold, original = measure(world["gold"], case, SMALL), measure(world["original"], case, SMALL, reference=True)
    results = compare_all(gold, gold, original, case, draws=200)
    assert set(results) >= {"forms", "prompts", "sampling", "relearn_rtt", "quantisation", "ablation", "logit_lens"}
    assert all(result.found.value == 0.0 for result in results.values())
    assert overall(results) in ("PASS", "INCONCLUSIVE")
    trace = membership(gold, gold)
    assert trace is not None and trace.distance.value == 0.0


def test_the_original_as_unlearned_is_suppressed_everywhere(world: dict[str, Any]) -> None:
    case = a_case(world)
    original, gold = measure(world["original"], case, SMALL), measure(world["gold"], case, SMALL)
    assert original.base.mean() == 1.0
    results = compare_all(original, gold, original, case, draws=200)
    assert results["forms"].found.value == pytest.approx(1.0) and overall(results) == "SUPPRESSED"
    assert results["quantisation"].found.value > 0.5
    found = neighbours(original, original, case, draws=100)
    assert found.effects.cost == 0.0 and found.nearest[0] <= 0.0 <= found.nearest[1]


def test_relearning_is_the_plain_loop_and_puts_weights_back(world: dict[str, Any]) -> None:
    facts = AuditedFacts(world["forget"], world["tok"])
    before, model = copied(world["gold"]), world["gold"]
    lessons = [(pick, lesson.tested) for lesson in rtt_lessons(8, 2, 0)
               for pick in [[item for i in lesson.facts for item in facts.taught(i)]]]  # fmt: skip
    found = relearn(model, facts, lessons, steps=5, rates=(1e-3, 1e-2), batch=4, seed=3)
    assert same_weights(model, before) and found.steps == (0, 1, 2, 5)
    for items, tested in lessons:
        for index, rate in enumerate(found.rates):
            other = llama(world["tok"])
            other.load_state_dict(before)
            fine_tune(other, items, facts.pad, steps=5, rate=rate, batch=4, seed=3)
            assert np.array_equal(facts.known(other)[:, tested], found.known[index, -1][:, tested])
    assert not np.isnan(found.known[:, -1]).any() and np.isnan(found.known[:, 1, 1:]).all()


def test_every_probe_puts_weights_back_and_runs_twice_alike(world: dict[str, Any]) -> None:
    case, before = a_case(world), copied(world["original"])
    first, again = (measure(world["original"], case, SMALL) for _ in range(2))
    assert same_weights(world["original"], before) and not world["original"].training
    assert set(first.arms) | set(first.skipped) == set(PROBES)
    for name, arms in first.arms.items():
        for treatment, known in arms.known.items():
            assert np.array_equal(known, again.arms[name].known[treatment], equal_nan=True)


def test_prompts_are_filled_and_any_of_them_counts(world: dict[str, Any]) -> None:
    case = a_case(world)
    asked = list(wrapped_prompts(case, SMALL))
    shots = "".join(f"{QUESTIONS[i]} {ANSWERS[i]} . " for i in range(10, 13))
    assert (0, shots + QUESTIONS[0]) in asked and len(asked) == 16  # no hint: nothing kept about the same subjects
    known = measure(world["original"], case, dataclasses.replace(SMALL, probes=("prompts",))).arms["prompts"].known
    assert (known["any"][0] >= case.facts.known(world["original"])[0]).all()


def test_what_a_probe_needs_and_lacks_is_said(world: dict[str, Any]) -> None:
    bare = [QARow(row.prompt, row.answer) for row in world["forget"]]
    report = audit_models(
        None, world["gold"], tokenizer=world["tok"], forget=bare, retain=world["keep"],
        config=dataclasses.replace(SMALL, probes=("forms", "two_hop", "ablation", "update", "sampling")),
    )  # fmt: skip
    skipped = report.environment["skipped"]
    assert skipped["forms"] == 'skipped: no "forms" in the file of facts to forget'
    assert "original" in skipped["ablation"] and "original" in skipped["update"] and "two_hop" in skipped["two_hop"]
    assert report.false_alarm_rate is None and "no gold" in report.calibration
    (sampling,) = (f for f in report.findings if f.name == "samples")
    assert "(no gold)" in sampling.meaning


def test_a_model_that_lost_everything_is_broken_not_safe(world: dict[str, Any]) -> None:
    report = audit_models(
        world["original"], llama(world["tok"], 9), world["gold"], tokenizer=world["tok"], forget=world["forget"],
        retain=world["keep"], config=dataclasses.replace(SMALL, probes=("forms", "sampling")),
    )  # fmt: skip
    assert report.exit_code == 1 and report.findings[0].meaning.startswith("BROKEN")
    assert {f.name: f.verdict for f in report.findings}["utility kept"] == "finding"
    json.loads(report.to_json())


def test_one_direction_is_projected_out_behind_every_block(world: dict[str, Any]) -> None:
    """Against the same done with tuples and tensors by hand."""
    model, facts = world["original"], AuditedFacts(world["forget"], world["tok"])
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    with without_direction(model, direction):
        states = last_states(model, facts.questions(), facts.pad)
    along = states @ (direction / direction.norm())
    # hooks run in order: the one that reads comes after the one that projects
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-4, rtol=0)
    hidden = torch.zeros(2, 3, 4)
    assert with_hidden(hidden + 1, hidden) is hidden
    assert with_hidden((hidden + 1, "cache"), hidden) == (hidden, "cache")
    assert not torch.allclose(last_states(model, facts.questions(), facts.pad), states)  # the hooks are gone


def test_device_and_dtype_follow_inputs(world: dict[str, Any]) -> None:
    case = a_case(world, original=False)
    model = llama(world["tok"], 3).to(torch.bfloat16)
    done = measure(
        model, case, dataclasses.replace(SMALL, probes=("quantisation", "weights", "logit_lens", "sampling"))
    )
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    assert done.base.dtype == np.float64
    if torch.cuda.is_available():
        found = measure(llama(world["tok"], 3).cuda(), case, SMALL)
        plain = measure(llama(world["tok"], 3), case, SMALL)
        assert np.array_equal(found.base, plain.base, equal_nan=True)


def test_works_in_host(world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders of transformers and JSONL files in, a report out; and GPT-2, whose layers are transposed."""
    for name in ("original", "gold"):
        world[name].save_pretrained(tmp_path / name)
        world["tok"].save_pretrained(tmp_path / name)
    write_qa(world["forget"], tmp_path / "f.jsonl")
    write_qa(world["keep"], tmp_path / "r.jsonl")
    report = audit(
        str(tmp_path / "original"), tmp_path / "f.jsonl", tmp_path / "r.jsonl", gold=str(tmp_path / "gold"),
        probes=["forms", "relearn_rtt"], steps=2, rates=[1e-3], device="cpu",
    )  # fmt: skip
    assert report.findings[0].name == "overall" and report.exit_code == 1
    assert 0.0 <= (report.false_alarm_rate or 0.0) <= 1.0
    assert "unlearned model: relearning" in capsys.readouterr().err
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=len(world["tok"]), n_positions=64))
    case = make_case(world["tok"], world["forget"], world["keep"], original=gpt2, benign=[])
    done = measure(gpt2, case, SMALL)
    assert {"quantisation", "ablation", "logit_lens", "relearn_rtt"} <= set(done.arms)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("no folder", "model folder"),
        ("not a model", "model folder"),
        ("no tokenizer", "tokenizer"),
        ("missing file", "JSONL"),
        ("empty file", "no questions"),
        ("overlap", "both sets"),
        ("probe", "relearn_rtt"),
        ("other tokenizer", "one vocabulary"),
    ],
)
def test_wrong_input_is_one_line(world: dict[str, Any], tmp_path: Path, wrong: str, expected: str) -> None:
    model, files = tmp_path / "model", {"forget": tmp_path / "f.jsonl", "retain": tmp_path / "r.jsonl"}
    world["gold"].save_pretrained(model)
    if wrong != "no tokenizer":
        world["tok"].save_pretrained(model)
    write_qa(world["forget"], files["forget"])
    write_qa(world["forget"] if wrong == "overlap" else world["keep"], files["retain"])
    options: dict[str, Any] = {"device": "cpu", "quiet": True}
    if wrong == "no folder":
        model = tmp_path / "nowhere"
    elif wrong == "not a model":
        (model := tmp_path / "empty").mkdir()
    elif wrong == "missing file":
        files["retain"].unlink()
    elif wrong == "empty file":
        files["retain"].write_text("\n")
    elif wrong == "probe":
        options["probes"] = ["relearn_rt"]
    elif wrong == "other tokenizer":
        from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer

        other = word_tokenizer(["some words"])
        tiny_llama(other, 16, 1).save_pretrained(tmp_path / "other")
        other.save_pretrained(tmp_path / "other")
        options["gold"] = str(tmp_path / "other")
    with pytest.raises(UserError) as caught:
        audit(str(model), **files, **options)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("changed", [{"gone": 0.3}, {"samples": 0}, {"direct_share": 1.0}, {"folds": 1}])
def test_wrong_settings(changed: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Config(**changed)
