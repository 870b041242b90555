"""The report page: everything is on it, it needs nothing else, and it is the same every time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

import pytest

from transfuse.audit import AuditReport, Finding
from transfuse.errors import UserError
from transfuse.registry import Registry
from transfuse.study.evidence import Evidence
from transfuse.study.report import (
    method_table_markdown,
    render_audit,
    verdict_table_markdown,
    write_report,
)
from transfuse.study.store import Cell

Make = Callable[..., Evidence]


class Page(HTMLParser):
    """Checks that tags close, and collects what a reader or a browser would use."""

    VOID: ClassVar[set[str]] = {"meta", "input", "br"}
    SHAPES: ClassVar[set[str]] = {"line", "rect", "circle", "path"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if tag == "a" else []
        self.loads += [f"{tag} {name}" for name in ("src", "srcset") if name in values]
        self.loads += [tag] if tag in {"link", "iframe", "object", "embed", "img", "base"} else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.SHAPES, f"<{tag}/> is no shape"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += data


def text_of(text: str) -> str:
    return " ".join(Page(text).words.split())


@pytest.fixture
def evidence(make_evidence: Make) -> list[Evidence]:
    return [
        make_evidence("toy"),
        make_evidence("toy", scale="public", seeds=3),
        make_evidence("another", seeds=6, code="d" * 16),
        make_evidence("plumbing", scale="quick", seeds=1),
    ]


@pytest.fixture
def written(evidence: list[Evidence], tmp_path: Path) -> tuple[str, str]:
    files = write_report(evidence, tmp_path / "out", title="A <title> & more")
    return files.html.read_text(encoding="utf-8"), files.markdown.read_text(encoding="utf-8")


def test_the_page_is_whole_and_loads_nothing(written: tuple[str, str]) -> None:
    page = Page(written[0])
    assert page.loads == []
    assert len(page.ids) == len(set(page.ids))
    inside = {link[1:] for link in page.links if link.startswith("#")}
    assert inside <= set(page.ids)
    assert {link for link in page.links if not link.startswith("#")} == {"https://example.org/paper"}
    style = re.search(r"<style>(.*?)</style>", written[0], re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    assert "default-src 'none'" in written[0]


def test_it_is_escaped(written: tuple[str, str]) -> None:
    assert "<title>A &lt;title&gt; &amp; more</title>" in written[0]
    assert "<from>" not in written[0] and "Learning &lt;from&gt; a Teacher &amp; a Half" in written[0]
    assert "Learning \\<from>" in written[1] and "odd \\| pipe" in written[1]


def test_both_forms_say_the_same(written: tuple[str, str]) -> None:
    words, markdown = text_of(written[0]), written[1]
    for part in (
        "method beats no_transfer by more than 0.01 on accuracy",
        "accuracy of method falls along noise",
        "placebo is within 0.05 of no_transfer on accuracy",
        "0.93 against 0.90",
        "the teacher is small",
        "The encoder is small.",
        "torch 2.13.0",
        "transfuse run toy --scale small --seeds 5",
        "shift semantic: -0.0",
        "share of correct answers",
        "410 MB",
        "seeds 1: UserWarning: odd",
    ):
        assert part in words and part in markdown, part
    assert "method beats teacher_copy on error shift semantic" in words  # the condition stands on a line of its own
    assert "method beats teacher_copy on error, shift semantic" in markdown


def test_counts_and_wording_are_honest(written: tuple[str, str]) -> None:
    words = text_of(written[0])
    assert (
        "15 cells of 3 studies put 12 claims of papers to the test: 6 supported, 2 contradicted, 4 too few seeds."
        in (words)
    )
    assert "not of the paper's own experiments" in words
    assert "1 of 1 hold" in words and "not judged" in words
    assert "| toy | public | 3 | 0 | 0 | 0 | 4 | not judged |" in written[1]


def test_stale_cells_are_marked_wherever_their_verdicts_stand(written: tuple[str, str]) -> None:
    assert "Seeds 0-5 were run by other code than today's" in text_of(written[0])
    assert written[0].count('class="chip stale"') == 1 + 5 + 5  # summary, overview tables, section
    assert written[1].count("(stale)") == 5 + 5 + 5  # overview tables, section, ledger


def test_the_ledger_tells_whom_transfer_helped_and_hurt_at_what_cost(written: tuple[str, str]) -> None:
    rows = [line for line in written[1].splitlines() if line.startswith("| toy | small | method |")]
    (against_control,) = [row for row in rows if "| no_transfer | accuracy |" in row]
    assert "helped (shift background: +0.0" in against_control and "(hurt)" in against_control
    assert "time +0." in against_control and " s |" in against_control
    assert any("| teacher_copy | error, shift semantic | hurt |" in row for row in rows)
    assert not any("| time |" in row or "| ratio |" in row for row in rows)  # costs and diagnostics are no transfer
    assert not any(line.startswith("| plumbing | quick | method") for line in written[1].splitlines())


def test_drawings_show_every_seed_margin_and_curve(written: tuple[str, str]) -> None:
    section = written[0].split("<article")[1]
    assert section.count("<title>seed 4: ") == 5  # once a claim
    assert "<title>margin 0.01</title>" in section and "<title>within 0.05</title>" in section
    for arm in ("no_transfer", "placebo", "teacher_copy", "method"):
        assert f">{arm}</text>" in section
    drawn = section.split("Learning curves")[1]
    assert drawn.count('class="curve"') == 4 and drawn.count('class="range"') == 4
    assert drawn.count("stroke-dasharray") == 2  # the two controls
    assert "nan" not in written[0].lower().replace("nanm", "")


def test_the_same_cells_give_the_same_bytes(evidence: list[Evidence], tmp_path: Path, make_evidence: Make) -> None:
    first = write_report(evidence, tmp_path / "a")
    again = [
        make_evidence("toy"),
        make_evidence("toy", scale="public", seeds=3),
        make_evidence("another", seeds=6, code="d" * 16),
        make_evidence("plumbing", scale="quick", seeds=1),
    ]
    second = write_report(again, tmp_path / "b")
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.markdown.read_bytes() == second.markdown.read_bytes()


def test_an_empty_report_says_so(tmp_path: Path) -> None:
    files = write_report([], tmp_path)
    assert "No cells were found" in text_of(files.html.read_text())
    assert "no claim was tested" in files.markdown.read_text()


def test_cells_without_measurements_or_with_undeclared_ones_are_shown(make_evidence: Make, tmp_path: Path) -> None:
    base = make_evidence("toy", seeds=2)
    renamed = tuple(replace(m, metric="gone") if m.metric == "loss" else m for m in base.cells[0].measurements)
    odd = replace(base, cells=(replace(base.cells[0], measurements=renamed), Cell(base.cells[1].spec, (), {}, {})))
    empty = replace(base, cells=(Cell(base.cells[0].spec, (), {}, {}),))
    files = write_report([odd], tmp_path / "odd")
    assert "measured but no longer declared: gone" in text_of(files.html.read_text())
    assert "not measured" in text_of(write_report([empty], tmp_path / "empty").html.read_text())


def test_one_seed_has_no_interval_and_nothing_is_nan(make_evidence: Make, tmp_path: Path) -> None:
    files = write_report([make_evidence("toy", seeds=1)], tmp_path)
    words = text_of(files.html.read_text())
    assert "no interval from one seed" in words
    assert not re.search(r"\b(nan|inf)\b", words) and not re.search(r'"-?(nan|inf)', files.html.read_text())


def test_a_folder_that_cannot_be_written_is_one_line(evidence: list[Evidence], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(evidence[:1], tmp_path / "out")


def test_verdict_table(evidence: list[Evidence]) -> None:
    lines = verdict_table_markdown(evidence).splitlines()
    assert len(lines) == 2 + 15
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == 8
    assert lines[2].startswith(
        "| toy | small | method beats no_transfer by more than 0.01 on accuracy | ✓ supported | +0.0"
    )
    assert sum("control: " in line for line in lines) == 3
    assert verdict_table_markdown([]) == "None."


def test_method_table(evidence: list[Evidence]) -> None:
    entries = {name: evidence[index].entry for index, name in ((0, "toy"), (2, "another"))}
    entries["unrun"] = replace(entries["toy"], card=replace(entries["toy"].card, id="unrun"))
    lines = method_table_markdown(Registry(entries), evidence).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| `another`", "| `toy`", "| `unrun`"]
    assert "small: 3 supported, 1 contradicted (stale)" in lines[2]
    assert "small: 3 supported, 1 contradicted; public: 4 too few seeds" in lines[3]
    assert "| not run |" in lines[4] and "[A. Author 2024](https://example.org/paper)" in lines[4]


def test_an_audit_is_a_page_of_the_same_make() -> None:
    findings = (
        Finding("false <negatives>", 0.12, (0.08, 0.16), 0.05, "finding", "12 % are true", "filter them"),
        Finding("hardness", 1234.5, None, None, "info", "as usual"),
    )
    report = AuditReport("my & index", "lemon", findings, 0.031, "200 clean ones", {"n": 3, "scores": {"a": 0.5}})
    text = render_audit(report)
    page = Page(text)
    assert page.loads == []
    words = text_of(text)
    for part in ("lemon: my & index", "1 finding.", "0.12", "0.08 to 0.16", "What to do: filter them", "3.1%", "1,234"):
        assert part in words, part
    assert "<negatives>" not in text
    clean = render_audit(AuditReport("s", "m", (), None, "by hand"))
    assert "Nothing that needs doing." in text_of(clean) and "not measured" in text_of(clean)
