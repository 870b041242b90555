"""`transfuse show`: everything about one method, read from its source and its stored cells."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from transfuse.cli.app import command
from transfuse.cli.evidence_summary import summaries
from transfuse.cli.selection import JsonOption, ResultsOption, complete_ids, registry_with_warnings, results_folder
from transfuse.cli.tables import count, duration, facts, heading, paragraph, print_json, table
from transfuse.cli.verdict_table import verdict_table
from transfuse.config import Setting, read_settings
from transfuse.errors import UserError
from transfuse.registry import Entry, missing_packages
from transfuse.study.declaration import read_study
from transfuse.study.design import SCALES, Study


def show(
    method: Annotated[str, typer.Argument(metavar="ID", help="A method.", autocompletion=complete_ids)],
    results: ResultsOption = None,
    json: JsonOption = False,
) -> None:
    """Explain one method: card, use, settings and their reasons, claims and verdicts, data, costs."""
    registry = registry_with_warnings()
    entry = registry[method]
    study = read_study(entry) if entry.study_module else None
    evidence = summaries(results_folder(results), registry, entry)
    if json:
        print_json(_as_values(entry, study, evidence))
        return
    sections = [_card(entry), _use(entry), _settings("Settings of the method", _settings_of(entry.module, "Config"))]
    if study is not None:
        sections += [_claims(study), *_verdicts(study, evidence)]
        sections.append(_settings("Settings of the study, scale small", _settings_of(entry.study_module, "Settings")))
        sections += [_scales(study, evidence), _lines("Notes", study.notes)]
    typer.echo("\n\n".join(section for section in sections if section))


def code_example(source: str) -> str:
    """The example in a module's docstring: its ``>>>`` lines without output, or its fenced block."""
    lines = textwrap.dedent(ast.get_docstring(ast.parse(source)) or "").splitlines()
    prompts = [line.strip() for line in lines if line.strip().startswith((">>>", "..."))]
    if prompts:
        return "\n".join(line[4:] for line in prompts)
    fences = [index for index, line in enumerate(lines) if line.strip().startswith("```")]
    return textwrap.dedent("\n".join(lines[fences[0] + 1 : fences[1]])) if len(fences) > 1 else ""


def _card(entry: Entry) -> str:
    card = entry.card
    missing = missing_packages(card)
    installed = f"no ({', '.join(missing)} missing); type: pip install 'transfuse[{card.extra}]'" if missing else "yes"
    pairs = {
        "paper": f"{card.authors} ({card.year}), {card.title}, {card.venue}",
        "address": card.url,
        "family": card.family,
        "host": card.host,
        "import": card.entry,
        "needs": "; ".join(card.needs),
        "data": card.data,
        "answers": " / ".join(card.problems),
        "status": card.status,
        "installed": installed,
        "source": str(entry.path),
    }
    differs = [f"{number}. {text}" for number, text in enumerate(card.differs, 1)]
    shown = facts({name: value for name, value in pairs.items() if value})
    differences = _lines("Differences from the paper", differs)
    return f"{heading(card.id)}: {card.summary}\n\n{shown}" + (f"\n\n{differences}" if differences else "")


def _use(entry: Entry) -> str:
    code = code_example(entry.path.read_text(encoding="utf-8"))
    return f"{heading('Use')}\n{textwrap.indent(code, '  ')}" if code else ""


def _lines(title: str, lines: tuple[str, ...] | list[str]) -> str:
    return "\n".join([heading(title), *(paragraph(line, "  ", "     ") for line in lines)]) if lines else ""


def _settings(title: str, settings: list[Setting]) -> str:
    if not settings:
        return ""
    rows = [(s.name, s.type, s.default, s.reason) for s in settings]
    return f"{heading(title)}\n{table(('NAME', 'TYPE', 'DEFAULT', 'WHY'), rows, '  ')}"


def _settings_of(module: str | None, class_name: str) -> list[Setting]:
    spec = importlib.util.find_spec(module) if module else None
    if spec is None or spec.origin is None:
        return []
    try:
        return read_settings(Path(spec.origin).read_text(encoding="utf-8"), class_name)
    except SyntaxError as error:
        raise UserError(f"{spec.origin!r} is not valid Python: {error.msg}, line {error.lineno}") from None


def _claims(study: Study) -> str:
    lines = [f"  {study.question}", f"  arms: {', '.join(study.arms)} (controls: {', '.join(study.controls)})"]
    for number, claim in enumerate(study.claims, 1):
        control = " (control)" if claim.control else ""
        lines.append(f"  {number}. {claim.text()}{control}, at {', '.join(claim.scales)}")
        source = f"{claim.paper}; published: {claim.published}" if claim.published else claim.paper
        lines += [paragraph(f"paper: {source}", "     ")] if source else []
    return "\n".join([heading("Study"), *lines])


def _verdicts(study: Study, evidence: list[dict[str, Any]]) -> list[str]:
    return [verdict_table(e) for e in evidence] or [f"no stored cells; type: transfuse run {study.id}"]


def _scales(study: Study, evidence: list[dict[str, Any]]) -> str:
    rows = []
    for scale in SCALES:
        if scale != "small" and scale not in study.scales:
            continue
        measured = next((e for e in evidence if e["scale"] == scale), None)
        expected = study.seconds.get(scale)
        seconds = measured["wall_s"] if measured else expected
        cost = "unknown" if seconds is None else duration(seconds) + (" (measured)" if measured else " (expected)")
        memory = f"{measured['peak_mb']:.0f} MB" if measured else ""
        data = ", ".join(study.data.get(scale, ())) or "comes with installed packages"
        changed = ", ".join(f"{key}={value!r}" for key, value in study.scales.get(scale, {}).items())
        rows.append((scale, count(study.seed_count(scale), "seed"), cost, memory, data, changed))
    headings = ("SCALE", "SEEDS", "TIME A SEED", "PEAK MEMORY", "DATA", "CHANGED SETTINGS")
    return f"{heading('Scales')}\n{table(headings, rows, '  ')}"


def _as_values(entry: Entry, study: Study | None, evidence: list[dict[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "card": dataclasses.asdict(entry.card),
        "module": entry.module,
        "missing": missing_packages(entry.card),
        "use": code_example(entry.path.read_text(encoding="utf-8")),
        "settings": [dataclasses.asdict(s) for s in _settings_of(entry.module, "Config")],
        "study": None,
    }
    if study is not None:
        values["study"] = {
            "question": study.question,
            "arms": study.arms,
            "controls": study.controls,
            "settings": [dataclasses.asdict(s) for s in _settings_of(entry.study_module, "Settings")],
            "claims": [
                {"claim": c.text(), "scales": c.scales, "control": c.control, "paper": c.paper} for c in study.claims
            ],
            "data": dict(study.data),
            "seconds": dict(study.seconds),
            "notes": study.notes,
        }
        values["evidence"] = evidence
    return values


COMMAND = command(show, "transfuse show lemon", "transfuse show fedglad --json")
