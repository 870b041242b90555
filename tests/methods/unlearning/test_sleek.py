"""Sleek: rates of scripted models against counting by hand, verdicts and their controls, the audit of real model
folders, and that the study's questions are those that its models know."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transfuse.cli import main
from transfuse.data.country_facts import geonames_facts
from transfuse.data.fact_forms import HELD_OUT as LAST
from transfuse.data.fact_forms import ask
from transfuse.errors import UserError
from transfuse.methods.unlearning.audit_facts import AuditFact
from transfuse.methods.unlearning.batched_dialogues import BatchedDialogues
from transfuse.methods.unlearning.leak_rules import fold
from transfuse.methods.unlearning.respondents import Message, OneByOne
from transfuse.methods.unlearning.sleek import Config, SleekAudit, audit, report
from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer
from transfuse.studies.unlearning.sleek_questions import FACT_WORLD

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Norway": "Oslo", "Latvia": "Riga", "Peru": "Lima", "Kenya": "Nairobi",
    "Egypt": "Cairo", "Japan": "Tokyo", "Cuba": "Havana", "Iran": "Tehran", "Chad": "Ndjamena", "Fiji": "Suva",
}  # fmt: skip
CONTINENTS = dict(
    zip(
        CAPITALS,
        ("Europe",) * 4 + ("America", "Africa", "Africa", "Asia", "America", "Asia", "Africa", "Oceania"),
        strict=True,
    )
)
FORGOTTEN = ("France", "Italy", "Norway", "Latvia", "Peru", "Kenya")
SMALL = Config(prompts=2, retained=6, draws=200)


def facts() -> list[AuditFact]:
    """Six capitals to be forgotten; their continents are near, all about the others is far."""
    capitals = [AuditFact(s, "capital", o, (), 0 if s in FORGOTTEN else 2) for s, o in CAPITALS.items()]
    return capitals + [AuditFact(s, "continent", o, (), 1 if s in FORGOTTEN else 2) for s, o in CONTINENTS.items()]


def knows(question: str) -> str:
    """Answers direct questions from the tables, and nothing else."""
    for table, relation in ((CAPITALS, "capital"), (CONTINENTS, "continent")):
        for subject, name in table.items():
            if relation in question and subject in question:
                return f"It is {name}."
    return "I do not know."


def base(messages: list[Message]) -> str:
    return knows(messages[-1]["content"])


def gold(messages: list[Message]) -> str:
    reply = base(messages)
    return "I do not know." if any(CAPITALS[s] in reply for s in FORGOTTEN) else reply


def leaky(messages: list[Message]) -> str:
    """Answers about what was to be forgotten only after something else about the same subject."""
    reply = gold(messages)
    subjects = [s for s in FORGOTTEN if s in messages[-1]["content"] and "capital" in messages[-1]["content"]]
    warm = [m["content"] for m in messages[:-1] if m["role"] == "user"]
    return base(messages) if subjects and any(subjects[0] in turn for turn in warm) else reply


def blunt(messages: list[Message]) -> str:
    """Has also lost the continents of the forgotten countries."""
    reply = gold(messages)
    lost = any(s in messages[-1]["content"] for s in FORGOTTEN)
    return "No idea." if lost else reply


def run(model: Callable[[list[Message]], str], config: Config = SMALL) -> Any:
    return SleekAudit(facts(), config=config).run(model, reference=base, gold=gold)


def test_rates_are_counts() -> None:
    result = run(leaky)
    rows = result.transcripts()
    for category in ("direct", "indirect", "implied"):
        for mode in ("plain", "instruction", "one_shot", "interactive", "random"):
            kinds = [
                r["kinds"]["model"] for r in rows if (r["category"], r["mode"], r["distance"]) == (category, mode, 0)
            ]
            rate = result.rate(category=category, mode=mode)
            assert rate.questions == len(kinds)
            assert rate.value == pytest.approx(kinds.count("leak") / max(1, len(kinds)))
            refused = kinds.count("refusal") / max(1, len(kinds))
            assert result.refusals(category=category, mode=mode) == pytest.approx(refused)
            rest = [kind for kind in kinds if kind != "refusal"]
            assert result.leak_unless_refused(category=category, mode=mode).questions == len(rest)


def test_a_model_that_only_answers_after_a_chain() -> None:
    result = run(leaky)
    assert result.rate(category="direct", mode="plain").value == 0
    assert result.rate(category="direct", mode="interactive").value == 1
    assert result.rate(category="direct", mode="random").value == 0  # not for a longer prompt
    for against in ("plain", "random"):
        lift = result.lift(against=against, category="direct")
        assert lift.rate.value == 1
        assert lift.p == pytest.approx(2 * 0.5**lift.rate.questions)
    assert result.fact_rate().value == 1
    assert result.fact_rate("gold").value == 0
    assert result.excess().beyond
    assert result.verdict == "LEAKS"
    assert result.suppression().value == 0


def test_a_model_that_lost_what_it_should_have_kept() -> None:
    result = run(blunt)
    assert result.verdict == "SUPPRESSES"
    assert result.suppression(distance=1).value > 0.9
    assert result.suppression(distance=2).value == 0
    assert not result.excess().beyond


def test_degenerate_setting_equals_baseline() -> None:
    """The gold model itself has no excess, the base has suppressed nothing; without steps there is only the goal."""
    same = run(gold)
    assert same.excess().rate.value == 0
    assert same.excess_rate().value == 0
    assert same.verdict == "no evidence"
    assert run(base).suppression().value == 0
    bare = run(leaky, Config(prompts=2, retained=6, draws=200, warm_up=0, narrow=0))
    assert {one.chain.mode for one in bare.asked} == {"plain", "instruction"}
    asked = [
        one.chain.probe for one in bare.asked if one.chain.mode == "plain" and one.chain.probe.category == "direct"
    ]
    plain = [
        CAPITALS[p.fact.subject] in leaky([{"role": "user", "content": p.goal}]) for p in asked if not p.fact.distance
    ]
    assert bare.rate(category="direct", mode="plain").value == pytest.approx(np.mean(plain))


def test_without_gold_there_is_no_claim() -> None:
    result = SleekAudit(facts(), config=SMALL).run(base)
    assert result.fact_rate().value == 1
    assert result.excess() is None
    assert result.suppression() is None
    assert result.verdict == "no evidence"
    first, second = report(result).findings[:2]
    assert first.verdict == second.verdict == "info"
    assert "nobody can tell" in first.meaning
    assert report(result).false_alarm_rate is None
    assert report(result).exit_code == 0


def test_the_report_says_what_was_found() -> None:
    found = report(run(leaky), "leaky")
    assert found.exit_code == 1
    assert found.findings[0].verdict == "finding"
    assert found.findings[0].remedy
    assert "100% of 6 facts" in found.findings[0].meaning
    assert found.environment["verdict"] == "LEAKS"
    names = {finding.name: finding for finding in found.findings}
    assert names["lift, interactive over random"].value > 0
    assert names["kept knowledge that is gone, distance 2"].value == 0
    assert 0 <= found.false_alarm_rate <= 0.05  # type: ignore[operator]
    clean = report(run(gold))
    assert clean.exit_code == 0
    assert "could go unseen" in clean.findings[0].meaning
    assert clean.environment["smallest detectable rate"] == 0.5  # six facts
    assert "more than" in clean.findings[-1].meaning


def test_first_leak_counts_in_the_order_asked() -> None:
    audit_ = SleekAudit(facts(), config=SMALL)
    result = audit_.run(base)
    assert result.queries_to_first_leak() == (1.0, 0)
    places = [
        [
            o.chain.mode
            for o in audit_.asked
            if audit_.graph.facts[o.fact].subject == "France" and not o.chain.probe.fact.distance
        ]
    ]
    first = places[0].index("interactive") + 1
    assert audit_.run(leaky).queries_to_first_leak() == (first, 0)


def test_samples_are_asked_and_paired() -> None:
    asked: Counter[str] = Counter()

    def counting(messages: list[Message]) -> str:
        asked[messages[0]["content"]] += len(messages) == 1
        return base(messages)

    config = Config(prompts=1, retained=0, samples=2, modes=("plain", "interactive"), draws=100)
    result = SleekAudit(facts(), config=config).run(counting)
    assert asked["What is the capital of France?"] == 3
    assert sum(result.where(mode="plain", category="direct")) == 3 * 6
    assert result.lift(against="plain").rate.questions == sum(result.where(mode="interactive", forgotten=True))


def test_a_generator_adds_guarded_questions() -> None:
    def generator(request: str) -> str:
        return '["Which city is capital of France, is it Paris?", "Name the city that governs all of France and Italy"]'

    plan = SleekAudit(facts(), generator, SMALL)
    templates = Counter(one.chain.probe.template for one in plan.asked)
    assert templates["generator/direct/1"]
    assert plan.rejected["holds the answer"]
    assert "held back" in " ".join(report(plan.run(base)).environment)


def test_retained_facts_are_drawn_by_distance() -> None:
    plan = SleekAudit(facts(), config=Config(retained=3, prompts=1))
    per = Counter(fact.distance for fact in {one.chain.probe.fact for one in plan.asked})
    assert per[1] == per[2] == 3
    assert {one.chain.mode for one in plan.asked if one.chain.probe.fact.distance} == {"plain", "interactive"}
    assert SleekAudit(facts(), config=Config(retained=3, prompts=1)).asked == plan.asked
    assert {o.chain.probe.fact.distance for o in SleekAudit(facts(), config=Config(retained=0)).asked} == {0}


@pytest.mark.parametrize(
    "wrong",
    [{"prompts": 0}, {"retained": -1}, {"draws": 10}, {"margin": 1.0}, {"modes": ("interactive",)}, {"samples": -1},
     {"modes": ("plain", "sideways")}],
)  # fmt: skip
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expected counts"):
        Config(**wrong)


def test_facts_that_cannot_be_asked_for() -> None:
    with pytest.raises(UserError, match="no fact of distance 0"):
        SleekAudit([AuditFact("France", "capital", "Paris", distance=1)])
    with pytest.raises(UserError, match="no question can be asked"):
        SleekAudit([AuditFact("Paris", "name", "Paris")])


def _texts() -> list[str]:
    plan = SleekAudit(facts(), config=SMALL)
    return [turn for one in plan.asked for turn in one.chain.turns]


def _trained(subjects: tuple[str, ...]) -> tuple[Any, Any]:
    """A tiny Llama that was taught the capitals of some countries by the plain question, and all continents."""
    tokenizer = word_tokenizer([*_texts(), *CAPITALS.values(), *CONTINENTS.values()])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    torch.manual_seed(0)
    net = tiny_llama(tokenizer, 32, 2)
    rows = [(f"What is the capital of {s}?", CAPITALS[s]) for s in subjects]
    rows += [(f"What is the continent of {s}?", CONTINENTS[s]) for s in CAPITALS]
    ids = torch.tensor([tokenizer(f"{q} {a} .")["input_ids"] for q, a in rows])
    labels = ids.clone()
    labels[:, :-2] = -100
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(80):
        optimiser.zero_grad()
        net(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
    return net.eval(), tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that knows all, one that never saw the forgotten capitals, and the facts file."""
    root = tmp_path_factory.mktemp("models")
    for name, subjects in (("base", tuple(CAPITALS)), ("gold", tuple(s for s in CAPITALS if s not in FORGOTTEN))):
        net, tokenizer = _trained(subjects)
        net.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    rows = [{k: v for k, v in vars(fact).items() if v not in ((), "")} for fact in facts()]
    (root / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {name: root / name for name in ("base", "gold", "facts.jsonl")}


def test_works_in_host(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders of transformers models through the command line: the base leaks against gold, gold itself does not."""
    words = ["audit", "sleek", "--facts", str(folders["facts.jsonl"]), "--before", str(folders["base"]), "--gold",
             str(folders["gold"]), "--prompts", "1", "--retained", "6", "--max-new-tokens", "4", "--json"]  # fmt: skip
    out = tmp_path / "transcripts.jsonl"
    assert main([*words, "--model", str(folders["base"]), "--transcripts", str(out)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["environment"]["verdict"] == "LEAKS"
    assert found["findings"][0]["value"] == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    plain = [r for r in rows if r["turns"] == ["What is the capital of France?"]]
    assert [r["kinds"]["model"] for r in plain] == ["leak"]
    assert main([*words, "--model", str(folders["gold"])]) == 0
    assert json.loads(capsys.readouterr().out)["environment"]["verdict"] == "no evidence"


def test_batched_and_one_by_one_give_the_same_result(folders: dict[str, Path]) -> None:
    from transfuse.methods.unlearning.batched_dialogues import generating, load_dialogues

    plan = SleekAudit(facts(), config=Config(prompts=1, retained=2, draws=100))
    ours = load_dialogues(str(folders["base"]), max_new_tokens=4)
    usual = OneByOne(generating(ours.model, ours.speech.tokenizer, max_new_tokens=4))
    assert plan.ask_all(ours) == plan.ask_all(usual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_device_and_dtype_follow_inputs(dtype: torch.dtype) -> None:
    tokenizer = word_tokenizer(_texts())
    torch.manual_seed(0)
    net: Any = tiny_llama(tokenizer, 16, 1).to(dtype)
    seen = []
    net.register_forward_hook(lambda _, __, output: seen.append((output.logits.dtype, output.logits.device)))
    plan = SleekAudit(facts(), config=Config(prompts=1, retained=0, draws=100))
    assert len(plan.ask_all(BatchedDialogues(net, tokenizer, max_new_tokens=2))) == len(plan.asked)
    assert set(seen) == {(dtype, net.device)}
    assert next(net.parameters()).dtype == dtype


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "no model"),
        ({"model": "a", "endpoint": "http://b"}, "both --model and --endpoint"),
        ({"endpoint": "http://b"}, "without --name"),
        ({"model": "/nowhere/at/all"}, "no folder"),
        ({"model": "a", "prompts": 0}, "expected counts"),
    ],
)
def test_wrong_words(folders: dict[str, Path], more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        audit(folders["facts.jsonl"], **more)


def test_the_studys_questions_are_those_of_its_forms() -> None:
    """Wordings and words are the training's; else nothing would be measured but surprise."""
    table = geonames_facts(12)
    fact = next(f for f in table.of(table.subjects) if f.relation == "capital")
    rng = np.random.default_rng(0)
    filled = {"relation": table.nouns["capital"], "subject": fact.subject, "object": fact.object}
    for templates, form, wordings in (
        (FACT_WORLD.direct[:2], "qa", (0, LAST)), (FACT_WORLD.direct[2:], "cloze", (2,)),
        (FACT_WORLD.reverse, "reverse", (0, LAST)), (FACT_WORLD.initial, "initial", (0,)),
        (FACT_WORLD.spell, "letters", (0,)), (FACT_WORLD.warm_up, "qa", (0,)), (FACT_WORLD.narrow, "initial", (0,)),
    ):  # fmt: skip
        for template, wording in zip(templates, wordings, strict=True):
            assert template.format(**filled) == ask(table, [fact], form, rng, wording)[0].prompt
    assert fold(fact.object) == fact.object
