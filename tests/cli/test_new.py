"""`transfuse new`: what it writes works, in a package of one's own and in a checkout, and nothing is overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from transfuse import registry
from transfuse.registry import load_registry
from transfuse.testing import CHECKS, _quick, check

ROOT = Path(__file__).resolve().parent.parent.parent


def install(folder: Path, site: Path) -> None:
    """What pip makes of the entry points of a project."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = site / "plugin-0.1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1\n", encoding="utf-8")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {module}\n" for name, module in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("".join(groups), encoding="utf-8")


@pytest.fixture
def package(transfuse: Callable, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package made by the command, with two methods, as installed."""
    for method in ("mine", "second"):
        done = transfuse("new", method, "--family", "continual", "--package", "transfuse-mine")
        assert done.status == 0, done.err
    folder, site = workplace / "transfuse-mine", workplace.parent / "mine_site"
    install(folder, site)
    paths = [str(folder / "src"), str(site)]
    monkeypatch.setattr(sys, "path", [*paths, *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*paths, os.environ["PYTHONPATH"]]))
    _forget()
    yield folder
    _forget("transfuse_mine")


def _forget(*packages: str) -> None:
    load_registry.cache_clear()
    _quick.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        del sys.modules[name]


def test_a_package_of_ones_own_keeps_the_contract_and_runs(package: Path, transfuse: Callable) -> None:
    assert not load_registry().warnings
    for method in ("mine", "second"):
        assert Path(load_registry()[method].path) == package / "src" / "transfuse_mine" / f"{method}.py"
    for name in CHECKS:
        check(name, "mine")
    assert {"mine", "second"} <= {line.split(" ")[0] for line in transfuse("list").out.splitlines()}
    done = transfuse("run", "mine", "--scale", "quick", "--jobs", "1")
    assert done.status == 0 and "1 cell run" in done.out, done
    assert "Is the mean image of a digit" in transfuse("show", "mine").out


def test_its_own_tests_and_bench_pass(package: Path) -> None:
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_second.py"]
    done = subprocess.run(
        [sys.executable, *words], cwd=package, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout
    words = ["bench/second.py", "--repeats", "1", "--json"]
    done = subprocess.run([sys.executable, *words], cwd=package, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["ratio"] > 0


@pytest.fixture
def checkout(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of this repository without any method; its packages come before the real ones."""
    import transfuse.methods
    import transfuse.studies

    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (workplace / "pyproject.toml").write_text(project, encoding="utf-8")
    for part in (transfuse.methods, transfuse.studies):
        folder = workplace / "src" / "transfuse" / part.__name__.split(".")[1]
        folder.mkdir(parents=True)
        monkeypatch.setattr(part, "__path__", [str(folder)])
    monkeypatch.setattr(registry, "_ROOT", workplace / "src" / "transfuse")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(_FAMILY)}
    _forget()
    yield workplace
    for name in [name for name in sys.modules if name.startswith(_FAMILY)]:
        del sys.modules[name]
    sys.modules.update(before)
    _forget()


_FAMILY = ("transfuse.methods.continual", "transfuse.studies.continual")


def test_in_a_checkout_the_files_go_where_methods_are(
    checkout: Path, transfuse: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout / "src" / "transfuse")  # anywhere inside
    done = transfuse("new", "mine", "--family", "continual")
    assert done.status == 0, done.err
    written = {str(path.relative_to(checkout)) for path in checkout.rglob("*.py")}
    assert written == {
        "src/transfuse/methods/continual/__init__.py",
        "src/transfuse/methods/continual/mine.py",
        "src/transfuse/studies/continual/__init__.py",
        "src/transfuse/studies/continual/mine.py",
        "tests/methods/continual/test_mine.py",
        "bench/mine.py",
    }
    load_registry.cache_clear()
    assert load_registry()["mine"].study_module == "transfuse.studies.continual.mine"
    for name in CHECKS:
        check(name, "mine")


def test_what_is_written_passes_the_linter_of_this_repository(checkout: Path, transfuse: Callable) -> None:
    assert transfuse("new", "mine", "--family", "continual").status == 0
    (checkout / "src" / "transfuse" / "study").mkdir()
    for name in (
        "card",
        "errors",
        "study/__init__",
        "study/stage",
        "study/streams",
    ):  # so that ruff knows whose they are
        (checkout / "src" / "transfuse" / f"{name}.py").touch()
    for words in (("check", "."), ("format", "--check", ".")):
        done = subprocess.run([sys.executable, "-m", "ruff", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_nothing_is_overwritten(package: Path, transfuse: Callable) -> None:
    before = {path: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    (package / "bench" / "third.py").touch()
    for method, given in (("mine", "'mine' is taken"), ("third", "bench/third.py' is already there")):
        done = transfuse("new", method, "--family", "continual", "--package", "transfuse-mine")
        assert done.status == 2 and given in done.err
    assert {path: path.read_bytes() for path in before} == before
    assert not list(package.rglob("third_study.py"))


@pytest.mark.parametrize(
    ("project", "given"),
    [
        ("[tool.other]\n", "names no project"),
        ("not toml", "names no project"),
        (
            '[project]\nname = "p"\nentry-points = { "transfuse.methods" = {} }\n',
            "entry points that cannot be extended",
        ),
    ],
)
def test_a_project_file_that_cannot_be_extended_is_left_alone(
    project: str, given: str, transfuse: Callable, workplace: Path
) -> None:
    (workplace / "pyproject.toml").write_text(project, encoding="utf-8")
    done = transfuse("new", "mine", "--family", "continual", "--package", ".")
    assert done.status == 2 and given in done.err, done.err
    assert [path.name for path in workplace.iterdir()] == ["pyproject.toml"]
    assert (workplace / "pyproject.toml").read_text(encoding="utf-8") == project


def test_a_project_without_entry_points_gets_them(transfuse: Callable, workplace: Path) -> None:
    (workplace / "pyproject.toml").write_text('[project]\nname = "my-lab"', encoding="utf-8")
    assert transfuse("new", "mine", "--family", "continual", "--package", ".").status == 0
    project = tomllib.loads((workplace / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["transfuse.studies"] == {"mine": "my_lab.mine_study"}


def test_a_package_that_is_laid_out_otherwise_is_followed(transfuse: Callable, workplace: Path) -> None:
    """Modules beside the project file, in a package that is not named after the project."""
    folder = workplace / "easy-adapt"
    (folder / "easyadapt").mkdir(parents=True)
    (folder / "easyadapt" / "__init__.py").touch()
    project = '[project]\nname = "easy-adapt"\n\n[project.entry-points."transfuse.methods"]\nea = "easyadapt.ea"\n'
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")
    assert transfuse("new", "mine", "--family", "continual", "--package", "easy-adapt").status == 0
    assert {path.name for path in (folder / "easyadapt").iterdir()} == {"__init__.py", "mine.py", "mine_study.py"}
    points = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    assert points["transfuse.methods"] == {"mine": "easyadapt.mine", "ea": "easyadapt.ea"}


def test_a_full_disk_leaves_nothing_behind(
    transfuse: Callable, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from transfuse.cli import new

    def no_space(path: Path, text: str) -> None:
        if path.name.startswith("test_"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    monkeypatch.setattr(new, "write_text", no_space)
    done = transfuse("new", "mine", "--family", "continual", "--package", "lab")
    assert done.status == 2 and "no space left" in done.err
    assert not [path for path in workplace.rglob("*") if path.is_file()]
