"""Forward chaining on bitsets against trying every set of atoms, and turn by turn against all at once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from transfuse.methods.unlearning.horn_rules import HornRules, Rule, negated

ATOMS = tuple("abcdef")


def random_rules(rng: np.random.Generator) -> list[Rule]:
    return [
        Rule(str(rng.choice(ATOMS)), tuple(map(str, rng.choice(ATOMS, rng.integers(0, 4), replace=False))))
        for _ in range(rng.integers(1, 9))
    ]


def least_model(rules: list[Rule], facts: set[str]) -> set[str]:
    """By definition: the intersection of all sets that hold the facts and satisfy every rule."""
    models = [
        set(chosen)
        for size in range(len(ATOMS) + 1)
        for chosen in itertools.combinations(ATOMS, size)
        if facts <= set(chosen) and all(r.head in chosen or not set(r.body) <= set(chosen) for r in rules)
    ]
    return set.intersection(*models)


@pytest.mark.parametrize("seed", range(60))
def test_closure_is_the_least_model(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rules = random_rules(rng)
    facts = {atom for atom in ATOMS if rng.random() < 0.3}
    assert HornRules(rules).closure(facts) == least_model(rules, facts)


@pytest.mark.parametrize("seed", range(20))
def test_facts_that_come_in_turns_lead_to_the_same_closure(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rules = random_rules(rng)
    horn = HornRules(rules)
    state, told, news = horn.start(), set(), set(horn.closure(()))
    for atom in rng.permutation(ATOMS)[:4]:
        told.add(str(atom))
        new = state.add(str(atom))
        assert not set(new) & news
        news |= set(new)
        assert state.atoms() == news == least_model(rules, told)
        assert all((a in state) == (a in news) for a in ATOMS)


def test_what_no_rule_mentions_is_known_once_it_is_told() -> None:
    state = HornRules([Rule("cat", ("ears",))]).start()
    assert "stripes" not in state
    assert state.add("stripes", "ears") == ("cat", "ears", "stripes")
    assert state.add("stripes") == ()


def test_cycles_end_and_a_denied_property_is_an_atom_of_its_own() -> None:
    rules = HornRules([Rule("a", ("b",)), Rule("b", ("a",)), Rule("c", ("a", "not d"))])
    assert rules.closure(["a"]) == {"a", "b"}
    assert rules.closure(["b", negated("d")]) == {"a", "b", "c", "not d"}
