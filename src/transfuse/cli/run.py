"""`transfuse run`: plan, run what is missing, and judge."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transfuse.cache import cache_folder
from transfuse.cli.app import command, debugging
from transfuse.cli.engines import ENGINES, engine_tables, make_launcher
from transfuse.cli.failure import InterruptError
from transfuse.cli.forecast import Forecast
from transfuse.cli.plan_text import plan_text, plan_values, power_text, power_values
from transfuse.cli.progress import Bar, JsonLines, Lines, Reporter
from transfuse.cli.selection import (
    FamilyOption,
    JsonOption,
    ResultsOption,
    check_writable,
    complete_ids,
    parse_seeds,
    registry_with_warnings,
    results_folder,
    select_studies,
)
from transfuse.cli.tables import count
from transfuse.config import merge, parse_assignments, read_toml
from transfuse.errors import UserError
from transfuse.registry import Registry

if TYPE_CHECKING:
    from transfuse.cli.tracking import Tracking
    from transfuse.study.launch import Job, Launcher
    from transfuse.study.mirror import Mirror
    from transfuse.study.plan import Plan, StudyPlan
    from transfuse.study.store import Store

DEVICES = ("cpu", "cuda", "auto")


def run(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Methods.", autocompletion=complete_ids)
    ] = None,
    family: FamilyOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All studies.")] = False,
    showcase: Annotated[bool, typer.Option("--showcase", help="The studies that `make run` shows.")] = False,
    stale: Annotated[bool, typer.Option("--stale", help="Renew stored cells that other code made.")] = False,
    verify: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="With --stale: run N seeds a study; if their numbers are as stored, keep the others'.",
        ),
    ] = None,
    scale: Annotated[str, typer.Option(metavar="SCALE", help="quick, small, public or full.")] = "small",
    seeds: Annotated[
        str | None, typer.Option(metavar="N|LIST", help="How many (5), or which (0,3,7-9); the study's own by default.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Settings that go over the scale's.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; ID.KEY=VALUE for one study.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Cells at once [default: one a core; all of a Ray cluster; 8 on Slurm]."),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(
            min=1, max=1024, metavar="N", help="Threads a cell; numbers repeat bit for bit at the same count only."
        ),
    ] = 1,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, or auto (a GPU if there is one).")] = "cpu",
    results: ResultsOption = None,
    engine: Annotated[str, typer.Option(metavar="ENGINE", help="Where cells run: local, ray or slurm.")] = "local",
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of a Ray cluster, or auto; by default one is started here.")
    ] = None,
    engine_settings: Annotated[
        list[str] | None,
        typer.Option("--engine-set", metavar="KEY=VALUE", help="For Slurm: minutes, partition, account, mem_gb, ..."),
    ] = None,
    track: Annotated[str | None, typer.Option(metavar="TRACKER", help="Log each cell to mlflow as well.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and the seeds it needs; write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run finished cells again.")] = False,
    json: JsonOption = False,
) -> None:
    """Run studies: check the papers' claims with paired seeds.

    Finished cells are kept, one file each: the same command again goes on where it stopped. Numbers do not depend
    on the engine. Tables [ray] and [slurm] of the --config file hold what --engine-set may also say. Exit status 1
    if a cell failed.
    """
    from transfuse.cli.renewal import Renewal
    from transfuse.cli.tracking import Tracking
    from transfuse.study.launch import Job
    from transfuse.study.mirror import mirror_at
    from transfuse.study.plan import Plan, default_jobs, make_plan
    from transfuse.study.store import Store

    registry = registry_with_warnings()
    entries = select_studies(registry, ids or (), family, everything, showcase)
    if not entries and not stale:
        raise UserError("nothing to run", "method ids, --family, --all, --showcase or --stale", "see transfuse list")
    _choice("--engine", engine, ENGINES)
    wanted = _device(device, elsewhere=engine == "slurm" or address is not None)
    store = Store(results_folder(results))
    settings = read_toml(config) if config else {}
    tables = engine_tables(settings)
    overrides = merge(settings, parse_assignments(assignments or []))
    launcher = make_launcher(
        engine, tables, engine_settings or [], address=address, jobs=jobs, default_jobs=default_jobs(threads, wanted),
        results=store.folder, output=debugging(),
    )  # fmt: skip
    tracking = Tracking(track)
    renewal = None
    if verify is not None and not stale:
        raise UserError("--verify without --stale", "both, to renew stored cells that other code made")
    if stale:
        if overrides or seeds:
            raise UserError(
                "--stale together with other settings or seeds", "--stale alone: it repeats what was stored"
            )
        renewal = Renewal(registry, entries, store, wanted, verify)
        plan = renewal.plan
        if not plan.cells:
            typer.echo(f"no stale cells in {str(store.folder)!r}", err=json)
            return
    else:
        plan = make_plan(entries, store, scale=scale, seeds=parse_seeds(seeds), overrides=overrides, device=wanted)
    if force:
        plan = Plan(tuple(replace(study, pending=study.cells) for study in plan.studies))
    job = Job(store.folder, threads, wanted)
    width = launcher.width(job) if plan.pending else jobs or default_jobs(threads, wanted)
    if dry_run:
        _show_plan(plan, width, store, json)
        return
    check_writable(store.folder)
    if plan.pending:
        check_writable(cache_folder(), "cache folder", "set TRANSFUSE_CACHE to another")
    if json:
        JsonLines.line({"event": "plan", **plan_values(plan, width, store.folder)})
    else:
        typer.echo(plan_text(plan, width, store.folder) + "\n")
    first = renewal if verify is not None else None  # its cells are a check; verdicts come with the rest
    failed = _execute(plan, registry, launcher, job, width, tracking, json, last=first is None)
    if first is not None:
        rest = first.keep_equal(mirror_at(store.folder))
        for line in first.lines:
            typer.echo(line, err=json)
        already = len(plan.pending) - failed
        failed += _execute(rest, registry, launcher, job, width, tracking, json, already=already)
    if failed:
        raise typer.Exit(1)


def _show_plan(plan: Plan, jobs: int, store: Store, json: bool) -> None:
    if json:
        studies = plan_values(plan, jobs, store.folder)
        powers = {study.study.id: power_values(study) for study in plan.studies}
        JsonLines.line({"event": "dry run", **studies, "power": powers})
        return
    typer.echo(plan_text(plan, jobs, store.folder))
    for study in plan.studies:
        typer.echo(f"\n{power_text(study)}")
    typer.echo("\nnothing was run; for 80 % power at Holm's strictest level, effects counted from the claim's margin")


def _execute(
    plan: Plan, registry: Registry, launcher: Launcher, job: Job, width: int, tracking: Tracking, json: bool,
    last: bool = True, already: int = 0,
) -> int:  # fmt: skip
    """Run the pending cells, judge each study as its last cell comes in, and return how many cells failed.

    Args:
        last: False where more cells of the same studies are to come: then nothing is judged yet.
        already: cells that were run before, to be counted at the end.
    """
    from transfuse.study.mirror import mirror_at
    from transfuse.study.store import Store

    store, mirror = Store(job.results), mirror_at(job.results)
    forecast = Forecast({cell.name: study.seconds_per_cell for study in plan.studies for cell in study.pending}, width)
    failed = finished = 0
    open_studies = {id(study): {cell.name for cell in study.pending} for study in plan.studies}
    try:
        with _reporter(forecast, json) as reporter, closing(launcher.launch(plan.pending, job)) as outcomes:
            for study in plan.studies if last else ():
                if not study.pending:
                    _judge(study, store, registry, reporter, tracking)
            for outcome in outcomes if plan.pending else ():
                cell = store.read(outcome.path) if outcome.path else None
                if outcome.halts:
                    raise UserError(f"{outcome.spec}: {outcome.error}", fix=_kept(plan, store))
                seconds = cell.cost["wall_s"] if cell else None
                forecast.finished(outcome.spec.name, seconds)
                reporter.cell(outcome, seconds)
                if cell and outcome.path:
                    _send(mirror, outcome.path)
                    tracking.cell(cell)
                if outcome.details and debugging():
                    typer.echo(outcome.details, err=True)
                failed, finished = failed + (cell is None), finished + (cell is not None)
                for study in plan.studies if last else ():
                    if outcome.spec.name in open_studies[id(study)]:
                        open_studies[id(study)].discard(outcome.spec.name)
                        if not open_studies[id(study)]:
                            _judge(study, store, registry, reporter, tracking)
    except KeyboardInterrupt:
        raise InterruptError(f"interrupted; {_kept(plan, store)}") from None
    if last:
        _finish(store, failed, finished + already, json)
    return failed


def _send(mirror: Mirror | None, path: Path) -> None:
    """To the results folder elsewhere, if that is where results go; a network that is down stops no run."""
    if mirror is None:
        return
    try:
        mirror.push(path)
    except UserError as error:
        typer.echo(f"warning: {error}", err=True)


def _kept(plan: Plan, store: Store) -> str:
    """What a run that ends early leaves."""
    finished = f"{sum(map(store.has, plan.cells))} of {count(len(plan.cells), 'cell')} finished and kept"
    return f"{finished} in {str(store.folder)!r}; the same command goes on from there"


def _finish(store: Store, failed: int, finished: int, json: bool) -> None:
    if json:
        JsonLines.line({"event": "done", "finished": finished, "failed": failed, "results": str(store.folder)})
        return
    line = f"{count(finished, 'cell')} run" if finished else "nothing had to be run"
    if failed:
        line += f", {failed} failed (the same command tries them again)"
    typer.echo(f"{line}; results are in {str(store.folder)!r}")
    typer.echo(f"type: transfuse report --results {store.folder}")


def _reporter(forecast: Forecast, json: bool) -> Reporter:
    if json:
        return JsonLines()
    return Bar(forecast) if sys.stdout.isatty() and forecast.expected else Lines(forecast)


def _judge(plan: StudyPlan, store: Store, registry: Registry, reporter: Reporter, tracking: Tracking) -> None:
    """Tell the verdicts of the group that the plan's cells belong to, if any of them is there."""
    from transfuse.cli.evidence_summary import summarise
    from transfuse.study.evidence import gather

    for evidence in gather(store, registry, [plan.study.id]):
        if evidence.cells[0].spec.key == plan.cells[0].key and evidence.scale == plan.scale:
            summary = summarise(evidence)
            reporter.verdicts(summary)
            tracking.verdicts(summary)


def _choice(option: str, given: str, known: Sequence[str]) -> None:
    from transfuse.errors import did_you_mean

    if given not in known:
        raise UserError(f"{option} {given!r}", f"one of {', '.join(known)}", did_you_mean(given, known))


def _device(given: str, elsewhere: bool = False) -> str:
    """The device that was asked for, or a clear line that there is none; other machines are not asked."""
    _choice("--device", given, DEVICES)
    if elsewhere and given == "auto":
        raise UserError("--device auto looks at this machine only", "--device cpu or cuda where cells run elsewhere")
    if elsewhere or given == "cpu":
        return given
    import importlib.util

    there = False
    if importlib.util.find_spec("torch") is not None:
        import torch

        there = torch.cuda.is_available()
    if given == "cuda" and not there:
        raise UserError("--device cuda, but torch finds no GPU", fix="type: transfuse doctor, or use --device cpu")
    return "cuda" if there else "cpu"


COMMAND = command(
    run,
    "transfuse run lemon",
    "transfuse run fedglad --scale public --seeds 10 --jobs 2",
    "transfuse run --family negatives --dry-run",
    "transfuse run lemon --set epochs=5 --seeds 0,3,7",
    "transfuse run --stale",
    "transfuse run --all --engine ray --address auto",
    "transfuse run --all --engine slurm --jobs 50 --engine-set partition=cpu --engine-set minutes=30",
)
