"""The commands that answer at once: help, list, show, choose, cite, status, doctor, completion."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from transfuse.cli import doctor as doctor_module
from transfuse.cli.app import COMMANDS
from transfuse.cli.choose import stem
from transfuse.registry import load_registry

FRAMEWORKS = {"torch", "numpy", "scipy", "sklearn", "pydantic", "rich", "flwr", "pykeen", "transformers"}


@pytest.mark.parametrize(
    "words", [["--help"], ["list"], ["show", "mean_shift"], ["choose", "drift"], ["cite", "--all"]]
)
def test_no_framework_is_imported(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "transfuse", *words], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "typer" in imported, "the import times were not read"
    assert not imported & FRAMEWORKS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str, transfuse: Callable) -> None:
    done = transfuse(name, "--help")
    assert done.status == 0 and done.err == ""
    assert "Examples:" in done.out and f"transfuse {name}" in done.out
    assert "\x1b" not in done.out


def test_bare_call_and_version(transfuse: Callable) -> None:
    assert transfuse().out == transfuse("--help").out
    assert re.fullmatch(r"transfuse \d+\.\d+\.\d+\S*\n", transfuse("--version").out)


def test_list_as_table_and_json(transfuse: Callable) -> None:
    out = transfuse("list").out
    assert re.search(r"^mean_shift +transferability .* none +yes$", out, re.MULTILINE)
    assert re.search(r"^needs_host .* no study +no: pip install 'transfuse\[federated\]'$", out, re.MULTILINE)
    found = {row["id"]: row for row in json.loads(transfuse("list", "--family", "transferability", "--json").out)}
    assert found["mean_shift"]["installed"] is True
    assert found["mean_shift"]["year"] == 2020


def test_list_counts_stored_seeds(transfuse: Callable, workplace: Path) -> None:
    folder = workplace / "results" / "mean_shift" / "small"
    folder.mkdir(parents=True)
    for name in ("seed000-a-b.json", "seed000-a-c.json", "seed001-a-b.json"):
        (folder / name).touch()
    assert re.search(r"^mean_shift .* small 2 +yes$", transfuse("list").out, re.MULTILINE)


def test_plugin_that_cannot_be_read_is_a_warning(transfuse: Callable, install_plugin: Callable) -> None:
    install_plugin("brokenplug", "[transfuse.methods]\nbroken = no_such_module_of_transfuse\n")
    done = transfuse("list")
    assert done.status == 0 and "mean_shift" in done.out
    assert done.err.count("\n") == 1
    assert done.err.startswith("warning: plug-in 'broken' (no_such_module_of_transfuse) was left out")


def test_show_tells_use_settings_claims_and_differences(transfuse: Callable) -> None:
    out = transfuse("show", "mean_shift").out
    for text in (
        "centred([1.0, 3.0])",
        "1. The paper centres twice",
        "shrink  float  1.0      paper, section 2: the whole mean",
        "samples  int    40       enough for a stable mean",
        "centred beats raw by more than 0.1 on gap, at small, public, full",
        "paper: Table 1; published: 0.4",
        "no stored cells; type: transfuse run mean_shift",
        "clinc150",
    ):
        assert text in out, text
    assert "[-1.0, 1.0]" not in out  # the example's output is not something to type


def test_show_works_without_the_host(transfuse: Callable) -> None:
    done = transfuse("show", "needs_host")
    assert done.status == 0
    assert "no_such_host_of_transfuse missing" in done.out and "pip install" in done.out
    assert json.loads(transfuse("show", "needs_host", "--json").out)["study"] is None


def test_choose_says_why(transfuse: Callable) -> None:
    out = transfuse("choose", "my", "sensor", "drifts").out
    assert out.splitlines()[1].startswith("mean_shift")
    assert "'sensor' in its problems; 'drifts' in its problems" in out
    ranked = json.loads(transfuse("choose", "callable", "text", "--json").out)
    assert ranked[0]["id"] == "objects_only" and ranked[0]["score"] > 0
    assert "no method matches" in transfuse("choose", "zzz").out
    assert "needs_host" not in transfuse("choose", "--data", "text", "--installed").out


@pytest.mark.parametrize(
    ("one", "other"), [("unlearn", "unlearning"), ("negatives", "negative"), ("poison", "poisoned")]
)
def test_choose_takes_words_for_the_same(one: str, other: str) -> None:
    assert stem(one) == stem(other)


def test_cite_all_is_bibtex(transfuse: Callable) -> None:
    out = transfuse("cite", "--all").out
    assert out.count("@article{") == len(load_registry().entries)
    assert "author  = {A. Nobody and B. Noone}" in transfuse("cite", "mean_shift", "mean_shift").out


def test_status_of_nothing(transfuse: Callable) -> None:
    done = transfuse("status")
    assert done.status == 0 and "no cells" in done.out


def test_doctor(transfuse: Callable, monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    monkeypatch.setattr(doctor_module, "_torch", lambda: iter(()))  # importing torch takes longer than all other tests
    done = transfuse("doctor")
    assert done.status == 0, done.out
    assert "nothing is broken" in done.out
    for name in ("python", "machine", "memory", "results folder", "cache folder", "stage cache", "data folder"):
        assert re.search(rf"^(ok|missing) +{name}", done.out, re.MULTILINE), name
    folder = workplace / "results" / "mean_shift" / "small"
    folder.mkdir(parents=True)
    (folder / "seed000-a-b.json").write_text("{", encoding="utf-8")
    done = transfuse("doctor", "--json")
    assert done.status == 1
    broken = [check for check in json.loads(done.out)["checks"] if check["state"] == "broken"]
    assert {check["name"] for check in broken} == {"cells", "unreadable cell"}
    assert list(workplace.iterdir()) == [workplace / "results"]


def test_completion_knows_commands_and_methods() -> None:
    def complete(line: str) -> str:
        import os

        environment = {**os.environ, "_TRANSFUSE_COMPLETE": "complete_bash", "COMP_WORDS": line}
        environment["COMP_CWORD"] = str(len(line.split()) - 1)
        code = "import sys; from transfuse.cli import main; sys.exit(main())"
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout

    assert complete("transfuse sta").split() == ["status"]
    assert complete("transfuse show mean").split() == ["mean_shift"]


def test_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "transfuse", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait()
