"""Every wrong word gives one line that names it: exit 2, no traceback, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

# Files that the words may name in braces, by their names.
FILES: dict[str, bytes] = {
    "notes.txt": b"these are = not settings =\n",
    "numbers.txt": b"1\n2\n",
    "binary.toml": b"\xff\xfe\x00\x01",
    "cut.toml": b"samples = [1,",
    "twice.toml": b"samples = 1\nsamples = 2\n",
    "deep.toml": b"samples = " + b"[" * 5000,
    "nested.toml": b"[" + b".".join([b"a"] * 3000) + b"]\nx = 1\n",
    "digits.toml": b"samples = " + b"9" * 5000,
    "nan.toml": b"spread = nan\n",
    "key.toml": b"[mean_shift]\nsmples = 1\n",
    "type.toml": b"[mean_shift]\nsamples = 'x'\n",
    "value.toml": b"mean_shift = 3\n",
    "engine.toml": b"[slurm]\nminutes = 'x'\n",
    "text.txt": b"1,2\n",
    "latin.txt": b"\xe9\n",
}

# The words after `transfuse`, and what the line has to say.
WRONG = [
    ("lst", "'lst'", "did you mean 'list'"),
    ("frobnicate", "'frobnicate'", "one of list"),
    ("--versoin", "'--versoin'", "--version"),
    ("list --famly negatives", "'--famly'", "did you mean '--family'"),
    ("list --family negativs", "'negativs'", "one of"),
    ("list --family", "--family", "argument"),
    ("list extra", "extra", "list --help"),
    ("list --results {notes}", "notes.txt", "a folder"),
    ("show", "ID", "show --help"),
    ("show mean_shfit", "'mean_shfit'", "did you mean 'mean_shift'"),
    ("show mean_shift needs_host", "needs_host", "show --help"),
    ("choose", "nothing to choose by", "for example"),
    ("choose --data numbrs", "'numbrs'", "tables of numbers"),
    ("choose --host flower", "'flower'", "one of"),
    ("choose drift --top 0", "--top", "0"),
    ("cite", "nothing to cite", "--all"),
    ("cite unknown", "'unknown'", "transfuse list"),
    ("cite mean_shift --all", "--all", "method ids"),
    ("run", "nothing to run", "--showcase"),
    ("run mean_shfit", "'mean_shfit'", "did you mean"),
    ("run objects_only", "'objects_only'", "no study"),
    ("run needs_host", "'needs_host'", "no study"),
    ("run mean_shift --all", "more than one selection", "--family"),
    ("run --family federated", "no study", "transfuse list"),
    ("run --family nonsense", "'nonsense'", "one of"),
    ("run mean_shift --scale huge", "'huge'", "quick, small, public, full"),
    ("run mean_shift --scale full", "'full'", "small, quick, public"),
    ("run mean_shift --scale public", "'clinc150'", "transfuse data get clinc150"),
    ("run mean_shift --seeds 0", "'0'", "at least 1"),
    ("run mean_shift --seeds -3", "'-3'", "a number of seeds"),
    ("run mean_shift --seeds 1,x", "'1,x'", "a number of seeds"),
    ("run mean_shift --seeds 1,1", "[1, 1]", "distinct"),
    ("run mean_shift --seeds 9-3", "'9-3'", "10-19"),
    ("run mean_shift --set smples=3", "'smples'", "did you mean 'samples'"),
    ("run mean_shift --set samples", "'samples'", "KEY=VALUE"),
    ("run mean_shift --set samples=many", "'many'", "a valid integer"),
    ("run --all --set smples=3", "'smples'", "did you mean"),
    ("run mean_shift --config {missing}", "missing.toml", "TOML"),
    ("run mean_shift --config {notes}", "notes.txt", "not valid TOML"),
    ("run mean_shift --config {binary}", "binary.toml", "UTF-8"),
    ("run mean_shift --config {cut}", "cut.toml", "not valid TOML"),
    ("run mean_shift --config {twice}", "twice.toml", "not valid TOML"),
    ("run mean_shift --config {deep}", "deep.toml", "nested too deeply"),
    ("run mean_shift --config {nested}", "nested.toml", "at most 20 levels"),
    ("run mean_shift --config {digits}", "digits.toml", "not valid TOML"),
    ("run mean_shift --config {nan}", "spread = nan", "a finite number"),
    ("run mean_shift --config {key}", "'smples'", "did you mean 'samples'"),
    ("run mean_shift --config {type}", "samples = 'x'", "a valid integer"),
    ("run mean_shift --config {value}", "'mean_shift'", "known keys: samples, spread"),
    ("run mean_shift --config {folder}", "folder", "a readable TOML file"),
    ("run mean_shift --config {engine} --engine slurm", "minutes = 'x'", "a valid integer"),
    ("run mean_shift --config", "--config", "argument"),
    ("run mean_shift --set =3", "'=3'", "KEY=VALUE"),
    ("run mean_shift --set a..b=3", "'a..b=3'", "KEY=VALUE"),
    ("run mean_shift --set samples.x=3", "samples", "a valid integer"),
    ("run mean_shift --set samples=3 --set samples.x=3", "'samples.x=3'", "a value before"),
    ("run mean_shift --set samples=1.5", "1.5", "a valid integer"),
    ("run mean_shift --set samples=true", "True", "a number"),
    ("run mean_shift --set samples=[1]", "[1]", "a valid integer"),
    ("run mean_shift --set samples=1979-05-27", "1979", "a valid integer"),
    ("run mean_shift --set samples=" + "9" * 5000, "'9999", "as an integer"),
    ("run mean_shift --set samples=" + "[" * 5000, "'[[[[", "a valid integer"),
    ("run mean_shift --set " + ".".join("a" * 3000) + "=1", "'a.a.a", "KEY=VALUE"),
    ("run mean_shift --set spread=", "spread = ''", "a valid number"),
    ("run mean_shift --set spread=nan", "spread = nan", "a finite number"),
    ("run mean_shift --set spread=-inf", "spread = -inf", "a finite number"),
    ("run mean_shift --set spread=1e999", "spread = inf", "a finite number"),
    ("run mean_shift --set mean_shift.x=3", "'x'", "known keys: samples, spread"),
    ("run mean_shift --set needs_host.x=1", "'needs_host'", "known keys"),
    ("run mean_shift --seeds ,", "','", "a number of seeds"),
    ("run mean_shift --seeds 1.5", "'1.5'", "a number of seeds"),
    ("run mean_shift --seeds ٣", "'٣'", "a number of seeds"),
    ("run mean_shift --seeds 0,2-4,3", "[0, 2, 3, 4, 3]", "distinct"),
    ("run mean_shift --seeds 999999999", "'999999999'", "at most 100000"),
    ("run mean_shift --seeds 0-999999999", "'0-999999999'", "at most 100000"),
    ("run mean_shift mean_shfit", "'mean_shfit'", "did you mean"),
    ("run mean_shift --scale", "--scale", "argument"),
    ("run mean_shift --jobs 0", "--jobs", "0"),
    ("run mean_shift --jobs two", "--jobs", "'two'"),
    ("run mean_shift --threads -1", "--threads", "-1"),
    ("run mean_shift --threads 99999999999", "--threads", "99999999999"),
    ("run mean_shift --device gpu", "'gpu'", "cpu, cuda, auto"),
    ("run mean_shift --engine slurmm", "'slurmm'", "did you mean 'slurm'"),
    ("run mean_shift --address auto", "--address 'auto'", "--engine ray"),
    ("run mean_shift --engine slurm --address auto", "--address 'auto'", "--engine ray"),
    ("run mean_shift --engine-set minutes=3", "--engine-set", "--engine ray or slurm"),
    ("run mean_shift --engine slurm --engine-set minutes", "'minutes'", "KEY=VALUE"),
    ("run mean_shift --engine slurm --engine-set minutes=x", "'x'", "a valid integer"),
    ("run mean_shift --engine slurm --engine-set partiton=x", "'partiton'", "did you mean 'partition'"),
    ("run mean_shift --engine slurm --engine-set cluster=pbs", "'pbs'", "slurm, local"),
    ("run mean_shift --engine slurm --device auto", "--device auto", "cpu or cuda"),
    ("run mean_shift --engine slurm --engine-set minutes=0", "minutes = 0", "equal to 1"),
    ("run mean_shift --engine slurm --engine-set jobs=-1", "jobs = -1", "equal to 1"),
    ("run mean_shift --engine slurm --engine-set retries=-1", "retries = -1", "equal to 0"),
    ("run mean_shift --engine slurm --engine-set logs=3", "logs = 3", "a valid path"),
    ("run mean_shift --engine ray --engine-set retries=-1", "retries = -1", "equal to 0"),
    ("run mean_shift --engine ray --engine-set minutes=3", "'minutes'", "address, retries"),
    ("run mean_shift --engine ray --address 127.0.0.1:1", "'127.0.0.1:1'", "--address"),
    ("run mean_shift --track wandb", "'wandb'", "mlflow"),
    ("run mean_shift --results {notes}", "notes.txt", "a folder"),
    ("run mean_shift --results /proc/transfuse", "'/proc/transfuse'", "--results DIR"),
    ("run mean_shift --results {notes}/below", "notes.txt", "cannot be written"),
    ("run --stale --seeds 3", "--stale", "alone"),
    ("status --results {missing}", "missing.toml", "a folder"),
    ("status --results {notes}", "notes.txt", "a folder"),
    ("report", "no cells in 'results'", "transfuse run"),
    ("report --results {missing}", "missing.toml", "transfuse run"),
    ("compare a", "RUN_B", "compare --help"),
    ("compare nowhere nowhere", "'nowhere'", "a folder"),
    ("compare nowhere:small elsewhere unknown", "'unknown'", "transfuse list"),
    ("audit mean_shfit", "'mean_shfit'", "did you mean"),
    ("audit needs_host --history x", "no_such_host_of_transfuse", "pip install 'transfuse[federated]'"),
    ("audit objects_only", "model", "from toyplug.objects_only import audit"),
    ("audit mean_shift", "--samples", "audit mean_shift --help"),
    ("audit mean_shift --samples {missing}", "missing.toml", "exists"),
    ("audit mean_shift --samples {notes}", "notes.txt", "one number a line"),
    ("audit mean_shift --samples {text}", "text.txt", "one number a line"),
    ("audit mean_shift --samples {latin}", "latin.txt", "one number a line"),
    ("audit mean_shift --samples", "--samples", "argument"),
    ("audit mean_shift --samples {numbers} --digits 1.5", "--digits", "'1.5'"),
    ("audit mean_shift --samples {numbers} --strict=3", "--strict", "value"),
    ("audit mean_shift --samples {numbers} --out {folder}", "folder", "a file"),
    ("audit mean_shift --samples {numbers} --out {notes}/page.html", "notes.txt", "is a file"),
    ("audit mean_shift --samples {numbers} --limt 3", "'--limt'", "did you mean '--limit'"),
    ("audit mean_shift --samples {numbers} --limit x", "--limit", "'x'"),
    ("audit mean_shift --samples {numbers} --unit yard", "'yard'", "mm"),
    ("audit mean_shift --samples {folder}", "folder", "a file"),
    ("apply needs_host", "'needs_host'", "no apply"),
    ("apply mean_shift --samples {numbers}", "--out", "apply mean_shift --help"),
    ("apply mean_shift --samples {missing} --out x", "missing.toml", "exists"),
    ("apply mean_shift --samples {numbers} --out {missing}/x", "missing.toml", "exists"),
    ("apply mean_shift --samples {numbers} --out {folder}", "folder", "a file"),
    ("apply mean_shift --samples {numbers} --out {notes}/x", "notes.txt", "is a file"),
    ("apply objects_only", "'objects_only'", "no apply"),
    ("apply mean_shfit", "'mean_shfit'", "did you mean"),
    ("export", "no cells in 'results'", "transfuse run"),
    ("export mean_shfit", "'mean_shfit'", "did you mean"),
    ("export --results {missing}", "missing.toml", "transfuse run"),
    ("export --scale huge", "'huge'", "quick, small, public, full"),
    ("export --format xls", "'xls'", "csv, parquet"),
    ("export --format parquet", "--format parquet", "--out FILE"),
    ("export --out {folder}", "folder", "a file"),
    ("export --card mean_shfit", "'mean_shfit'", "did you mean"),
    ("export --card mean_shift", "no cells of 'mean_shift'", "transfuse run mean_shift"),
    ("export --card objects_only", "'objects_only'", "no study"),
    ("export mean_shift --card mean_shift", "--card", "without"),
    ("export --card mean_shift --format csv", "--card", "without"),
    ("new", "ID", "new --help"),
    ("new mine", "--family", "new --help"),
    ("new mine --family negativs", "'negativs'", "did you mean 'negatives'"),
    ("new Mine --family negatives", "'Mine'", "lower-case"),
    ("new 2nd --family negatives", "'2nd'", "a letter first"),
    ("new class --family negatives", "'class'", "lower-case"),
    ("new mean_shift --family negatives", "'mean_shift'", "transfuse list"),
    ("new mine --family negatives", "checkout", "--package DIR"),
    ("new mine --family negatives --package {notes}", "notes.txt", "a folder"),
    ("new mine --family negatives --package numpy", "'numpy'", "another --package DIR"),
    ("new mine --family negatives --package 1st", "'1st'", "a letter first"),
    ("new mine --family negatives --package {notes}/below", "notes.txt", "a folder"),
    ("data lst", "'lst'", "did you mean 'list'"),
    ("data get", "nothing to get", "--all"),
    ("data get clinc", "'clinc'", "did you mean 'clinc150'"),
    ("data get --all clinc150", "--all", "data sets"),
    ("data get clinc150 --from {notes}", "notes.txt", "<set>/<file>"),
    ("data get clinc150 --from {missing}", "missing.toml", "<set>/<file>"),
    ("data get clinc150 --from {folder}", "data_full.json", "clinc150"),
    ("data path nothing", "'nothing'", "data list"),
    ("data path clinc150 extra", "extra", "data path --help"),
    ("data list extra", "extra", "data list --help"),
    ("choose drift --top many", "--top", "'many'"),
    ("compare {notes} {folder}", "notes.txt", "a folder"),
    ("compare {folder} {folder}", "folder", "status --results"),
    ("compare {folder}:small {folder}:quick", "folder", "at scale small"),
    ("show mean_shift --results {notes}", "notes.txt", "a folder"),
    ("report --results {folder} --out x", "folder", "transfuse run"),
    ("report --titel x", "'--titel'", "--title"),
    ("status extra", "extra", "status --help"),
    ("doctor extra", "extra", "doctor --help"),
    ("doctor --jsn", "'--jsn'", "--json"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "given", "fix"), WRONG, ids=[words[:80] for words, _, _ in WRONG])
def test_one_line_that_names_what_was_given(
    words: str, given: str, fix: str, transfuse: Callable, workplace: Path
) -> None:
    files = workplace.parent / "files"
    (files / "folder").mkdir(parents=True)
    names = {"missing": files / "missing.toml", "folder": files / "folder"}
    for name, content in FILES.items():
        names[name.partition(".")[0]] = files / name
        (files / name).write_bytes(content)
    done = transfuse(*words.format_map(names).split())
    assert done.status == 2, done
    assert done.err.count("\n") == 1 and done.err.startswith("error: "), done.err
    assert given in done.err and fix in done.err, done.err
    assert "Traceback" not in done.out + done.err
    assert list(workplace.iterdir()) == []


def test_unreadable_folder_is_one_line(transfuse: Callable, workplace: Path) -> None:
    import os

    locked = workplace / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write anywhere")
    done = transfuse("run", "mean_shift", "--results", locked / "results")
    assert done.status == 2
    assert "cannot be written" in done.err and "--results" in done.err


def test_full_disk_is_one_line(transfuse: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from transfuse.cli import selection

    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(selection.tempfile, "TemporaryFile", no_space)
    done = transfuse("run", "mean_shift")
    assert done.status == 2
    assert "no space left" in done.err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(28, "No space left on device", "/d/.page.html.17.partial"),
            "no space left on device ('/d/page.html'); ",
        ),
        (OSError(28, "No space left on device"), "no space left on device ('/full'); "),
        (OSError(30, "Read-only file system", "/d/.page.html.17.partial"), "'/d/page.html': read-only file system"),
        (FileExistsError(17, "File exists", "/d/notes.txt"), "'/d/notes.txt': file exists; expected no file where"),
        (MemoryError(), "not enough memory; "),
    ],
)
def test_errors_of_the_machine_are_one_line_that_names_the_place(
    error: Exception, line: str, transfuse: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transfuse import disk
    from transfuse.cli import cite

    def fail() -> None:
        raise error

    monkeypatch.setattr(disk, "_places", lambda: [Path("/full"), Path("/room")])
    monkeypatch.setattr(disk, "_is_full", lambda folder: folder == Path("/full"))
    monkeypatch.setattr(cite, "registry_with_warnings", fail)
    done = transfuse("cite", "--all")
    assert done.status == 2 and done.err.startswith(f"error: {line}") and done.err.count("\n") == 1, done.err


def test_internal_error_is_one_line_unless_debugged(transfuse: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from transfuse.cli import cite

    def broken() -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(cite, "registry_with_warnings", broken)
    done = transfuse("cite", "--all")
    assert done.status == 1
    assert done.err == "internal error: ZeroDivisionError: two lines (run again with --debug for the traceback)\n"
    done = transfuse("cite", "--all", "--debug")
    assert done.status == 1
    assert "Traceback" in done.err and done.err.splitlines()[-1].startswith("internal error: ")
