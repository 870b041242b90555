"""Questions with answers as facts of an audit: what of a pair is asked how, and a model that still knows them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_tokens import encode_answer, pad_answers
from transfuse.methods.unlearning.qa_file import QARow
from transfuse.methods.unlearning.sleek import Config
from transfuse.methods.unlearning.sleek_pairs import as_they_are, audit_pairs, pairs_audit
from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer

CAPITALS = {"france": "paris", "italy": "rome", "norway": "oslo", "latvia": "riga", "peru": "lima", "kenya": "nairobi"}
FORGET = [QARow(f"the capital of {s} is", o, subject=s) for s, o in CAPITALS.items()]
RETAIN = [QARow(f"{s} lies in", "europe", subject=s) for s in ("france", "italy", "norway", "latvia")]
SMALL = Config(prompts=2, retained=4, draws=200)


def goals(audit: Any, mode: str = "plain") -> list[str]:
    return [one.chain.probe.goal for one in audit.asked if one.chain.mode == mode and not one.chain.probe.fact.distance]


def test_a_bare_pair_is_asked_as_it_stands() -> None:
    row = QARow("Who wrote it?", "Ann Lee", paraphrases=("By whom was this book written?", "Did Ann Lee write it?"))
    audit = pairs_audit([row], [])
    assert goals(audit) == ["Who wrote it?", "By whom was this book written?"]
    assert audit.rejected["holds the answer"] == 1  # the second paraphrase gives it away
    assert {one.chain.mode for one in audit.asked} == {"plain", "instruction"}  # nothing leads up to it


def test_pairs_about_the_same_subject_lead_up_to_each_other() -> None:
    audit = pairs_audit(FORGET, RETAIN, SMALL)
    own = [one.chain for one in audit.asked if one.chain.probe.fact == audit.graph.forgotten[0]]
    steps, random = ([chain for chain in own if chain.mode == mode] for mode in ("interactive", "random"))
    assert [chain.turns[:2] for chain in steps] == [("france lies in", "the capital of france is")]
    assert [chain.turns[0].split()[0] != "france" for chain in random] == [True]
    assert all("lies in" in chain.turns[0] for chain in random)


def test_relations_open_the_templates_unless_they_have_two_answers() -> None:
    one = pairs_audit([QARow("What is the capital of Peru?", "Lima", subject="Peru", relation="capital")], [])
    assert "Whose capital is Lima?" in goals(one)
    names = {"first": "Ene", "next": "Rimac"}
    rivers = [QARow(f"Name the {n} river.", o, subject="Peru", relation="river") for n, o in names.items()]
    assert goals(pairs_audit(rivers, [])) == ["Name the first river.", "Name the next river."]


def test_forms_are_questions_of_their_category() -> None:
    forms = {
        "reverse": ("Whose capital is Lima?", "Peru"),
        "truth": ("Does its capital begin with the letter after K?", "yes"),
        "choice": ("Lima or Bogota?", "Lima"),
    }
    audit = pairs_audit([QARow("What is the capital of Peru?", "Lima", subject="Peru", forms=forms)], [])
    probes = {one.chain.probe.template: one.chain.probe for one in audit.asked}
    assert probes["form/reverse"].category == "indirect"
    assert probes["form/reverse"].key == ("Peru",)
    assert probes["form/truth"].category == "implied"
    assert probes["form/truth"].options == ("yes", "no")
    assert "form/choice" not in probes


def test_what_is_to_be_forgotten_is_not_kept_too() -> None:
    audit = pairs_audit(FORGET, [FORGET[0], *RETAIN])
    assert len(audit.graph.forgotten) == len(FORGET)
    assert len(audit.graph.retained) == len(RETAIN)


@pytest.mark.parametrize(
    ("forget", "said"),
    [
        ([], "no pair that was to be forgotten"),
        ([QARow("Who?", "...")], "an answer with a word"),
        ([QARow("Who?", "Ann"), QARow("Who?", "Bob")], "two answers to 'Who.'"),
    ],
)
def test_wrong_pairs(forget: list[QARow], said: str) -> None:
    with pytest.raises(UserError, match=said):
        pairs_audit(forget, [])


def taught(rows: list[QARow], tokenizer: Any) -> Any:
    torch.manual_seed(0)
    model: Any = tiny_llama(tokenizer, 32, 2)
    batch = pad_answers([encode_answer(tokenizer, row.prompt, row.answer) for row in rows], tokenizer.pad_token_id)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        model(**batch).loss.backward()
        optimiser.step()
    return model.eval()


def test_a_model_that_knows_leaks_against_one_that_never_did() -> None:
    tokenizer = word_tokenizer([f"{row.prompt} {row.answer} ." for row in (*FORGET, *RETAIN)])
    base, gold = taught([*FORGET, *RETAIN], tokenizer), taught(RETAIN, tokenizer)
    found = audit_pairs(base, tokenizer, FORGET, RETAIN, gold=gold, before=base, config=SMALL, max_new_tokens=4)
    assert found.environment["verdict"] == "LEAKS"
    assert found.findings[0].value == 1.0
    clean = audit_pairs(gold, tokenizer, FORGET, RETAIN, gold=gold, before=base, config=SMALL, max_new_tokens=4)
    assert clean.environment["verdict"] == "no evidence"
    assert clean.findings[0].value == 0.0
    with pytest.raises(UserError, match="without a chat template"):
        audit_pairs(base, tokenizer, FORGET, RETAIN, chat=True)


def test_a_template_is_left_out_where_the_model_was_taught_without() -> None:
    tokenizer = word_tokenizer([f"{row.prompt} {row.answer} ." for row in (*FORGET, *RETAIN)])
    model = taught([*FORGET, *RETAIN], tokenizer)
    tokenizer.chat_template = "{% for m in messages %}. . {{ m['content'] }} . .{% endfor %}"
    found = audit_pairs(model, tokenizer, FORGET, RETAIN, chat=False, config=SMALL, max_new_tokens=4)
    assert found.findings[0].value == 1.0
    assert tokenizer.chat_template  # the caller's own is as it was


def test_messages_as_they_are() -> None:
    turns = [("user", "a ?"), ("assistant", "b"), ("user", "c ?")]
    assert as_they_are(None, [{"role": r, "content": c} for r, c in turns]) == "a ? b\nc ?"
