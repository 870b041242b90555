"""What changes the fingerprint of a study's code, and what does not."""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from transfuse.study import fingerprint as module
from transfuse.study.fingerprint import _shape, closure, fingerprint

STUDY = '''"""A study."""

from transfuse.statistics import t_interval
from transfuse.study import Study
from transfuse.study.streams import Streams
from guest_package.part import double
from . import near
from .deep import far as away

CARD = Card(
    id="x",
)
STUDY = Study(claims=())
RATE = 0.1


def run(seed):
    """Doubles."""
    STUDY = seed
    return double(seed) * RATE + STUDY
'''
PART = '"""A part."""\n\n\ndef double(x):\n    return 2 * x\n'


@pytest.fixture
def change(plugin_folder: Path) -> Callable[..., str]:
    """``change("study", "0.1", "0.2")``: the fingerprint after an edit of one file; the edit is undone."""
    package = plugin_folder / "guest_package"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    files = {"study": package / "study.py", "part": package / "part.py", "near": package / "near.py"}
    files |= {"far": package / "deep" / "far.py", "deep": package / "deep" / "__init__.py"}
    for name, text in {"study": STUDY, "part": PART, "near": "N = 1\n", "far": "F = 1\n", "deep": ""}.items():
        files[name].write_text(text)

    def changed(file: str = "study", old: str = "", new: str = "") -> str:
        before = files[file].read_text()
        assert old in before
        files[file].write_text(before.replace(old, new) if old else before + new)
        for function in (module.fingerprint, module._source, module._tree):
            function.cache_clear()
        try:
            return fingerprint("guest_package.study")
        finally:
            files[file].write_text(before)

    return changed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A study."""', '"""Another docstring, longer."""'),
        ('    """Doubles."""\n', ""),
        ("RATE = 0.1", "RATE  =  0.1  # why"),
        ("double(seed) * RATE", "double(\n        seed\n    ) * RATE"),
        ("STUDY = Study(claims=())", 'STUDY = Study(claims=(Beats("a", "b"),), notes=("more",))'),
        ('id="x"', 'id="x", summary="better words"'),
    ],
)
def test_words_layout_and_declarations_do_not_change_it(change: Callable[..., str], old: str, new: str) -> None:
    assert change("study", old, new) == change()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("study", "0.1", "0.2"),
        ("study", "double(seed) * RATE", "RATE * double(seed)"),
        ("study", "    STUDY = seed", "    STUDY = seed + 1"),  # a local name is code, whatever it is called
        ("part", "2 * x", "3 * x"),
        ("near", "N = 1", "N = 2"),
        ("far", "F = 1", "F = 2"),
        ("deep", "", "D = 1\n"),
    ],
)
def test_code_changes_it_wherever_the_study_imports_it_from(
    change: Callable[..., str], file: str, old: str, new: str
) -> None:
    assert change(file, old, new) != change()


def test_it_covers_transfuse_modules_but_not_those_that_only_judge_or_store(change: Callable[..., str]) -> None:
    change()
    covered = closure("guest_package.study")
    assert covered == {
        "guest_package",
        "guest_package.study",
        "guest_package.part",
        "guest_package.near",
        "guest_package.deep",
        "guest_package.deep.far",
        "transfuse.statistics",
        "transfuse.study.streams",
    }


def test_fields_that_newer_pythons_add_do_not_change_it() -> None:
    tree = ast.parse("def f(x: int) -> int:\n    return x\n\n\nclass A:\n    y = 'a' f'{1}'\n")
    before = _shape(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node._fields = (*node._fields, "type_params", "new_optional")
            node.type_params, node.new_optional = [], None  # type: ignore[attr-defined]
    assert _shape(tree) == before


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_it_is_the_same_on_other_pythons(change: Callable[..., str], plugin_folder: Path, version: str) -> None:
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"no Python {version} here")
    ours = change()
    code = (
        f"import sys; sys.path[:0] = [{str(plugin_folder)!r}, {str(Path(module.__file__).parents[2])!r}]\n"
        "from transfuse.study.fingerprint import fingerprint; print(fingerprint('guest_package.study'))"
    )
    done = subprocess.run([python, "-S", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == ours, done.stderr


def test_no_module_is_imported_for_it(plugin_folder: Path) -> None:
    """`transfuse status` asks for fingerprints of methods whose hosts take seconds to load, or are not there."""
    package = plugin_folder / "lazy"
    package.mkdir()
    for name, text in {"__init__": "", "part": "raise RuntimeError", "whole": "from lazy.part import double"}.items():
        (package / f"{name}.py").write_text(text)
    assert closure("lazy.whole") == {"lazy.part", "lazy.whole"}
