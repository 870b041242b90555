"""A method's signature as its command line, and what becomes of its report."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Optional

import click
import pytest

from transfuse.cli.signature import NotPlainError, declared, options_of


@pytest.fixture
def samples(workplace: Path) -> Path:
    path = workplace / "samples.txt"
    path.write_text("1\n2\n", encoding="utf-8")
    return path


def test_audit_without_method_lists_those_that_have_one(transfuse: Callable) -> None:
    out = transfuse("audit").out
    assert "mean_shift" in out and "needs_host" in out and "objects_only" in out
    listed = [line.split()[0] for line in transfuse("apply").out.splitlines()[1:] if line]
    assert "mean_shift" in listed and "needs_host" not in listed


def test_help_needs_no_host(transfuse: Callable) -> None:
    done = transfuse("audit", "needs_host", "--help")
    assert done.status == 0 and "--history TEXT" in done.out
    assert "Never called." in transfuse("audit").out


def test_help_shows_the_signature(transfuse: Callable) -> None:
    out = transfuse("audit", "mean_shift", "--help").out
    assert "Is the mean of these samples shifted?" in out
    assert "text file with one number a line  [required]" in out
    assert "--limit FLOAT" in out and "[default: 0.5]" in out
    assert (
        "--unit [mm|inch]" in out and "--digits INTEGER" in out and "--strict / --no-strict" in out and "--json" in out
    )


def test_exit_status_is_the_reports(transfuse: Callable, samples: Path) -> None:
    done = transfuse("audit", "mean_shift", "--samples", samples)
    assert done.status == 1
    assert "finding" in done.out and "1.5 [0.5, 2.5]" in done.out and "what to do: centre the site" in done.out
    assert "false-alarm rate  5.0% (by theory)" in done.out
    assert transfuse("audit", "mean_shift", "--samples", samples, "--limit", "1.5").status == 0
    assert transfuse("audit", "mean_shift", "--samples", samples, "--limit", "1.5", "--strict").status == 1


def test_values_arrive_with_their_types(transfuse: Callable, samples: Path) -> None:
    words = ["--sites", "north", "--sites", "south pole", "--unit", "inch", "--digits", "0", "--json"]
    report = json.loads(transfuse("audit", "mean_shift", "--samples", samples, *words).out)
    assert report["findings"][0]["meaning"] == "mean of north, south pole in inch"
    assert report["findings"][0]["value"] == 2.0
    assert report["environment"] == {"unit": "inch"}


def test_page_is_written(transfuse: Callable, samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = types.ModuleType("transfuse.study.report")
    stub.render_audit = lambda report: f"<p>{report.subject}</p>"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transfuse.study.report", stub)
    done = transfuse("audit", "mean_shift", "--samples", samples, "--out", "page/audit.html")
    assert done.status == 1 and done.out == "written: page/audit.html\n"
    assert Path("page/audit.html").read_text(encoding="utf-8") == f"<p>{samples}</p>"


def test_apply_says_where_the_result_is(transfuse: Callable, samples: Path) -> None:
    done = transfuse("apply", "mean_shift", "--samples", samples, "--out", "centred.txt")
    assert done.status == 0 and done.out == "written: centred.txt\n"
    assert Path("centred.txt").read_text(encoding="utf-8") == "-0.5\n0.5"
    done = transfuse("apply", "mean_shift", "--samples", samples, "--out", "centred.txt", "--json")
    assert json.loads(done.out) == {"method": "mean_shift", "result": "centred.txt"}


def parse(function: Callable, *words: str) -> dict[str, object]:
    """What click makes of the words."""
    command = click.Command("x", params=options_of(function), callback=lambda **values: values)
    return command.main(list(words), standalone_mode=False)


def test_every_plain_type() -> None:
    def audit(
        model: Path,
        level: Annotated[Literal[1, 2] | None, "of detail"] = None,
        names: tuple[str, ...] = (),
        weights: list[float] = [],  # noqa: B006 (the default must arrive as it is)
        rate: Optional[float] = 0.5,  # noqa: UP045 (older signatures are written so)
        fast: bool = True,
        hook: Callable[[int], int] | None = None,
    ) -> None: ...

    given = {"model": Path("m"), "level": None, "names": (), "weights": [], "rate": 0.5, "fast": True}
    assert parse(audit, "--model", "m") == given
    words = re.split(" ", "--model m --level 2 --names a --names b --weights 1 --weights 2.5 --rate 3 --no-fast")
    assert parse(audit, *words) == {
        "model": Path("m"), "level": 2, "names": ("a", "b"), "weights": [1.0, 2.5], "rate": 3.0, "fast": False,
    }  # fmt: skip


SOURCE = '''
import a_host_that_is_not_there
from typing import Annotated, Literal
Mode = Literal["hard", "soft"]
LIMITS = a_host_that_is_not_there.limits()
class Config:
    mode: Mode = "soft"
    rate: float = 0.5
    made: list = field(default_factory=list)
@a_host_that_is_not_there.decorated
def audit(path: Annotated["Path", "of text"], mode: Mode = Config.mode, rate: float = Config.rate,
          n: int = 0) -> Report:
    """Says things."""
    return a_host_that_is_not_there.go()
def apply(made: list[str] = Config.made) -> Report: ...
'''


def test_signature_is_read_without_the_host(tmp_path: Path) -> None:
    path = tmp_path / "method.py"
    path.write_text(SOURCE.replace('"Path"', "Path"), encoding="utf-8")
    audit = declared(path, "audit")
    assert audit is not None and audit.__doc__ == "Says things."
    assert parse(audit, "--path", "x") == {"path": Path("x"), "mode": "soft", "rate": 0.5, "n": 0}
    assert parse(audit, "--path", "x", "--mode", "hard")["mode"] == "hard"
    assert declared(path, "apply") is None  # a default that only the module itself can make


def test_python_objects_cannot_be_typed() -> None:
    def audit(model: Callable[[str], str]) -> None: ...

    with pytest.raises(NotPlainError, match="model"):
        options_of(audit)
