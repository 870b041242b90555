"""The documentation site: pages are those of the cards and the cells, links lead somewhere, examples are complete.

Snippets of the guides are run by test_readme.py, as those of the README are.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import sys
import tomllib
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from transfuse.config import resolve, to_plain
from transfuse.registry import import_study, load_registry
from transfuse.study.design import Measurement
from transfuse.study.fingerprint import fingerprint
from transfuse.study.store import Cell, CellSpec, Store

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
APP = ROOT / "examples" / "federated" / "fedglad_app"
PAGES = sorted(DOCS.rglob("*.md"))
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_TITLED = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_pages", DOCS / "generate_pages.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def configuration() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def test_pages_of_methods_are_up_to_date(generator: ModuleType) -> None:
    made = generator.pages()
    assert {path.name for path in (DOCS / "methods").glob("*.md")} == set(made), "type: make docs"
    for name, content in made.items():
        assert (DOCS / "methods" / name).read_text(encoding="utf-8") == content, f"{name} is out of date: make docs"
    configuration = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert generator.navigation(configuration) == configuration, "mkdocs.yml is out of date: type make docs"


def test_a_page_shows_our_verdict_beside_the_published_figure(generator: ModuleType, tmp_path: Path) -> None:
    _store_cells(tmp_path, {"fedavg": 0.7, "glad_group": 0.8})
    page = generator.pages(tmp_path)["fedglad.md"]
    (row,) = (line for line in page.splitlines() if "gains of about" in line and "supported" in line)
    assert "✓ supported" in row and "glad_group 0.8" in row and "+0.1" in row
    assert "12.5 s" not in page and "12 s" in page  # measured
    assert "**Stale**" not in page
    assert "small: 1 supported" in generator.pages(tmp_path)["index.md"]


def test_a_page_says_what_is_stale_and_why_a_claim_failed(generator: ModuleType, tmp_path: Path) -> None:
    _store_cells(tmp_path, {"fedavg": 0.8, "glad_group": 0.7}, code="0" * 16)
    page = generator.pages(tmp_path)["fedglad.md"]
    assert "✗ contradicted" in page and "likely because" in page
    assert "**Stale**: seeds 0-4" in page


def test_cells_with_settings_given_by_hand_stay_out(generator: ModuleType, tmp_path: Path) -> None:
    _store_cells(tmp_path, {"fedavg": 0.7, "glad_group": 0.8}, rounds=7)
    assert "No cells with these settings are stored" in generator.pages(tmp_path)["fedglad.md"]


def _store_cells(folder: Path, accuracy: dict[str, float], code: str = "", **overrides: Any) -> None:
    """Five cells of fedglad in which each arm has an accuracy of about that."""
    entry = load_registry()["fedglad"]
    settings = to_plain(resolve(import_study(entry).STUDY.settings, overrides))
    where = {"data": "digits", "alpha": 0.1, "policy": "uniform"}
    for seed in range(5):
        spec = CellSpec("fedglad", "small", seed, settings, {}, code or fingerprint(entry.study_module or ""))
        measured = [Measurement(arm, "accuracy", value + 0.001 * seed * (arm == "fedavg"), where)
                    for arm, value in accuracy.items()]  # fmt: skip
        cost = {"wall_s": 12.4, "cpu_s": 12.0, "peak_mb": 300.0}
        Store(folder).write(Cell(spec, tuple(measured), cost, {"threads": 1, "versions": {}}))


def test_examples_on_pages_are_complete_scripts(generator: ModuleType) -> None:
    source = "import numpy as np\nimport os\n\ndef double(x): return x\n\nclass Config: ...\n"
    example = "from math import pi\nx = double(np.pi + pi)\nprint(x)"
    made = generator.with_imports(example, source, "package.module")
    assert made.splitlines() == [
        "import numpy as np",
        "from math import pi",
        "from package.module import double",
        "",
        "x = double(np.pi + pi)",
        "print(x)",
    ]


@EVERY_PAGE
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    prose = _FENCED.sub("", page.read_text(encoding="utf-8"))
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1, "a page has one title"
    for target in _LINK.findall(prose):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other in PAGES, f"{page.name} links to {target}, which is no page"
        if anchor:
            assert anchor in _anchors(other), f"{page.name} links to {target}; {other.name} has {_anchors(other)}"


def _anchors(page: Path) -> list[str]:
    """The ids that Python-Markdown gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (unicodedata.normalize("NFKD", heading.replace("`", "")).encode("ascii", "ignore") for heading in headings)
    return [re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text.decode()).strip().lower()) for text in plain]


@EVERY_PAGE
def test_markdown_is_what_mkdocs_and_readers_of_the_source_both_see(page: Path) -> None:
    lines = _FENCED.sub("", page.read_text(encoding="utf-8")).splitlines()
    for before, line in itertools.pairwise(lines):
        starts = re.match(r"(- |1\. |\| )", line) and not re.match(r"\s*(- |\d+\. |\|)", before)
        apart = not before.strip() or before.startswith(("  ", "<!-- "))
        assert not starts or apart, f"no empty line before: {line[:60]}"
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    assert all(widths), "a row of a table has bars"


def test_navigation_names_every_page_once(configuration: dict[str, Any]) -> None:
    named = list(_leaves(configuration["nav"]))
    assert sorted(named) == [str(page.relative_to(DOCS)) for page in PAGES]


def _leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from _leaves(item)


def test_site_loads_nothing_from_elsewhere(configuration: dict[str, Any]) -> None:
    assert configuration["theme"]["font"] is False
    fetching = {"extra_javascript", "extra_css", "repo_url", "extra"}  # a repository address asks for its stars
    assert not fetching & configuration.keys()


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra docs is not installed")
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    built = {path.relative_to(tmp_path / "site").with_suffix(".md") for path in (tmp_path / "site").rglob("*.html")}
    assert {page.relative_to(DOCS) for page in PAGES} <= built
    for path in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?://[^\s\">]+)", path.read_text("utf-8"))
        assert not loaded, f"{path.name} loads {loaded}"


def test_every_method_can_be_chosen_by_what_one_has() -> None:
    guide = (DOCS / "choose.md").read_text(encoding="utf-8")
    ours = [entry.id for entry in load_registry().entries.values() if entry.module.startswith("transfuse.")]
    assert [method for method in ours if f"(methods/{method}.md)" not in guide] == []


def test_deployment_is_the_one_that_is_tested() -> None:
    guide = (DOCS / "deployment.md").read_text(encoding="utf-8")
    project = (APP / "pyproject.toml").read_text(encoding="utf-8")
    for line in project.splitlines():
        if line.startswith(("#   flower-", "#   printf", "#   export")):
            assert line.removeprefix("#").strip() in guide, f"the guide lacks: {line}"
    changed = re.search(r'--run-config "([^"]+)"', guide)
    assert changed is not None
    known = tomllib.loads(project)["tool"]["flwr"]["app"]["config"]
    assert {pair.partition("=")[0] for pair in changed[1].split()} <= known.keys()
    files = re.findall(r"^\| `([\w/.]+)` \|", guide, re.MULTILINE)
    assert files and all((APP / name).exists() for name in files)


@pytest.fixture(scope="module")
def plug_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the guide on adding methods, as a user would have it after installing."""
    folder = tmp_path_factory.mktemp("easy-adapt")
    for name, content in _TITLED.findall((DOCS / "add.md").read_text(encoding="utf-8")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    (folder / "easyadapt" / "__init__.py").touch()
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {module}\n" for name, module in table.items())
        for group, table in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    return folder


def test_the_plug_in_of_the_guide_keeps_the_contract(plug_in: Path) -> None:
    done = _python(plug_in, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert re.search(r"(\d+) passed", done.stdout)


def test_the_plug_in_of_the_guide_is_listed_and_runs(plug_in: Path) -> None:
    listed = _python(plug_in, "-m", "transfuse", "list")
    assert "easy_adapt" in listed.stdout and not listed.stderr, listed.stderr
    run = _python(plug_in, "-m", "transfuse", "run", "easy_adapt", "--results", str(plug_in / "results"))
    assert run.returncode == 0 and "easy_adapt, scale small, 5 seeds" in run.stdout, run.stderr


def _python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TRANSFUSE_CACHE": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
