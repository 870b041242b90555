"""`transfuse run`, with real worker processes: resume, workers that die, Ctrl-C, and the same bits whatever --jobs."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from transfuse.cli import progress, run
from transfuse.cli.forecast import Forecast
from transfuse.study.store import Store, read_samples

needs_sigkill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")


@pytest.fixture(scope="module")
def undisturbed(plugin_path: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The cells of a run with two jobs, and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [
        sys.executable,
        "-m",
        "transfuse",
        "run",
        "mean_shift",
        "--jobs",
        "2",
        "--results",
        str(folder / "results"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "results", done.stdout


def numbers(folder: Path) -> dict[str, tuple]:
    """Everything measured, by cell, to the last bit."""
    return {
        cell.spec.name: (
            [(m.arm, m.metric, m.value, m.where, m.step) for m in cell.measurements],
            {name: array.tobytes() for name, array in read_samples(cell).items()},
        )
        for cell in Store(folder).cells()
    }


def test_plan_cells_verdicts_and_what_to_type_next(undisturbed: tuple[Path, str]) -> None:
    folder, out = undisturbed
    assert "5 of 5 cells to run, about 0.2 s with 2 jobs" in out
    assert len(re.findall(r"^\[\d/5\] mean_shift small seed \d: [\d.]+ s, about \d+(\.\d)? s left$", out, re.M)) == 5
    assert re.search(
        r"^  supported +centred beats raw by more than 0.1 on gap +[\d.]+ \[[\d.]+, [\d.]+\] +5 ", out, re.M
    )
    assert "placebo is within 0.5 of raw on gap (control)" in out
    assert out.endswith(f"type: transfuse report --results {folder}\n")
    assert "\x1b" not in out


def test_one_job_gives_the_same_bits_as_two(undisturbed: tuple[Path, str], transfuse: Callable) -> None:
    done = transfuse("run", "mean_shift", "--jobs", "1", "--results", "one", "--json")
    assert done.status == 0, done.err
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [event["event"] for event in events] == ["plan", *["cell"] * 5, "verdicts", "done"]
    assert events[-2]["verdicts"][0]["outcome"] == "supported"
    found = numbers(Path("one"))
    assert len(found) == 5 and found == numbers(undisturbed[0])


@needs_sigkill
def test_killed_worker_costs_one_cell_and_the_rest_resumes(
    undisturbed: tuple[Path, str], transfuse: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOYPLUG_KILL", "1")
    done = transfuse("run", "mean_shift", "--jobs", "2", "--results", "killed")
    assert done.status == 1
    reason = "its worker process died 3 times (out of memory? --debug shows what it printed)"
    assert done.err == f"failed: mean_shift small seed 1: {reason}\n"
    assert "4 cells run, 1 failed (the same command tries them again)" in done.out
    monkeypatch.delenv("TOYPLUG_KILL")
    done_cell = next(Path("killed").rglob("seed000*.json"))
    spec_name = done_cell.name.replace("seed000", "seed001")
    done_cell.with_name(f".{spec_name}.999999999.partial").touch()  # of a writer that is no more
    kept = {path: path.stat().st_mtime_ns for path in Path("killed").rglob("*.json")}
    done = transfuse("run", "mean_shift", "--jobs", "2", "--results", "killed")
    assert done.status == 0 and "1 of 5 cells to run" in done.out and "1 cell run" in done.out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert numbers(Path("killed")) == numbers(undisturbed[0])
    assert not list(Path("killed").rglob("*.partial"))


@needs_sigkill
def test_ctrl_c_keeps_finished_cells(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOYPLUG_SLEEP", "0.2")
    command = [sys.executable, "-m", "transfuse", "run", "mean_shift", "--seeds", "50", "--jobs", "1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in background jobs
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("[2/50]"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    cells = len(list(Store(workplace / "results").cells()))
    assert 2 <= cells < 50
    assert re.fullmatch(
        rf"interrupted; {cells} of 50 cells finished and kept in 'results'; the same command goes on from there\n", err
    )


def test_failing_cell_is_one_line_and_a_traceback_for_debug(
    transfuse: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOYPLUG_FAIL", "0")
    done = transfuse("run", "mean_shift", "--seeds", "0,2", "--jobs", "1", "--debug")
    assert done.status == 1
    assert "failed: mean_shift small seed 0: RuntimeError: the toy is broken\nTraceback" in done.err
    assert "a host that chatters" in done.err  # let through for --debug only
    assert "1 cell run, 1 failed" in done.out


def test_dry_run_writes_nothing_and_counts_seeds(transfuse: Callable, workplace: Path) -> None:
    done = transfuse("run", "mean_shift", "--dry-run", "--seeds", "7", "--jobs", "2")
    assert done.status == 0
    assert "7 of 7 cells to run" in done.out and "nothing was run" in done.out
    # 80 % power of a paired t test at the level 0.05 / 2: half a standard deviation takes 41 pairs.
    assert re.search(r"centred beats raw by more than 0.1 on gap +41 +13 +6 +7$", done.out, re.MULTILINE)
    event = json.loads(transfuse("run", "mean_shift", "--dry-run", "--json").out)
    assert event["studies"][0]["pending"] == [0, 1, 2, 3, 4]
    assert event["power"]["mean_shift"][0]["seeds_needed"]["0.5"] == 41
    assert list(workplace.iterdir()) == [] and not (workplace.parent / "cache").exists()


def test_settings_come_from_file_and_command_line(transfuse: Callable, workplace: Path) -> None:
    (workplace / "mine.toml").write_text("samples = 3\n[mean_shift]\nspread = 2.0\n", encoding="utf-8")
    words = ("run", "mean_shift", "--dry-run", "--json", "--config", "mine.toml")
    assert json.loads(transfuse(*words).out)["studies"][0]["settings"] == {"samples": 3, "spread": 2.0}
    words = (*words, "--set", "samples=4", "--set", "mean_shift.spread=3")
    assert json.loads(transfuse(*words).out)["studies"][0]["settings"] == {"samples": 4, "spread": 3.0}


def test_slurm_from_a_settings_file_gives_the_same_bits(
    undisturbed: tuple[Path, str], transfuse: Callable, workplace: Path
) -> None:
    """One file for the studies and for the engine; the job imports the plug-in that this process imports."""
    pytest.importorskip("submitit")
    (workplace / "mine.toml").write_text("[slurm]\ncluster = 'local'\nminutes = 5\n", encoding="utf-8")
    words = ("run", "mean_shift", "--seeds", "2", "--config", "mine.toml")
    done = transfuse(*words, "--engine", "slurm", "--jobs", "2", "--engine-set", "minutes=4")
    assert done.status == 0, done.err
    assert "2 of 2 cells to run" in done.out and "2 cells run" in done.out and done.err == ""
    expected = numbers(undisturbed[0])
    assert numbers(Path("results")) == {name: expected[name] for name in list(expected)[:2]}
    assert sorted(path.name for path in Path("results").iterdir()) == ["mean_shift"]
    assert transfuse(*words).status == 0  # the table of an engine that is not used does no harm


def test_stale_and_unreadable_cells_are_seen_and_renewed(
    undisturbed: tuple[Path, str], transfuse: Callable, workplace: Path
) -> None:
    shutil.copytree(undisturbed[0], "results")
    first, second, *_ = sorted(Path("results").rglob("*.json"))
    text = first.read_text(encoding="utf-8")
    code = json.loads(text)["code"]
    first.with_name(first.name.replace(code, "0" * 16)).write_text(text.replace(code, "0" * 16), encoding="utf-8")
    first.unlink()
    second.write_text(text[:100], encoding="utf-8")
    done = transfuse("status", "--json")
    state = json.loads(done.out)
    assert done.status == 0
    assert state["unreadable"] == [str(second)]
    assert [(g["seeds"], g["stale"], g["missing"]) for g in state["groups"]] == [([2, 3, 4], [], [0, 1])]
    for path in sorted(Path("results").rglob("*.json"))[2:]:
        path.unlink()
    assert "transfuse run --stale" in transfuse("status").out
    done = transfuse("run", "--stale", "--jobs", "1")
    assert done.status == 0 and "1 of 1 cell to run" in done.out, done
    renewed = numbers(Path("results"))
    assert renewed == {name: cell for name, cell in numbers(undisturbed[0]).items() if name in renewed}
    assert "no stale cells" in transfuse("run", "--stale").out


def make_stale(folder: Path, change: Callable[[str], str] = lambda text: text) -> None:
    """As if all cells had been made by other code."""
    for path in sorted(folder.rglob("*.json")):
        text = path.read_text(encoding="utf-8")
        code = json.loads(text)["code"]
        old = path.with_name(path.name.replace(code, "0" * 16))
        old.write_text(change(text.replace(code, "0" * 16)), encoding="utf-8")
        path.unlink()
        if path.with_suffix(".npz").exists():
            path.with_suffix(".npz").rename(old.with_suffix(".npz"))


def test_stale_cells_are_kept_where_a_seed_shows_the_same_numbers(
    undisturbed: tuple[Path, str], transfuse: Callable, workplace: Path
) -> None:
    shutil.copytree(undisturbed[0], "results")
    make_stale(Path("results"))
    done = transfuse("run", "--stale", "--verify", "1", "--jobs", "1")
    assert done.status == 0, done.err
    assert "1 cell run" in done.out
    assert "seed 0 as stored, bit for bit; 4 cells kept" in done.out
    assert numbers(Path("results")) == numbers(undisturbed[0])
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path("results").rglob("*.json"))]
    assert [cell["environment"].get("kept") for cell in cells] == [
        None,
        *[[{"code": "0" * 16, "equal_on_seeds": [0]}]] * 4,
    ]
    assert "no stale cells" in transfuse("run", "--stale").out
    transfuse("report", "--out", "page")
    assert "seed 0" in Path("page/report.md").read_text(encoding="utf-8")


def test_stale_cells_are_all_run_where_a_seed_shows_other_numbers(
    undisturbed: tuple[Path, str], transfuse: Callable, workplace: Path
) -> None:
    shutil.copytree(undisturbed[0], "results")
    make_stale(Path("results"), lambda text: re.sub(r'("centred", "gap", )[-0-9.e]+', r"\g<1>0.5", text, count=1))
    done = transfuse("run", "--stale", "--verify", "1", "--jobs", "1")
    assert done.status == 0, done.err
    assert "other numbers than were stored; 4 cells to run" in done.out
    assert "5 cells run" in done.out
    assert numbers(Path("results")) == numbers(undisturbed[0])
    assert transfuse("run", "mean_shift", "--verify", "1").status == 2


def test_show_and_status_read_the_stored_cells(undisturbed: tuple[Path, str], transfuse: Callable) -> None:
    for _ in range(2):  # judged, then from the cache
        out = transfuse("show", "mean_shift", "--results", undisturbed[0]).out
        assert re.search(r"^  supported +centred beats raw by more than 0.1 on gap +", out, re.MULTILINE)
        assert "(measured)" in out
    assert re.search(
        r"^mean_shift +small +\w+ +5 +none +none$", transfuse("status", "--results", undisturbed[0]).out, re.M
    )


def test_compare_finds_what_differs(undisturbed: tuple[Path, str], transfuse: Callable, workplace: Path) -> None:
    shutil.copytree(undisturbed[0], "other")
    done = transfuse("compare", undisturbed[0], "other", "mean_shift")
    assert done.status == 0 and "5 shared seeds, 5 with identical numbers" in done.out
    assert "no verdict changed" in done.out
    for path in Path("other").rglob("*.json"):
        cell = json.loads(path.read_text(encoding="utf-8"))
        for row in cell["measurements"]:
            row[2] += 2.0 * (row[0] == "centred")
        path.write_text(json.dumps(cell), encoding="utf-8")
    [found] = json.loads(transfuse("compare", f"{undisturbed[0]}:small", "other:small", "--json").out)
    assert found["identical_seeds"] == []
    rows = {row["arm"]: row for row in found["rows"]}
    assert rows["centred"]["difference"] == pytest.approx(2.0)
    assert rows["centred"]["b"] - rows["centred"]["a"] == pytest.approx(2.0)
    assert (rows["raw"]["low"], rows["raw"]["high"], rows["raw"]["pairs"]) == (0.0, 0.0, 5)
    assert found["verdicts_changed"] == [
        {"claim": "centred beats raw by more than 0.1 on gap", "before": "supported", "after": "contradicted"}
    ]


def test_compare_draws_a_page(undisturbed: tuple[Path, str], transfuse: Callable, workplace: Path) -> None:
    done = transfuse("compare", undisturbed[0], undisturbed[0], "--out", "compare.html")
    assert (done.status, done.out.strip()) == (0, "written: compare.html")
    page = (workplace / "compare.html").read_text(encoding="utf-8")
    assert "hold the same numbers, bit for bit" in page and "No verdict differs." in page
    assert '<g class="mark' in page and "Differences, seed by seed" not in page  # there is none
    refused = transfuse("compare", undisturbed[0], undisturbed[0], "--out", ".")
    assert refused.status == 2 and "a file to write" in refused.err


def test_forecast_weighs_cells_and_corrects_itself() -> None:
    forecast = Forecast({"short": 1.0, "long": 9.0, "other": 10.0}, jobs=1, now=0.0)
    assert forecast.left(now=0.0) == 20.0
    forecast.finished("short", 2.0, now=2.0)  # twice as long as thought: so will the rest be
    assert forecast.left(now=3.0) == pytest.approx(37.0)
    forecast.finished("long", None, now=5.0)  # a failure says nothing about the pace of the others
    assert forecast.left(now=5.0) == pytest.approx(20.0)
    assert forecast.share == pytest.approx(0.5)
    assert forecast.left(now=90.0) == 0.0  # overdue, never negative
    forecast.finished("other", 85.0, now=91.0)
    assert (forecast.left(now=91.0), forecast.share) == (0.0, 1.0)


def test_forecast_takes_a_studys_own_pace_where_it_knows_one() -> None:
    forecast = Forecast({"a/small/0": 1.0, "a/small/1": 1.0, "b/small/0": 5.0}, jobs=1, now=0.0)
    forecast.finished("b/small/0", 5.0, now=0.0)
    assert forecast.left(now=0.0) == pytest.approx(2.0)
    forecast.finished("a/small/0", 7.0, now=0.0)
    assert forecast.left(now=0.0) == pytest.approx(7.0)


def test_forecast_divides_by_the_jobs_that_are_busy() -> None:
    assert Forecast({"a": 6.0, "b": 6.0, "c": 6.0}, jobs=2, now=0.0).left(now=0.0) == 9.0
    assert Forecast({"a": 6.0}, jobs=4, now=0.0).left(now=0.0) == 6.0


def test_bar_in_a_terminal(undisturbed: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same events on a terminal: no line a cell, but verdicts and failures above the bar."""
    import io

    from rich.console import Console

    from transfuse.study.launch import Outcome

    cells = list(Store(undisturbed[0]).cells())
    forecast = Forecast({cell.spec.name: 1.0 for cell in cells}, jobs=2)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200, highlight=False, markup=False, _environ={})
    bar = progress.Bar(forecast, console)
    with bar:
        for cell in cells[:2]:
            forecast.finished(cell.spec.name, 1.0)
        bar.cell(Outcome(cells[0].spec, cells[0].path), 1.0)
        bar.cell(Outcome(cells[1].spec, None, "it\nbroke"), None)
        bar.verdicts({"study": "s", "scale": "small", "seeds": [0], "stale": [], "verdicts": []})
        assert bar.bar.tasks[0].completed == pytest.approx(0.4)
    text = screen.getvalue()
    assert "2 of 5 cells" in text and "left" in text
    assert "failed: mean_shift small seed 1: it broke" in text and "s, scale small, 1 seed" in text


def test_missing_gpu_is_said_before_any_work(transfuse: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(run.UserError, match="no GPU"):
        run._device("cuda")
    assert run._device("auto") == "cpu"


def test_numbers_of_a_stage_are_those_of_its_making(undisturbed: tuple[Path, str]) -> None:
    """The toy's raw arm reads a cached stage: its per-sample values agree with the means in the cell."""
    for cell in Store(undisturbed[0]).cells():
        samples = read_samples(cell)
        for m in cell.measurements:
            if m.step is None:
                assert np.mean(samples[f"{m.arm}|{m.metric}|{{}}"]) == m.value
