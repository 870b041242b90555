"""The methods by name, and `transfuse apply` on a checkpoint and two files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.unlearning.tiny_world import ANSWERS, QUESTIONS, items, llama, tokenizer
from transformers import AutoModelForCausalLM, TrainingArguments

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_training import RETAIN as RETAIN_STREAM
from transfuse.methods.unlearning.answer_training import fine_tune
from transfuse.methods.unlearning.unlearning_methods import (
    APPLY_AS,
    METHODS,
    Config,
    apply,
    make_config,
    read_options,
    unlearn,
)
from transfuse.methods.unlearning.unlearning_trainer import UnlearningTrainer

TOK = tokenizer()
FORGET, RETAIN = items(TOK, 0, 6), items(TOK, 6, 16)


def test_degenerate_setting_equals_baseline() -> None:
    """Without a forget term all that remains is fine-tuning on what is to stay."""
    plain, other = llama(TOK), llama(TOK)
    fine_tune(plain, RETAIN, TOK.pad_token_id, steps=4, rate=1e-2, batch=4, seed=3, stream=RETAIN_STREAM)
    options = {"gamma": 0.0, "steps": 4, "rate": 1e-2, "batch": 4, "weight_decay": 0.0}
    unlearn("grad_diff", other, TOK, FORGET, RETAIN, make_config("grad_diff", options), seed=3)
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_device_and_dtype_follow_inputs(dtype: torch.dtype) -> None:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        model: Any = llama(TOK).to(device=device, dtype=dtype)
        result = unlearn("npo", model, TOK, FORGET, RETAIN, make_config("npo", {"steps": 2, "rate": 1e-3}), seed=0)
        assert {p.dtype for p in result.parameters()} == {dtype}
        assert {p.device.type for p in result.parameters()} == {device}


def test_works_in_host(tmp_path: Path) -> None:
    """NPO in the Trainer lowers the answers' probability, and nothing else is asked of its user."""
    from transfuse.methods.unlearning.answer_scores import score_answers
    from transfuse.methods.unlearning.npo import NPO
    from transfuse.methods.unlearning.npo import Config as NPOConfig

    model = llama(TOK)
    before = score_answers(model, FORGET, TOK.pad_token_id).sums().mean()
    arguments = TrainingArguments(
        str(tmp_path), max_steps=5, learning_rate=1e-2, use_cpu=True, report_to="none", disable_tqdm=True
    )  # fmt: skip
    objective = NPO(NPOConfig(), TOK, FORGET, RETAIN)
    UnlearningTrainer(model, arguments, objective=objective, processing_class=TOK).train()
    assert score_answers(model, FORGET, TOK.pad_token_id).sums().mean() < before - 1.0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_reproducible_and_calls_back(method: str) -> None:
    options: dict[str, Any] = {"icul": {}, "kga": {"steps": 2, "small_steps": 2, "inner_steps": 2}}.get(
        method, {"steps": 2}
    )
    steps: list[int] = []
    results = []
    for _ in range(2):
        model = llama(TOK)
        extra = {"unseen": items(TOK, 16, 20)} if method == "kga" else {}
        torch.manual_seed(len(results))  # the global state is nobody's business

        def watch(step: int, seen: torch.nn.Module) -> bool:
            steps.append(step)
            return False

        result = unlearn(
            method, model, TOK, FORGET, RETAIN, make_config(method, options), seed=1, on_step=watch, **extra
        )
        with torch.no_grad():
            results.append(result(input_ids=torch.tensor([FORGET[0].ids])).logits)
    torch.testing.assert_close(results[0], results[1], atol=0, rtol=0)
    assert steps and steps[0] == 1


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UserError, match="npo"):
        Config(method="nop")
    with pytest.raises(UserError, match="beta"):
        make_config("npo", {"beat": 0.1})
    with pytest.raises(UserError, match="as name=value"):
        read_options("npo", ["beta"])
    with pytest.raises(UserError, match="type float"):
        read_options("npo", ["beta=high"])
    assert read_options("rmu", ["layer=2", "c=6.5", "retain=none"]) == {"layer": 2, "c": 6.5, "retain": "none"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model: Any = llama(TOK)
    fine_tune(model, items(TOK, 0, 16), TOK.pad_token_id, steps=60, rate=1e-2, batch=16, seed=0)
    model.save_pretrained(tmp_path / "model")
    TOK.save_pretrained(tmp_path / "model")
    for name, part in (("forget", range(6)), ("retain", range(6, 16))):
        rows = [json.dumps({"question": QUESTIONS[i], "answer": ANSWERS[i]}) for i in part]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path


def given(folder: Path, **options: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "model": str(folder / "model"), "forget": folder / "forget.jsonl", "retain": folder / "retain.jsonl",
        "out": folder / "out", "audit": False, "steps": 40, "rate": 1e-2,
    }  # fmt: skip
    return {**usual, **options}


@pytest.mark.parametrize("method", APPLY_AS)
def test_apply_writes_a_checkpoint_that_transformers_loads(checkpoint: Path, method: str) -> None:
    folder = apply(**given(checkpoint, method=method, until=0.2))
    AutoModelForCausalLM.from_pretrained(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"unlearned by {method}" in card and "| answers to forget that greedy decoding writes | 1.000 |" in card
    assert str(checkpoint) not in card
    assert not list(checkpoint.glob(".*partial"))


def test_apply_forgets_and_stops_early(checkpoint: Path) -> None:
    from transfuse.hosts.causal_model import load_causal_model
    from transfuse.methods.unlearning.answer_scores import score_answers

    folder = apply(**given(checkpoint, method="npo", until=0.2))
    model, tok = load_causal_model(folder)
    exact = score_answers(model, [*FORGET, *RETAIN], tok.pad_token_id, eos=tok.eos_token_id).exact()
    assert exact[:6].mean() <= 0.2


def test_apply_refuses_in_one_line_and_leaves_nothing(checkpoint: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": str(checkpoint / "nowhere")}, "no folder"),
        ({"forget": checkpoint / "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"forget": checkpoint / "retain.jsonl"}, "questions both in"),
        ({"method": "icul"}, "writes no checkpoint"),
        ({"method": "kga"}, "unseen"),
        ({"out": checkpoint / "model"}, "exists already"),
        ({"device": "gpu7"}, "device 'gpu7'"),
        ({"until": 3.0}, "until 3"),
        ({"rate": -1.0}, "rate -1"),
        ({"set_": ("beta=0",)}, "beta 0"),
    ]
    for options, line in cases:
        with pytest.raises(UserError, match=line):
            apply(**given(checkpoint, **options))
    assert not (checkpoint / "out").exists() and not list(checkpoint.glob(".*partial"))
