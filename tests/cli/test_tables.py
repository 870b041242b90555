"""Tables and short forms of numbers."""

from __future__ import annotations

import pytest

from transfuse.cli import tables


def test_outside_a_terminal_a_row_is_a_line() -> None:
    text = tables.table(("A", "B"), [("x", "word " * 60), ("longer", 3)])
    assert text.splitlines()[1:] == ["x       " + "word " * 59 + "word", "longer  3"]


def test_in_a_terminal_the_widest_column_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_terminal_width", lambda: 40)
    lines = tables.table(
        ("ID", "TEXT", "N"), [("x", "several words that need more than one line", 7)], "  "
    ).splitlines()
    assert all(len(line) <= 40 for line in lines[1:])
    assert lines[1].startswith("  x   several words") and lines[1].endswith("7")
    assert " ".join(line.strip() for line in lines[2:]).endswith("one line")


def test_outcomes_are_coloured_and_plain_text_is_not() -> None:
    text = tables.table(("VERDICT", "CLAIM"), [("supported", "it is supported")])
    assert "\x1b[32msupported\x1b[0m" in text and text.endswith("it is supported")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0.4 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_495_390, "2.5 MB"), (5e12, "5.0 TB")]
)
def test_size(number: float, text: str) -> None:
    assert tables.size(number) == text


def test_count() -> None:
    assert (tables.count(1, "cell"), tables.count(0, "cell")) == ("1 cell", "0 cells")
    assert tables.count(2, "study", "studies") == "2 studies"
