"""Settings: every layer, every kind of mistake in one line, and what is printed reads back."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from transfuse.config import (
    merge,
    parse_assignments,
    read_settings,
    read_toml,
    resolve,
    settings_of,
    to_plain,
)
from transfuse.errors import UserError


@dataclass(frozen=True)
class Optimiser:
    lr: float = 0.001  # the paper's Table 7
    name: Literal["sgd", "adam"] = "adam"


@dataclass(frozen=True)
class Settings:
    """Settings with all that studies use."""

    epochs: int = 3  # a quarter of the paper's; enough on digits
    dropout: float = 0.1
    verbose: bool = False
    title: str = "a # sign is no comment"  # the reason after it is
    sizes: tuple[int, ...] = (
        8,
        16,
    )  # two layers
    optimiser: Optimiser = Optimiser()
    warmup: Optimiser | None = None
    stages: tuple[Optimiser, ...] = ()
    clients: dict[str, Optimiser] = field(default_factory=dict)
    out: Path = Path("out")


def line(call: Any, *arguments: Any) -> str:
    """The one line that a mistake gives."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_later_layers_win_key_by_key() -> None:
    found = resolve(Settings, {"optimiser": {"lr": 1.0, "name": "sgd"}}, {"optimiser": {"lr": 0.5}, "epochs": 7})
    assert found == Settings(epochs=7, optimiser=Optimiser(0.5, "sgd"))
    assert resolve(Settings) == Settings()


def test_layers_are_not_changed_by_merging() -> None:
    scale = {"a": {"b": {"c": 1}}}
    before = copy.deepcopy(scale)
    assert merge(scale, {"a": {"b": {"c": 2, "d": 3}}}) == {"a": {"b": {"c": 2, "d": 3}}}
    assert scale == before


@pytest.mark.parametrize(
    ("values", "place", "hint"),
    [
        ({"epoch": 1}, "settings has no key 'epoch'", "'epochs'"),
        ({"optimiser": {"lrr": 1}}, "settings.optimiser has no key 'lrr'", "'lr'"),
        ({"warmup": {"lrr": 1}}, "settings.warmup has no key 'lrr'", "'lr'"),
        ({"stages": [{}, {"nam": "sgd"}]}, "settings.stages[1] has no key 'nam'", "'name'"),
        ({"clients": {"a": {"lrr": 1}}}, "settings.clients.a has no key 'lrr'", "'lr'"),
    ],
)
def test_unknown_keys_are_named_at_any_depth_with_the_nearest_known_one(values: Any, place: str, hint: str) -> None:
    message = line(resolve, Settings, values)
    assert place in message and f"did you mean {hint}?" in message


def test_unknown_key_that_resembles_none_lists_the_known_ones() -> None:
    assert "known keys: epochs, dropout" in line(resolve, Settings, {"zzzzz": 1})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": "many"}, ("epochs = 'many'", "valid integer")),
        ({"epochs": 2.5}, ("epochs = 2.5", "integer")),
        ({"optimiser": {"name": "lion"}}, ("optimiser.name = 'lion'", "'sgd' or 'adam'")),
        ({"optimiser": 3}, ("optimiser = 3",)),
        ({"sizes": [1, "x"]}, ("sizes.1 = 'x'", "integer")),
        ({"verbose": "perhaps"}, ("verbose = 'perhaps'", "boolean")),
    ],
)
def test_values_of_the_wrong_type_say_which_and_what_was_expected(values: Any, words: tuple[str, ...]) -> None:
    message = line(resolve, Settings, values)
    assert all(word in message for word in words)


def test_assignments_are_toml_or_plain_text() -> None:
    found = parse_assignments(["optimiser.lr=1e-2", "optimiser.name=sgd", "sizes=[1, 2]", "verbose=true", 'title="="'])
    assert found == {"optimiser": {"lr": 0.01, "name": "sgd"}, "sizes": [1, 2], "verbose": True, "title": "="}
    assert parse_assignments(["a=x=y", "b="]) == {"a": "x=y", "b": ""}


@pytest.mark.parametrize("text", ["epochs", "=3", "a..b=1", ".a=1", ""])
def test_malformed_assignments_show_how(text: str) -> None:
    assert "--set epochs=3" in line(parse_assignments, [text])


def test_assignment_below_a_value() -> None:
    assert "'a' to be a table" in line(parse_assignments, ["a=1", "a.b=2"])


def test_toml_files_and_what_can_be_wrong_with_them(tmp_path: Path) -> None:
    good, bad, binary = tmp_path / "good.toml", tmp_path / "bad.toml", tmp_path / "binary.toml"
    good.write_text("[optimiser]\nlr = 0.5\n")
    bad.write_text("lr = = 1")
    binary.write_bytes(b"\xff\xfe\x00")
    assert read_toml(good) == {"optimiser": {"lr": 0.5}}
    assert "line 1" in line(read_toml, bad)
    assert "not UTF-8" in line(read_toml, binary)
    assert "No such file" in line(read_toml, tmp_path / "absent.toml")
    assert "directory" in line(read_toml, tmp_path)


def test_reasons_are_read_from_the_source() -> None:
    found = {setting.name: setting for setting in settings_of(Settings)}
    assert found["epochs"].reason == "a quarter of the paper's; enough on digits"
    assert (found["epochs"].type, found["epochs"].default) == ("int", "3")
    assert found["title"].reason == "the reason after it is"
    assert found["sizes"].reason == "two layers"
    assert found["dropout"].reason == ""
    assert list(found) == [setting.name for setting in read_settings(Path(__file__).read_text(), "Settings")]
    assert read_settings("x = 1", "Settings") == []


def test_required_settings_are_marked() -> None:
    (only,) = read_settings("class Config:\n    folder: str  # where the model lies\n")
    assert (only.default, only.reason) == ("(required)", "where the model lies")


optimisers = st.builds(Optimiser, st.floats(allow_nan=False), st.sampled_from(["sgd", "adam"]))
texts = st.text(max_size=8)


@hypothesis_settings(max_examples=40)
@given(
    st.builds(
        Settings,
        epochs=st.integers(-(2**60), 2**60),
        dropout=st.floats(allow_nan=False),
        verbose=st.booleans(),
        title=texts,
        sizes=st.lists(st.integers(0, 9), max_size=3).map(tuple),
        optimiser=optimisers,
        warmup=st.none() | optimisers,
        stages=st.lists(optimisers, max_size=2).map(tuple),
        clients=st.dictionaries(texts, optimisers, max_size=2),
        out=st.sampled_from([Path("a"), Path("a/b")]),
    )
)
def test_settings_in_a_cell_read_back_as_they_were(settings: Settings) -> None:
    assert resolve(Settings, to_plain(settings)) == settings
