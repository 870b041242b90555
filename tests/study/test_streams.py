"""Named streams: the same numbers for the same name, other numbers for another, nothing left behind."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transfuse.study.streams import Stream, Streams

NAMES = ("split", "init", "order", "noise")


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_starts_afresh_whatever_was_drawn_before(name: str) -> None:
    first, second = getattr(Streams(3), name), getattr(Streams(3), name)
    second.numpy().random(100)
    second.child("x").torch()
    assert np.array_equal(first.numpy().random(5), second.numpy().random(5))
    assert torch.equal(torch.rand(5, generator=first.torch()), torch.rand(5, generator=second.torch()))
    assert first.integer() == second.integer()


def test_names_seeds_and_children_are_independent() -> None:
    streams = [getattr(Streams(seed), name) for seed in range(20) for name in NAMES]
    streams += [stream.child(i) for stream in streams for i in range(20)]
    assert len({stream.integer() for stream in streams}) == len(streams)
    draws = np.stack([stream.numpy().standard_normal(200) for stream in streams[:400]])
    correlations = np.corrcoef(draws)[np.triu_indices(400, 1)]
    # of 79 800 independent pairs the largest correlation over 200 draws is about 4.6 standard errors
    assert np.abs(correlations).max() < 6 / np.sqrt(200)
    assert abs(correlations.mean()) < 0.01


@given(st.integers(0, 2**31), st.lists(st.text(max_size=5), max_size=3))
def test_integers_are_seeds_that_all_libraries_take(seed: int, names: list[str]) -> None:
    stream = Stream(seed, "noise").child(*names)
    assert 0 <= stream.integer() < 2**31
    np.random.RandomState(stream.integer())


def test_children_join_their_names() -> None:
    assert Stream(1, "a").child("b", 2) == Stream(1, "a/b/2") == Stream(1, "a").child("b").child(2)


def state() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_seeded_fixes_the_global_generators_and_puts_them_back() -> None:
    before = state()

    def draws() -> tuple[float, float, float]:
        with Streams(5).init.seeded():
            return random.random(), float(np.random.rand()), float(torch.rand(()))

    first = draws()
    assert state() == before
    random.random(), np.random.rand(), torch.rand(3)
    assert draws() == first


def test_seeded_puts_them_back_after_an_error_too() -> None:
    before = state()
    with pytest.raises(ZeroDivisionError), Streams(5).init.seeded():
        torch.rand(3), np.random.rand(), random.random()
        1 / 0  # noqa: B018
    assert state() == before


def test_streams_do_not_touch_the_global_generators() -> None:
    before = state()
    Streams(0).noise.numpy().random(3)
    torch.rand(3, generator=Streams(0).noise.torch())
    assert state() == before
