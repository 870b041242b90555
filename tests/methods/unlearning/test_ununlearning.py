"""UnUnlearning: contexts against what the levels promise, balanced accuracies against counting, a model that reasons
against one that does not, and the audit on a model folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transfuse.data.attribute_table import AttributeTable
from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_scores import score_answers
from transfuse.methods.unlearning.answer_tokens import encode_answer
from transfuse.methods.unlearning.concepts import Concepts, decisive, read_concepts
from transfuse.methods.unlearning.context_ladder import LADDER, LEVELS, PIECES, Wording, build_contexts
from transfuse.methods.unlearning.horn_rules import HornRules, Rule
from transfuse.methods.unlearning.ladder_replies import LadderReplies, balanced_weights, questions_of
from transfuse.methods.unlearning.ununlearning import Config, ContextLadder, audit, default_filters, report
from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer

AXIOMS = ("big", "striped", "fierce", "soft", "horned", "fast")
RULES = (("feared", ("big", "fierce")), ("hunted", ("striped", "not soft")), ("prized", ("hunted", "fast")))
SYNONYMS = {"big": "huge", "fast": "quick"}


def things(count: int = 24, seed: int = 0) -> AttributeTable:
    """Different things of random axioms, the first ones with all kinds of answers."""
    rng = np.random.default_rng(seed)
    kept: dict[frozenset[str], str] = {}
    while len(kept) < count:
        kept.setdefault(frozenset(a for a in AXIOMS if rng.random() < 0.55), f"thing{len(kept)}")
    return AttributeTable({name: true for true, name in kept.items()}, AXIOMS, RULES, SYNONYMS)


CONCEPTS = Concepts(things(), tuple(f"thing{i}" for i in range(8)), {"thing0": ("item zero",)})
WORDING = Wording()


def reader(knows: Callable[[str, str], bool] | None = None) -> Callable[[list[dict[str, str]]], str]:
    """A model that reasons from what it is told, and else says what it knows, or no."""
    rules = HornRules(Rule(head, body) for head, body in RULES)
    words = {SYNONYMS.get(a, a): a for a in AXIOMS} | {a: a for a in AXIOMS}

    def ask(messages: list[dict[str, str]]) -> str:
        *told, question = " ".join(m["content"] for m in messages if m["role"] == "user").rsplit("Is ", 1)
        name, theorem = question.split("?")[0].split()
        facts = []
        for part in told[0].replace(".", ",").replace(":", ",").split(","):
            bare = part.strip().removeprefix("not ")
            if bare in words:
                facts.append(part.strip().replace(bare, words[bare]))
            elif bare == theorem:
                return "No." if part.strip().startswith("not ") else "Yes."
        if not facts and knows is not None:
            return "Yes." if knows(name, theorem) else "No."
        return "Yes." if theorem in rules.closure(facts) else "No."

    return ask


def truth(name: str, theorem: str) -> bool:
    return name in CONCEPTS.table.objects and CONCEPTS.holds(CONCEPTS.axioms(name))[theorem]


def facts_of(told: tuple[str, ...]) -> list[str]:
    text = " ".join(told).replace(".", ",").replace(":", ",")
    words = [part.strip() for part in text.split(",")]
    known = {*AXIOMS, *SYNONYMS.values()}
    return [word for word in words if word.removeprefix("not ") in known]


def test_levels_tell_what_they_promise() -> None:
    rungs = build_contexts(CONCEPTS, names=["wug", "dax"], draws=2, partial=4)
    by_level = {level: [r for r in rungs if r.level == level] for level in LEVELS}
    assert len(by_level["none"]) == 8
    assert all(len(by_level[level]) == 16 for level in LEVELS if level not in ("none", "negated"))
    for level in LEVELS:
        for rung in by_level[level]:
            own, told = set(CONCEPTS.axioms(rung.concept)), facts_of(rung.told)
            named = level in ("none", "restated", "definition")
            assert (rung.called == rung.concept) == named
            assert (rung.concept in " ".join(rung.told)) == (named and level != "none")
            expected = {"none": 0, "restated": 0, "neutral": 0, "partial": 4}.get(level, 6)
            assert len(told) == expected
            if level in ("definition", "alias", "mosaic"):
                assert set(told) == own
            if level == "partial":
                assert set(told) < own
            if level == "paraphrase":
                assert {t.replace("huge", "big").replace("quick", "fast") for t in told} == own
                assert not {"big", "not big", "fast", "not fast"} & set(told)
            if level == "shuffled":
                assert sorted(t.startswith("not") for t in told) == sorted(a.startswith("not") for a in own)
                assert {t.removeprefix("not ") for t in told} == set(AXIOMS)
            if level == "other":
                assert any(set(told) == set(CONCEPTS.axioms(p)) for p in CONCEPTS.permitted) and set(told) != own
            if level == "negated":
                assert len(set(told) - own) == 1
                assert (
                    rung.answers[0]
                    == (rung.theorems[0] in CONCEPTS.rules.closure(told))
                    != truth(rung.concept, rung.theorems[0])
                )
    assert all(len(rung.told) == PIECES + 1 for rung in by_level["mosaic"])
    alias = {(r.concept, i): len(" ".join(r.told).split()) for i, r in enumerate(by_level["alias"])}
    neutral = {(r.concept, i): len(" ".join(r.told).split()) for i, r in enumerate(by_level["neutral"])}
    assert all(0 <= neutral[key] - alias[key] < 12 for key in alias)


def test_no_answer_stands_in_a_context_but_where_it_is_restated() -> None:
    for rung in build_contexts(CONCEPTS, names=["wug"], draws=1):
        stated = any(theorem in " ".join(rung.told) for theorem in CONCEPTS.table.theorems)
        assert stated == (rung.level == "restated")


def test_contexts_depend_on_the_seed_only() -> None:
    assert build_contexts(CONCEPTS, names=["wug"], seed=3) == build_contexts(CONCEPTS, names=["wug"], seed=3)
    few = build_contexts(CONCEPTS, ("none", "alias"), names=["wug"], seed=3)
    assert set(few) <= set(build_contexts(CONCEPTS, names=["wug"], seed=3))  # a level does not change another
    for bad in ({"levels": ("none", "nothing")}, {"names": []}, {"draws": 0}):
        with pytest.raises(UserError, match="levels"):
            build_contexts(CONCEPTS, **{"names": ["wug"], **bad})  # type: ignore[arg-type]


def test_turns_alternate_and_the_question_comes_last() -> None:
    for rung in build_contexts(CONCEPTS, names=["wug"], draws=1):
        messages = rung.messages(rung.theorems[0], WORDING)
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
        assert len(messages) == max(1, 2 * len(rung.told) - 1)
        assert messages[-1]["content"].endswith(f"Is {rung.called} {rung.theorems[0]}? Answer Yes or No.")


@pytest.mark.parametrize("seed", range(20))
def test_decisive_facts_turn_the_answer_and_are_found_wherever_there_are_any(seed: int) -> None:
    rng = np.random.default_rng(seed)
    axioms = CONCEPTS.axioms(f"thing{seed}")
    for theorem in CONCEPTS.table.theorems:
        first = theorem in CONCEPTS.rules.closure(axioms)
        turning = []
        for place, axiom in enumerate(axioms):
            other = axiom[4:] if axiom.startswith("not ") else f"not {axiom}"
            turned = [*axioms[:place], other, *axioms[place + 1 :]]
            if (theorem in CONCEPTS.rules.closure(turned)) != first:
                turning.append(place)
        found = decisive(CONCEPTS, axioms, theorem, rng)
        assert (found in turning) if turning else found is None


def test_balanced_weights_make_constant_answers_and_rates_worth_one_half() -> None:
    rng = np.random.default_rng(0)
    theorem = [str(t) for t in rng.choice(["a", "b", "c"], 200)]
    share = {"a": 0.1, "b": 0.5, "c": 0.9}
    answers = np.array([rng.random() < share[t] for t in theorem])
    weights = balanced_weights(theorem, answers)
    assert weights.sum() == pytest.approx(1.0)
    for said in (np.ones(200, bool), np.zeros(200, bool), np.array([share[t] > 0.4 for t in theorem])):
        assert weights @ (said == answers) == pytest.approx(0.5)
    by_hand = np.mean([
        np.mean([np.mean(own[own == y] == 1) if y else np.mean(own[own == y] == 0) for y in (True, False)])
        for own in (answers[np.array(theorem) == t] for t in "abc")
    ])  # fmt: skip
    assert weights @ np.ones(200) == pytest.approx(by_hand)
    assert balanced_weights(["a", "b", "c"], [True, True, False]).tolist() == [0.25, 0.25, 0.5]
    assert balanced_weights(["a", "a"], [True, True]).tolist() == [0.5, 0.5]


def test_a_model_that_reasons_is_taught_again_and_one_that_does_not_is_not() -> None:
    attack = ContextLadder(CONCEPTS)
    full, gold = attack.ask_all(reader(truth)), attack.ask_all(reader())
    ceiling = full.accuracy("none")
    assert (ceiling, gold.accuracy("none")) == (1.0, 0.5)
    for level in ("restated", "definition", "alias", "paraphrase", "mosaic"):
        assert gold.recovery(level, ceiling) == pytest.approx(1.0)
        assert gold.specificity(level, ceiling) == pytest.approx(
            1.0 - max(gold.recovery(c, ceiling) for c in ("neutral", "other", "shuffled"))
        )
    assert gold.accuracy("negated") == 1.0
    assert gold.accuracy("neutral") == 0.5
    assert 0.0 < gold.recovery("partial", ceiling) < 1.0
    dull = attack.ask_all(lambda messages: "I cannot say.")
    assert {dull.accuracy(level) for level in LEVELS} == {0.0} == {dull.answered(level) for level in LEVELS}
    assert full.recovery("alias", 1.0) == 0.0  # nothing was unlearned, so nothing is recovered


def test_a_model_that_copies_facts_does_not_pass_for_one_that_reasons() -> None:
    """Yes wherever most facts told are true: no better than a guess, and it does not turn."""

    def count(messages: list[dict[str, str]]) -> str:
        facts = facts_of(tuple(m["content"] for m in messages))
        return "Yes" if sum(not f.startswith("not ") for f in facts) > len(facts) / 2 else "No"

    replies = ContextLadder(CONCEPTS).ask_all(count)
    assert replies.specificity("alias", 1.0) < 0.5
    assert replies.accuracy("negated") < 0.7


def test_degenerate_setting_equals_baseline() -> None:
    """A ladder of no context is the plain question, scored as any answer is."""
    model, tokenizer = small_model()
    attack = ContextLadder(CONCEPTS, Config(levels=("none",)))
    replies = attack.ask_model(model, tokenizer)
    texts = [WORDING.question.format(name=one.concept, theorem=one.theorem) for one in attack.asked]
    scores = [
        score_answers(model, [encode_answer(tokenizer, text, answer, end=False) for text in texts], 0).sums()
        for answer in WORDING.answers
    ]
    assert replies.said.tolist() == (scores[0] > scores[1]).astype(int).tolist()
    assert {one.level for one in replies.asked} == {"none"}


def small_model(seed: int = 0) -> tuple[Any, Any]:
    rungs = build_contexts(CONCEPTS, names=["wug"], draws=1)
    texts = [m["content"] for r in rungs for t in r.theorems for m in r.messages(t, WORDING)]
    tokenizer = word_tokenizer([*texts, *WORDING.answers, "blicket toma zorp fendle glorb quimbat daxen mipen tulver"])
    torch.manual_seed(seed)
    return tiny_llama(tokenizer, 16, 2, positions=512), tokenizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_device_and_dtype_follow_inputs(dtype: torch.dtype) -> None:
    model, tokenizer = small_model()
    model = model.to(dtype)
    where = "cuda" if torch.cuda.is_available() else "cpu"
    replies = ContextLadder(CONCEPTS, Config(draws=1)).ask_model(model.to(where), tokenizer)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {p.device.type for p in model.parameters()} == {where}
    assert set(replies.said.tolist()) <= {0, 1}


def test_works_in_host() -> None:
    """What the scores prefer is what transformers' own `generate` writes, if it may write the answers only."""
    model, tokenizer = small_model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    attack = ContextLadder(CONCEPTS, Config(draws=1))
    replies = attack.ask_model(model, tokenizer)
    allowed = tokenizer.convert_tokens_to_ids(list(WORDING.answers))

    def ask(messages: list[dict[str, str]]) -> str:
        text = " ".join(m["content"] for m in messages)
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        written = model.generate(
            **inputs, max_new_tokens=1, do_sample=False, prefix_allowed_tokens_fn=lambda batch, ids: allowed
        )
        return str(tokenizer.decode(written[0, -1:]))

    assert attack.ask_all(ask).said.tolist() == replies.said.tolist()
    assert len(set(replies.said.tolist())) == 2


def test_chance_deals_the_answers_to_other_things() -> None:
    attack = ContextLadder(CONCEPTS, Config(levels=("none", "alias"), draws=1))
    gold = attack.ask_all(reader())
    chance = gold.chance("alias", 300, 0)
    assert chance.max() <= 1.0
    assert np.mean(chance) == pytest.approx(0.5, abs=0.05)
    assert gold.accuracy("alias") == 1.0 > np.quantile(chance, 0.95)


def test_the_report_flags_what_comes_back_and_nothing_else() -> None:
    attack = ContextLadder(CONCEPTS)
    gold = attack.ask_all(reader())
    found = report(gold, attack.rate_filters(default_filters(attack), gold), ceiling=1.0)
    verdicts = {f.name.removeprefix("answers, "): f.verdict for f in found.findings}
    assert [verdicts[level] for level in ("none", "definition", "alias", "paraphrase", "mosaic")] == [
        "ok", *["finding"] * 4,
    ]  # fmt: skip
    assert {verdicts[c] for c in ("restated", "neutral", "other", "shuffled", "negated")} == {"info"}
    assert found.exit_code == 1
    assert found.false_alarm_rate is not None and found.false_alarm_rate < 0.1
    rates = {r.name: r for r in attack.rate_filters(default_filters(attack), gold)}
    assert [rates["terms"].caught[level] for level in LADDER] == [1, 1, 1, 0, 0, 0, 0]
    assert rates["closure"].residual["mosaic"] == 0.0
    assert json.loads(found.to_json())["method"] == "ununlearning"


def test_guesses_are_flagged_as_rarely_as_promised() -> None:
    attack = ContextLadder(CONCEPTS)
    rng = np.random.default_rng(0)
    flagged = []
    for _ in range(30):
        replies = LadderReplies(attack.asked, rng.integers(0, 2, len(attack.asked)))
        found = report(replies, ceiling=1.0)
        flagged += [f.verdict == "finding" for f in found.findings if f.verdict != "info"]
    assert np.mean(flagged) < 0.1


def test_few_permitted_things_are_told_of_often_enough_for_a_threshold() -> None:
    few = Concepts(things(6), ("thing0", "thing1", "thing2"))
    attack = ContextLadder(few, Config(draws=1))
    assert len(attack.benign()) >= 60  # the plain question has no draws
    rates = attack.rate_filters(default_filters(attack), attack.ask_all(reader()))
    assert {r.name: r.caught["definition"] for r in rates}["terms"] == 1.0
    assert all(np.isfinite(r.threshold) for r in rates)


def test_few_things_get_no_verdict() -> None:
    few = Concepts(things(), ("thing0", "thing1"))
    found = report(ContextLadder(few).ask_all(reader()))
    assert {f.verdict for f in found.findings} == {"info"}
    assert found.false_alarm_rate is None and "fewer than 5" in found.calibration


TOML = """
forbidden = ["tiger"]
[objects]
tiger = ["big", "striped"]
zebra = ["striped"]
[[rules]]
head = "feared"
body = ["big", "striped"]
[aliases]
tiger = ["panthera"]
"""


def test_concepts_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(TOML, encoding="utf-8")
    concepts = read_concepts(path)
    assert concepts.forbidden == ("tiger",) and concepts.permitted == ("zebra",)
    assert concepts.axioms("zebra") == ("not big", "striped")
    assert concepts.aliases == {"tiger": ("panthera",)}
    for old, new, said in (
        ('["tiger"]\n[objects]', '["lion"]\n[objects]', "lion"),
        ('forbidden = ["tiger"]', 'forbidden = "tiger"', "tiger"),
        ('["striped"]', '["striped", "feared"]', "feared"),
        ("[[rules]]", "[[rule]]", "rules"),
        ("[objects]", "[objects", "TOML"),
    ):
        path.write_text(TOML.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(UserError, match=said):
            read_concepts(path)
    with pytest.raises(UserError, match="nothing"):
        read_concepts(tmp_path / "nothing.toml")


def test_audit_reads_a_model_folder(tmp_path: Path) -> None:
    model, tokenizer = small_model()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    lines = ["forbidden = ['thing0', 'thing1', 'thing2', 'thing3', 'thing4', 'thing5']", "[objects]"]
    lines += [f"{name} = {sorted(true)}" for name, true in CONCEPTS.table.objects.items()]
    lines += [f"[[rules]]\nhead = '{head}'\nbody = {list(body)}" for head, body in RULES]
    (tmp_path / "c.toml").write_text("\n".join(lines), encoding="utf-8")
    name = str(tmp_path / "model")
    found = audit(tmp_path / "c.toml", name, before=name, draws=1, device="cpu")
    assert found.environment["forbidden"] == 6
    assert {f.name for f in found.findings} >= {"answers, none", "answers, mosaic", "filter, terms", "filter, closure"}
    with pytest.raises(UserError, match="no folder"):
        audit(tmp_path / "c.toml", str(tmp_path / "none"), device="cpu")


def test_config_refuses_what_it_cannot_do() -> None:
    for bad in ({"levels": ("alias",)}, {"levels": ("none", "x")}, {"draws": 0}, {"partial": -1}, {"alarm_rate": 1.0}):
        with pytest.raises(UserError):
            Config(**bad)
    with pytest.raises(UserError, match="int"):
        ContextLadder(CONCEPTS).ask_all(lambda messages: 3)  # type: ignore[arg-type, return-value]


def test_questions_come_rung_after_rung() -> None:
    rungs = build_contexts(CONCEPTS, names=["wug"], draws=1)
    asked = questions_of(rungs)
    assert len(asked) == sum(len(r.theorems) for r in rungs)
    assert [one.rung for one in asked] == sorted(one.rung for one in asked)
