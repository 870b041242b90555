"""`transfuse compare`: two results folders, or two scales, number by number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfuse.atomic import write_text
from transfuse.cli.app import command
from transfuse.cli.selection import JsonOption, complete_ids, registry_with_warnings, store_to_read
from transfuse.cli.tables import count, heading, print_json, table
from transfuse.errors import UserError
from transfuse.registry import Registry
from transfuse.study.design import SCALES

if TYPE_CHECKING:
    from transfuse.study.evidence import Evidence


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="A results folder, or DIR:SCALE.")],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="Another.")],
    method: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Only this study.", autocompletion=complete_ids)
    ] = None,
    json: JsonOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.html", help="Write the comparison as a page with pictures.")
    ] = None,
) -> None:
    """Compare two runs: means, paired differences by seed with 95 % intervals, identical cells, changed verdicts."""
    if out is not None and out.is_dir():
        raise UserError(f"--out {str(out)!r} is a folder", "a file to write, such as compare.html")
    registry = registry_with_warnings()
    if method is not None:
        registry[method]  # a clear error for an unknown id
    a, b = (_read(text, registry, method) for text in (first, second))
    pairs = [(group, other) for group in a if (other := _counterpart(group, b, _scale(first), _scale(second)))]
    if not pairs:
        studies = [", ".join(sorted({e.study.id for e in run})) or "nothing" for run in (a, b)]
        raise UserError(
            f"the two runs have no study and scale in common ({first!r} has {studies[0]}; {second!r} has {studies[1]})",
            fix="name the scales to compare as DIR:SCALE",
        )
    compared = [comparison(*pair) for pair in pairs]
    if out is not None:
        _write(out, pairs, compared, (first, second))
    if json:
        print_json(compared)
    elif out is not None:
        typer.echo(f"written: {out}")
    else:
        typer.echo("\n\n".join(_text(values) for values in compared))


def _write(
    out: Path, pairs: Sequence[tuple[Evidence, Evidence]], compared: Sequence[dict[str, Any]], names: tuple[str, str]
) -> None:
    from transfuse.study.report import render_comparison

    try:
        write_text(out, render_comparison(pairs, compared, names))
    except OSError as error:
        raise UserError(f"cannot write {str(out)!r}: {error.strerror}", "a file in a writable folder") from None


def comparison(a: Evidence, b: Evidence) -> dict[str, Any]:
    """Everything that differs between two groups of cells, as plain values; differences are B - A."""
    shared = sorted(set(a.seeds) & set(b.seeds))
    before = {v.claim.text(): v.outcome for v in a.verdicts}
    after = {v.claim.text(): v.outcome for v in b.verdicts}
    return {
        "study": a.study.id,
        "scales": [a.scale, b.scale],
        "seeds": [len(a.seeds), len(b.seeds)],
        "shared_seeds": shared,
        "identical_seeds": [seed for seed in shared if _same(a, b, seed)],
        "rows": _rows(a, b, shared),
        "verdicts_changed": [
            {"claim": claim, "before": before.get(claim), "after": after.get(claim)}
            for claim in dict.fromkeys([*before, *after])
            if before.get(claim) != after.get(claim)
        ],
    }


def _rows(a: Evidence, b: Evidence, shared: Sequence[int]) -> list[dict[str, Any]]:
    from transfuse.statistics import t_interval

    rows = []
    keys = [
        (m.metric, tuple(sorted(m.where.items(), key=str)), m.arm)
        for group in (a, b) for cell in group.cells for m in cell.measurements if m.step is None
    ]  # fmt: skip
    for metric, where, arm in dict.fromkeys(keys):
        left, right = (group.values.by_seed(arm, metric, dict(where)) for group in (a, b))
        if shared:  # means of the same seeds, so that their difference is the one that stands beside them
            left, right = ({seed: x for seed, x in side.items() if seed in shared} for side in (left, right))
        row: dict[str, Any] = {
            "metric": metric, "where": dict(where), "arm": arm,
            "a": sum(left.values()) / len(left) if left else None,
            "b": sum(right.values()) / len(right) if right else None,
            "difference": None, "low": None, "high": None, "pairs": 0,
            "by_seed": {seed: right[seed] - left[seed] for seed in shared if seed in left and seed in right},
        }  # fmt: skip
        if row["by_seed"]:
            estimate = t_interval(list(row["by_seed"].values()))
            row.update(difference=estimate.mean, pairs=estimate.pairs)
            if estimate.pairs > 1:
                row.update(low=estimate.low, high=estimate.high)
        rows.append(row)
    return rows


def _same(a: Evidence, b: Evidence, seed: int) -> bool:
    """Whether two cells hold the same numbers bit for bit, per-sample values included."""
    import numpy as np

    from transfuse.study.store import read_samples

    one, other = (next(cell for cell in group.cells if cell.spec.seed == seed) for group in (a, b))
    if one.measurements != other.measurements:
        return False
    left, right = read_samples(one), read_samples(other)
    if not left or not right:
        return True  # per-sample files are not kept everywhere
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def _scale(text: str) -> str | None:
    tail = text.rpartition(":")[2]
    return tail if ":" in text and tail in SCALES else None


def _read(text: str, registry: Registry, method: str | None) -> list[Evidence]:
    from transfuse.study.evidence import gather

    scale = _scale(text)
    folder = Path(text.removesuffix(f":{scale}")) if scale else Path(text)
    found = gather(store_to_read(folder), registry, [method] if method else None)
    found = [evidence for evidence in found if scale in (None, evidence.scale)]
    if not found:
        wanted = " ".join(filter(None, ("of", method and repr(method), scale and f"at scale {scale}")))
        raise UserError(
            f"{str(folder)!r} has no cells {wanted if method or scale else 'of an installed method'}",
            fix="transfuse status --results DIR shows what is there",
        )
    return found


def _counterpart(group: Evidence, others: Sequence[Evidence], a: str | None, b: str | None) -> Evidence | None:
    """The other run's group of the same study: same scale unless both were named, same settings where possible."""
    fitting = [e for e in others if e.study.id == group.study.id and ((a and b) or e.scale == group.scale)]
    same = [e for e in fitting if e.cells[0].spec.key == group.cells[0].spec.key]
    return next(iter(same or fitting), None)


def _text(values: dict[str, Any]) -> str:
    scales = " and ".join(dict.fromkeys(values["scales"]))
    shared, identical = values["shared_seeds"], values["identical_seeds"]
    lines = [heading(f"{values['study']}, scale {scales}")]
    lines.append(f"  {count(len(shared), 'shared seed')}, {len(identical)} with identical numbers")
    rows = [
        (
            r["metric"],
            ", ".join(f"{k} {v}" for k, v in r["where"].items()),
            r["arm"],
            *map(_number, (r["a"], r["b"])),
            _difference(r),
        )
        for r in values["rows"]
    ]
    lines.append(table(("METRIC", "WHERE", "ARM", "A", "B", "B - A [95 % INTERVAL]"), rows, "  "))
    lines += [
        f"  verdict changed: {change['claim']}: {change['before'] or 'none'} -> {change['after'] or 'none'}"
        for change in values["verdicts_changed"]
    ]
    if not values["verdicts_changed"]:
        lines.append("  no verdict changed")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _difference(row: dict[str, Any]) -> str:
    if row["difference"] is None:
        return "no shared seed"
    interval = "no interval" if row["low"] is None else f"{row['low']:.3g}, {row['high']:.3g}"
    return f"{row['difference']:.3g} [{interval}]"


COMMAND = command(
    compare,
    "transfuse compare results build/showcase",
    "transfuse compare results:small results:public lemon",
    "transfuse compare results:small results:public --out compare.html",
    "transfuse compare old/results results --json",
)
