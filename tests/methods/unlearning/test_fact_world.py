"""FactWorld on a very small setting: its sets, what is cached, and that teaching teaches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.methods.unlearning.small_models import llama, tokenizer

from transfuse.data.country_facts import geonames_facts
from transfuse.data.fact_forms import FORMS, HELD_OUT
from transfuse.nets.tiny_llama import word_tokenizer
from transfuse.studies.unlearning.fact_pretraining import (
    WorldSettings,
    corpus,
    muon_and_adamw,
    shuffled_batches,
    sums,
    vocabulary,
)
from transfuse.studies.unlearning.fact_world import FactWorld, make_world
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams

SMALL = WorldSettings(subjects=6, holdout=2, forget=2, width=32, layers=1, epochs=4)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return Stages(Path(tmp_path_factory.mktemp("stages")))


@pytest.fixture(scope="module")
def world(stages: Stages) -> FactWorld:
    return make_world(SMALL, Streams(100), stages)


def test_sets_of_countries_part_the_table(world: FactWorld, stages: Stages) -> None:
    assert (len(world.forget), len(world.retain), len(world.holdout)) == (2, 4, 2)
    assert sorted(world.forget + world.retain + world.holdout) == sorted(world.table.subjects)
    assert set(world.neighbours) <= set(world.retain)
    other = make_world(SMALL, Streams(101), stages)
    assert set(other.forget) != set(world.forget) or set(other.holdout) != set(world.holdout)


def test_the_vocabulary_holds_whatever_can_be_asked(world: FactWorld) -> None:
    unknown = world.tokenizer.unk_token_id
    for form in FORMS:
        for wording in range(HELD_OUT + 1):
            for encoded in world.encode(world.ask(world.table.subjects, form, wording=wording)):
                assert unknown not in encoded.ids


def test_models_are_fresh_copies_with_tied_heads(world: FactWorld) -> None:
    first, second = world.model(), world.model()
    assert first is not second and not first.training
    assert first.lm_head.weight is first.model.embed_tokens.weight
    with torch.no_grad():
        first.lm_head.weight.zero_()
    assert second.lm_head.weight.abs().sum() > 0
    assert any(
        not torch.equal(a, b) for a, b in zip(second.parameters(), world.model("gold").parameters(), strict=True)
    )


def test_questions_are_the_same_for_every_arm(world: FactWorld) -> None:
    assert world.ask(world.forget, "choice") == world.ask(world.forget, "choice")
    assert world.ask(world.forget, "choice", name="other") != world.ask(world.forget, "choice")


def test_teaching_teaches_and_gold_never_saw_what_is_forgotten(world: FactWorld) -> None:
    items = world.ask(world.forget, "cloze")
    base, gold, raw = world.model(), world.model("gold"), llama(world.tokenizer)
    scores = [float(world.score(model, items).loss().mean()) for model in (base, gold, raw)]
    assert scores[0] > scores[1] and scores[0] > scores[2] + 1.0
    kept = world.ask(world.retain, "cloze")
    assert world.score(gold, kept).loss().mean() > world.score(raw, kept).loss().mean() + 1.0
    assert 0.0 <= world.accuracy(base, items) <= 1.0


def test_the_same_seed_makes_the_same_models_from_an_empty_cache_and_a_full_one(
    world: FactWorld, stages: Stages, tmp_path: Path
) -> None:
    again, anew = make_world(SMALL, Streams(100), stages), make_world(SMALL, Streams(100), Stages(tmp_path))
    for other in (again, anew):
        for which, state in world.states.items():
            assert all(torch.equal(tensor, other.states[which][name]) for name, tensor in state.items())


def test_an_epoch_holds_every_fact_in_every_form_and_only_of_taught_subjects() -> None:
    table = geonames_facts(6)
    taught = table.subjects[:4]
    sequences = corpus(table, taught, np.random.default_rng(0))
    facts = {item.fact for sequence in sequences for item in sequence if item.form not in ("name", "sum")}
    assert facts == set(table.of(taught))
    named = {item.fact.subject for sequence in sequences for item in sequence if item.form == "name"}
    assert named == set(table.subjects), "a gold model would not know the names"
    assert len(sums()) == 100 and sums()[37].answer == "10"  # 3 plus 7


def test_batches_hold_every_sequence_once() -> None:
    sequences = [(list(range(n % 7 + 1)), []) for n in range(50)]
    batches = shuffled_batches(sequences, 4, np.random.default_rng(0))
    assert sorted(i for batch in batches for i in batch) == list(range(50)) and max(map(len, batches)) == 4


def test_each_parameter_has_one_optimiser() -> None:
    model = llama(tokenizer())
    optimisers = muon_and_adamw(model, 1e-2, 1e-3)
    held = [id(p) for optimiser, _ in optimisers for group in optimiser.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_words_of_refusals_are_known() -> None:
    from transfuse.methods.unlearning.idk_dpo import REFUSALS

    tok = word_tokenizer(vocabulary(geonames_facts(6)))
    assert not any(tok.unk_token_id in tok(text)["input_ids"] for text in REFUSALS)
