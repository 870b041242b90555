"""The pages as a browser shows them: quiet console, no request, sorting, filters, values on hovering, no overflow."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from report.browser import CHROMIUM, DRIVER, MISSING, Browser
from transfuse.audit import AuditReport, Finding
from transfuse.cli.compare import comparison
from transfuse.study.evidence import Evidence
from transfuse.study.report import render_audit, render_comparison, write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason=MISSING)
Make = Callable[..., Evidence]
EVERY_PAGE = pytest.mark.parametrize("name", ["report", "comparison", "audit"])
BOTH_SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])
SHOWN = """
const rows = [...document.querySelectorAll(arguments[0] + " tbody tr")].filter((row) => row.checkVisibility());
return rows.map((row) => [...row.cells].map((cell) => cell.dataset.sort ?? cell.textContent.trim()));"""
TIP = 'const tip = document.querySelector(".tip"); return tip.hidden ? null : tip.textContent;'
CONTRAST = """
const channel = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
const luminance = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const ground = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const found = numbers(getComputedStyle(e).backgroundColor);
    if (found.length === 3 || found[3] > 0) return found;
  }
  return [255, 255, 255];
};
const faint = new Set();
for (const element of document.querySelectorAll("body *")) {
  const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!text || !element.checkVisibility() || element.closest("script, option, title")) continue;
  const style = getComputedStyle(element);
  const drawn = element.closest("svg") ? style.fill : style.color;
  const [a, b] = [luminance(numbers(drawn)), luminance(ground(element))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) faint.add(`${element.localName}.${element.getAttribute("class")} ${ratio.toFixed(2)}`);
}
return [...faint];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def pages(make_evidence: Make, tmp_path: Path) -> dict[str, Path]:
    """A report, a comparison and an audit, each as a file."""
    small, public = make_evidence("toy"), make_evidence("toy", scale="public", seeds=6)
    written = write_report([small, public, make_evidence("plumbing", scale="quick", seeds=1)], tmp_path)
    pair = [(small, public)]
    compared = tmp_path / "compare.html"
    compared.write_text(render_comparison(pair, [comparison(*pair[0])], ("results:small", "results:public")))
    finding = Finding("false negatives", 0.12, (0.08, 0.16), 0.05, "finding", "12 % are true", "filter them")
    audited = tmp_path / "audit.html"
    audited.write_text(render_audit(AuditReport("an index", "lemon", (finding,), 0.031, "200 clean ones", {"n": 3})))
    return {"report": written.html, "comparison": compared, "audit": audited}


@EVERY_PAGE
@BOTH_SCHEMES
def test_a_page_opens_without_a_word_or_a_request(
    browser: Browser, pages: dict[str, Path], name: str, scheme: str
) -> None:
    browser.logged()
    browser.open(pages[name], scheme=scheme)
    assert browser.logged() == []
    assert set(browser.requested(pages[name])) == {pages[name].resolve().as_uri()}


@EVERY_PAGE
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_a_page_is_no_wider_than_the_screen(browser: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    browser.open(pages[name], width=width)
    browser.run("for (const fold of document.querySelectorAll('details')) fold.open = true;")
    assert browser.run("return document.documentElement.scrollWidth") == width


@EVERY_PAGE
@BOTH_SCHEMES
def test_text_can_be_read(browser: Browser, pages: dict[str, Path], name: str, scheme: str) -> None:
    """Contrast of at least 4.5, the AA level of the web's accessibility guidelines."""
    browser.open(pages[name], scheme=scheme)
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 28)")
    assert browser.run(CONTRAST) == []


def test_columns_sort_both_ways(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"])
    head = "#claims th:nth-child(4) button"  # effects
    browser.click(head)
    effects = [float(row[3]) for row in browser.run(SHOWN, "#claims")]
    assert len(effects) == 8 and effects == sorted(effects)
    browser.click(head)
    assert [float(row[3]) for row in browser.run(SHOWN, "#claims")] == sorted(effects, reverse=True)
    browser.type("#claims th:nth-child(2) button", "\ue007")  # the Enter key, on the claims
    claims = [row[1] for row in browser.run(SHOWN, "#claims")]
    assert claims == sorted(claims, key=str.lower)
    assert browser.run("return document.querySelector('#claims th:nth-child(2)').ariaSort") == "ascending"


def test_a_phone_sorts_by_a_list(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"], width=390)
    browser.type("#claims select", "effect ↓")
    effects = [float(row[3]) for row in browser.run(SHOWN, "#claims")]
    assert effects == sorted(effects, reverse=True)


def test_words_and_boxes_filter(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"])
    browser.type("#claims [type=search]", "public noise")
    assert [row[1] for row in browser.run(SHOWN, "#claims")] == ["accuracy of method falls along noise"]
    assert browser.run("return document.querySelector('#claims output').value") == "1 of 8 shown"
    browser.open(pages["report"])
    kinds = {row[2] for row in browser.run(SHOWN, "#claims")}
    browser.click("#claims [value=supported]")
    assert {row[2] for row in browser.run(SHOWN, "#claims")} == kinds - {"✓ supported"} != kinds
    browser.type("#ledger [type=search]", "no such word")
    assert browser.run(SHOWN, "#ledger") == []


@pytest.mark.parametrize("width", [390, 1280])
def test_a_forest_plot_tells_its_values(browser: Browser, pages: dict[str, Path], width: int) -> None:
    browser.open(pages["report"], width=width)
    browser.hover("article .mark .mean")
    assert browser.run(TIP).startswith("mean +0.0") and "95 % interval" in browser.run(TIP)
    browser.hover("article .seed")
    assert re.fullmatch(r"seed \d: [+-]?[\d.]+", browser.run(TIP))
    browser.hover("article h3")
    assert browser.run(TIP) is None


def test_curves_tell_their_values_to_pointer_and_keys(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"])
    browser.hover("article svg.curves")
    assert browser.run(TIP).startswith("step ") and browser.run(TIP).count("\n") == 4  # an arm a line
    browser.open(pages["report"])
    browser.type("article svg.curves", "\ue012\ue012")  # the left arrow, twice
    assert browser.run(TIP).splitlines()[0] == "step 10"
    browser.type("article svg.curves", "\ue00c")  # escape
    assert browser.run(TIP) is None


def test_without_scripts_the_page_is_complete(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare.html"
    bare.write_text(pages["report"].read_text().partition("<script>")[0])
    browser.open(bare)
    assert len(browser.run(SHOWN, "#claims")) == 8
    assert browser.run("return document.querySelector('.tools').checkVisibility()") is False
    assert browser.run("return document.querySelectorAll('article .mark title').length") > 8
