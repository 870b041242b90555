"""Cards are read and not run; what cannot be read is named; listing loads no framework."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from transfuse.card import FAMILIES, Card
from transfuse.errors import MissingExtraError, UserError
from transfuse.registry import (
    Entry,
    Registry,
    import_method,
    import_study,
    load_registry,
    missing_packages,
    read_card,
)

VALUES = {
    "id": "guest",
    "title": "A Guest",
    "summary": "Does nothing much.",
    "authors": "A. Author, B. Author",
    "year": 2024,
    "venue": "Example",
    "url": "https://example.org",
    "family": "negatives",
    "host": "none",
    "entry": "guest.Guest",
    "needs": (),
    "data": "numbers",
    "problems": ("what is it?",),
    "extra": "kg",
    "requires": (),
    "differs": (),
}


def card_text(**changes: object) -> str:
    values = {**VALUES, **changes}
    body = "".join(f"    {key}={value if key.startswith('raw') else repr(value)},\n" for key, value in values.items())
    return f'"""A guest."""\n\nCARD = Card(\n{body})\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "guest.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_card_is_read_without_running_its_module(tmp_path: Path) -> None:
    path = written(tmp_path, "import a_package_that_is_not_there\n1 / 0\n" + card_text(title="Ünïcode ⊕"))
    assert read_card(path) == Card(**{**VALUES, "title": "Ünïcode ⊕"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "has no `CARD = Card(` block"),
        (card_text().replace("\n)\n", "\n    )\n"), "has no `CARD = Card(` block"),
        (card_text().replace("'A Guest'", "make_title()"), "'title' is not a literal"),
        (card_text().replace("'A Guest'", "{[]: 1}"), "'title' is not a literal"),
        (card_text().replace("'A Guest'", "'A Guest"), "not valid Python"),
        (card_text(titel="x"), "no field 'titel' did you mean 'title'?"),
        (card_text().replace("    title='A Guest',\n", ""), "title"),
        (card_text().replace("CARD = Card(\n", "CARD = Card(\n    'guest',\n"), "keyword arguments only"),
        (card_text().replace("    id=", "    **{}, id="), "keyword arguments only"),
        (card_text(family="fish"), "family 'fish' is none of distillation"),
        (card_text(status="great"), "status 'great' is none of experimental"),
        (card_text(needs="a teacher"), "needs must be a tuple"),
    ],
)
def test_what_is_wrong_with_a_card_is_said_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_card(written(tmp_path, text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_paper_as_bibtex() -> None:
    text = Card(**VALUES).bibtex()  # type: ignore[arg-type]
    assert text.startswith("@article{guest2024,") and "A. Author and B. Author" in text
    assert text.count("{") == text.count("}")


def registry(*families: str) -> Registry:
    cards = [Card(**{**VALUES, "id": f"m{i}", "family": family}) for i, family in enumerate(families)]  # type: ignore[arg-type]
    return Registry({card.id: Entry(card, "m", Path("m.py")) for card in cards})


def test_unknown_names_are_answered_with_the_nearest_known_one() -> None:
    found = Registry({name: registry("negatives").entries["m0"] for name in ("lemon", "fedglad")})
    with pytest.raises(UserError, match="did you mean 'lemon'"):
        found["lemmon"]
    with pytest.raises(UserError, match="one of fedglad, lemon"):
        found["zzz"]
    with pytest.raises(UserError, match="did you mean 'negatives'"):
        registry("negatives", "federated").family("negative")
    assert [entry.id for entry in registry("negatives", "federated").family("federated")] == ["m1"]


Install = Callable[..., Registry]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs plug-ins into a temporary folder and loads the registry: ``install({"id": "module"}, file=text)``."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def installed(methods: dict[str, str], studies: dict[str, str] | None = None, **files: str) -> Registry:
        info = tmp_path / "guest-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 0.1\n")
        tables = {"methods": methods, "studies": studies or {}}
        (info / "entry_points.txt").write_text(
            "\n".join(
                f"[transfuse.{group}]\n" + "".join(f"{name} = {module}\n" for name, module in table.items())
                for group, table in tables.items()
            )
        )
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        load_registry.cache_clear()
        return load_registry()

    yield installed
    load_registry.cache_clear()


def test_a_plug_in_is_listed_with_its_study(install: Install) -> None:
    found = install({"guest": "guest_module"}, {"guest": "guest_study"}, guest_module=card_text())
    assert found["guest"].module == "guest_module"
    assert found["guest"].study_module == "guest_study"
    assert "guest_module" not in sys.modules
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("methods", "files", "reason"),
    [
        ({"guest": "absent_module"}, {}, "was not found"),
        ({"guest": "absent_package.part"}, {}, "absent_package"),
        ({"guest": "guest_module"}, {"guest_module": "x = 1\n"}, "has no `CARD"),
        ({"guest": "guest_module"}, {"guest_module": card_text(id="other")}, "its card says 'other'"),
        ({"guest": "guest_module"}, {"guest_module": card_text(family="fish")}, "'fish'"),
        ({"guest": "sys"}, {}, "was left out"),
    ],
)
def test_a_plug_in_that_fails_is_a_warning_and_the_others_are_listed(
    install: Install, methods: dict[str, str], files: dict[str, str], reason: str
) -> None:
    found = install({**methods, "good": "good_module"}, good_module=card_text(id="good"), **files)
    assert "good" in found.entries and "guest" not in found.entries
    (warning,) = found.warnings
    assert warning.startswith("plug-in 'guest'") and reason in warning


def test_a_plug_in_cannot_take_the_place_of_a_method(install: Install) -> None:
    ours = next(iter(load_registry().entries), None)
    if ours is None:  # no method in this checkout yet
        pytest.skip("no methods")
    found = install({ours: "guest_module"}, guest_module=card_text(id=ours))
    assert "is taken by" in found.warnings[0]
    assert found[ours].module.startswith("transfuse.")


def test_what_is_missing_is_said_with_the_command_that_gets_it(tmp_path: Path) -> None:
    card = Card(**{**VALUES, "requires": ("math", "no_such_package")})  # type: ignore[arg-type]
    entry = Entry(card, "math", tmp_path)
    assert missing_packages(card) == ["no_such_package"]
    with pytest.raises(MissingExtraError, match=r"'no_such_package'.*pip install 'transfuse\[kg\]'"):
        import_method(entry)
    with pytest.raises(UserError, match="has no study"):
        import_study(entry)
    assert import_method(Entry(Card(**VALUES), "math", tmp_path)).pi > 3  # type: ignore[arg-type]


def test_cards_of_this_package_are_complete() -> None:
    found = load_registry()
    for entry in found.entries.values():
        assert entry.card.family in FAMILIES
        assert all(getattr(entry.card, field.name) != "" for field in fields(Card))
    assert len(found.entries) == len({entry.module for entry in found.entries.values()})


def test_reading_the_registry_loads_no_framework() -> None:
    code = (
        "import sys, transfuse; from transfuse.registry import load_registry; load_registry()\n"
        "heavy = {'torch', 'numpy', 'scipy', 'sklearn', 'transformers', 'flwr', 'pykeen', 'pydantic', 'jinja2'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    source = Path(importlib.util.find_spec("transfuse").origin).parents[1]  # type: ignore[union-attr, arg-type]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(source)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
