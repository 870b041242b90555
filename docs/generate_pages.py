"""Writes a page for each method, their index, and their entries in mkdocs.yml: ``make docs``.

Nothing is said here that is not written down elsewhere: the card, the settings with their reasons, the declaration
of the study, the data manifest, and the cells in ``results/``. No host is imported. A test compares the pages with
what this script would write.
"""

from __future__ import annotations

import ast
import builtins
import html
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from transfuse.atomic import write_text
from transfuse.cli.method_group import defines
from transfuse.cli.show import code_example
from transfuse.cli.signature import declared, options_of
from transfuse.cli.tables import duration, size
from transfuse.config import Setting, read_settings
from transfuse.data.folder import data_set
from transfuse.registry import Entry, Registry, load_registry
from transfuse.study.claims import Claim
from transfuse.study.declaration import read_study
from transfuse.study.design import SCALES, Study
from transfuse.study.evidence import Evidence, gather
from transfuse.study.report.figures import number, seed_list
from transfuse.study.report.markdown import method_table_markdown
from transfuse.study.report.provenance import environments, mean_wall, own_settings
from transfuse.study.report.tables import SCALES as WHAT_A_SCALE_IS
from transfuse.study.report.tables import ClaimRow, claim_rows
from transfuse.study.store import Store

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "methods"
_NOTICE = "<!-- Made by docs/generate_pages.py. Change the method, its study or its results, then type: make docs -->"
_MARKUP = re.compile(r"[\\*`\[]|(?<!\w)_|_(?!\w)")  # what Markdown would read as markup, besides the entities below
_WORD = re.compile(r"\w+")
_ENTITIES = str.maketrans({"<": "&lt;", "|": "&#124;"})
_NAVIGATION = re.compile(r"(^ *)(# methods.*\n)(?:.*\n)*?(?= *# end of methods$)", re.MULTILINE)


def pages(results: Path = ROOT / "results") -> dict[str, str]:
    """File name below docs/methods -> content, for every method of this package."""
    registry = Registry({entry.id: entry for entry in _entries()})
    evidence = gather(Store(results), registry)
    made = {f"{entry.id}.md": _text(_page(entry, evidence)) for entry in registry.entries.values()}
    return {"index.md": _text(_index(registry, evidence)), **made}


def navigation(text: str) -> str:
    """mkdocs.yml with an entry for each method."""
    lines = "".join(f"- {entry.id}: methods/{entry.id}.md\n" for entry in _entries())
    return _NAVIGATION.sub(lambda m: m[1] + m[2] + re.sub("^(?=.)", m[1], lines, flags=re.MULTILINE), text)


def _entries() -> list[Entry]:
    """The methods of this package, in the order of the index; plug-ins have pages of their own elsewhere."""
    found = [entry for entry in load_registry().entries.values() if entry.module.startswith("transfuse.")]
    return sorted(found, key=lambda entry: (entry.card.family, entry.id))


def _text(lines: Iterable[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join([_NOTICE, "", *lines])).rstrip() + "\n"


def _index(registry: Registry, evidence: Sequence[Evidence]) -> Iterator[str]:
    yield "# Methods\n"
    yield "One page for each method: what it needs, its settings and why they are what they are, what its paper claims,"
    yield "what our runs say about that, and what a run costs. [Which one fits?](../choose.md)\n"
    table = method_table_markdown(registry, evidence)
    for method in registry.entries:
        table = table.replace(f"| `{method}` |", f"| [`{method}`]({method}.md) |")
    yield table


def _page(entry: Entry, evidence: Sequence[Evidence]) -> Iterator[str]:
    study = read_study(entry)
    groups = _groups(study, evidence)
    yield from _card(entry)
    yield from _use(entry)
    yield from _shell(entry)
    yield "\n## Settings\n"
    yield f"Fields of `{entry.module}.Config`.\n"
    yield _settings(entry.module, "Config")
    yield from _study(study)
    yield from _claims(study, groups)
    yield "\n## Differences from the paper\n"
    yield from (f"{index}. {_escaped(text)}" for index, text in enumerate(entry.card.differs, 1))
    yield from _cost(study, groups)
    yield from _data(study)
    yield "\n## Citation\n"
    yield f"```bibtex\n{entry.card.bibtex()}\n```"


def _card(entry: Entry) -> Iterator[str]:
    card = entry.card
    yield f"# {card.id}\n"
    yield f"{_escaped(card.summary)}\n"
    yield "It answers:\n"
    yield from (f"- {_escaped(problem)}" for problem in card.problems)
    rows = [
        ("Type", _escaped(card.host)),
        ("Import", _code(card.entry)),
        ("You bring", "; ".join(map(_escaped, card.needs))),
        ("Data", _escaped(card.data)),
        ("Install", _code(f'pip install ".[{card.extra}]"')),
        ("Family, status", f"{card.family}, {card.status}"),
        ("Paper", f"{_escaped(card.authors)} ({card.year}), [{_escaped(card.title)}]({card.url}), {card.venue}"),
    ]
    yield "\n## Card\n"
    yield from (f"- **{name}**: {words}" for name, words in rows)


def _use(entry: Entry) -> Iterator[str]:
    source = entry.path.read_text(encoding="utf-8")
    yield "\n## Use\n"
    yield "<!-- fmt: off -->\n"  # for the linter: the example is laid out as in the docstring
    yield f"```python\n{with_imports(code_example(source), source, entry.module)}\n```"


def with_imports(example: str, source: str, module: str) -> str:
    """The example of a module's docstring as a script: names that the module has are imported from it."""
    script = ast.parse(example)
    nodes = list(ast.walk(script))
    loaded = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    bound |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    imports = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
    bound |= {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}
    wanted = loaded - bound - set(dir(builtins))
    own, lines = [], []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if (alias.asname or alias.name) in wanted]
            lines += [ast.unparse(node)] if node.names else []
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in wanted:
            own.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            own += [target.id for target in targets if isinstance(target, ast.Name) and target.id in wanted]
    first = next((node.lineno for node in script.body if not isinstance(node, ast.Import | ast.ImportFrom)), 1)
    head, body = example.splitlines()[: first - 1], example.splitlines()[first - 1 :]
    own_line = [f"from {module} import {', '.join(sorted(own))}"] if own else []
    return "\n".join([*lines, *head, *own_line, "", *body]).strip()


def _shell(entry: Entry) -> Iterator[str]:
    """`audit` and `apply` as commands, from the signatures."""
    for name in ("audit", "apply"):
        function = declared(entry.path, name) if defines(entry, name) else None
        if function is None:
            continue
        options = options_of(function)
        needed = " ".join(f"{option.opts[0]} {(option.name or '').upper()}" for option in options if option.required)
        paragraphs = (inspect.getdoc(function) or "").split("\n\n")
        yield f"\n### `transfuse {name} {entry.id}`\n"
        yield "\n\n".join(_escaped(paragraph) for paragraph in paragraphs) + "\n"
        yield f"```text\ntransfuse {name} {entry.id} {needed}\n```\n"
        rows = [(_code(o.opts[0]), _option_default(o.required, o.default), _escaped(o.help or "")) for o in options]
        yield _table(("Option", "Default", "What it is"), rows)


def _option_default(required: bool, default: object) -> str:
    return "needed" if required else "" if default is None else _code(str(default))


def _settings(module: str, class_name: str) -> str:
    source = _source(module)
    choices = dict(_choices(ast.parse(source)))
    rows = [
        (
            _code(s.name),
            _code(_WORD.sub(lambda m: choices.get(m[0], m[0]), s.type)),
            _code(_default(s)),
            _escaped(s.reason),
        )
        for s in read_settings(source, class_name)
    ]
    return _table(("Setting", "Type", "Default", "Why"), rows)


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec and spec.origin  # the registry has read a file there, or one of its imports names it
    return Path(spec.origin).read_text(encoding="utf-8")


def _choices(tree: ast.Module, names: frozenset[str] | None = None) -> Iterator[tuple[str, str]]:
    """Names that stand for a `Literal`, with what it allows; those that other modules of the package define as well."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and names is None and (node.module or "").startswith("transfuse."):
            imported = frozenset(alias.name for alias in node.names)
            yield from _choices(ast.parse(_source(node.module or "")), imported)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = ast.unparse(node.value)
            if text.startswith("Literal[") and (names is None or node.targets[0].id in names):
                yield node.targets[0].id, text


def _default(setting: Setting) -> str:
    """The default as one would write it; what a factory makes is what counts, not that it is a factory."""
    factory = re.fullmatch(r"field\(default_factory=(?:lambda: (.+)|(\w+))\)", setting.default)
    return setting.default if factory is None else factory[1] or f"{factory[2]}()"


def _study(study: Study) -> Iterator[str]:
    yield "\n## Study\n"
    yield f"{_escaped(study.question)}\n"
    arms = (f"{_code(arm)} (control)" if arm in study.controls else _code(arm) for arm in study.arms)
    yield f"Arms: {', '.join(arms)}.\n"
    rows = [
        (_code(name), {"neither": "diagnostic"}.get(m.better, m.better), _escaped(_meaning(m.meaning, m.unit)))
        for name, m in study.metrics.items()
    ]
    yield _table(("Metric", "Better", "What it is"), rows)
    if study.notes:
        yield "\nWhat a reader of the verdicts must know:\n"
        yield from (f"- {_escaped(note)}" for note in study.notes)


def _meaning(meaning: str, unit: str) -> str:
    return meaning if unit == "1" else f"{meaning} ({unit})"


def _claims(study: Study, groups: Sequence[Evidence]) -> Iterator[str]:
    yield "\n## Claims\n"
    yield "Written down before the study ran. Controls check the study, not the paper.\n"
    rows = [
        (str(index), _claim(claim), _escaped(_paper(claim)), ", ".join(claim.scales))
        for index, claim in enumerate(study.claims, 1)
    ]
    yield _table(("", "Claim", "What the paper says", "Tested at"), rows)
    for group in groups:
        yield from _verdicts(study, group)
    if not groups:
        yield f"\n### Verdicts\n\nNo cells with these settings are stored: `transfuse run {study.id}` makes them."


def _paper(claim: Claim) -> str:
    return f"{claim.paper} Published: {claim.published}." if claim.published else claim.paper


def _verdicts(study: Study, group: Evidence) -> Iterator[str]:
    """One table a scale: our figures beside the published ones, then what stands behind single verdicts."""
    yield f"\n### Verdicts at scale {group.scale}\n"
    yield f"{len(group.seeds)} seeds; {WHAT_A_SCALE_IS[group.scale]}. [How to read this](../verdicts.md)\n"
    if group.stale:
        yield f"**Stale**: seeds {seed_list(group.stale)} were run by other code than today's.\n"
    judged = list(zip(group.verdicts, claim_rows(group), strict=True))
    numbered = [(study.claims.index(verdict.claim) + 1, verdict.claim, row) for verdict, row in judged]
    head = ("", "Claim", "Verdict", "Effect (95 % interval)", "Ours", "Published")
    yield _table(head, [_verdict_cells(*entry) for entry in numbered])
    yield ""
    for index, _, row in numbered:
        if row.outcome in ("contradicted", "inconclusive"):
            yield f"- {index}: {_escaped(_explained(row))}"


def _verdict_cells(index: int, claim: Claim, row: ClaimRow) -> tuple[str, ...]:
    effect = f"{row.effect} ({row.interval})" if row.interval else row.effect
    verdict = f"{row.sign} {row.outcome}"
    return (
        str(index),
        _claim(claim),
        verdict,
        _escaped(effect),
        _escaped(row.ours),
        _escaped(row.published or "not given"),
    )


def _explained(row: ClaimRow) -> str:
    likely = f"likely because {row.likely}" if row.likely else ""
    return "; ".join(filter(None, (row.meaning, row.needed, likely)))


def _claim(claim: Claim) -> str:
    return ("control: " if claim.control else "") + _escaped(claim.text())


def _groups(study: Study, evidence: Sequence[Evidence]) -> list[Evidence]:
    """Per scale, the cells that were run with the scale's own settings; quick judges nothing."""
    found: dict[str, Evidence] = {}
    for group in evidence:  # where several fit, that with the most cells comes first
        if group.study.id == study.id and group.scale != "quick" and not own_settings(group):
            found.setdefault(group.scale, group)
    return list(found.values())


def _cost(study: Study, groups: Sequence[Evidence]) -> Iterator[str]:
    yield "\n## Cost\n"
    yield "Of one cell: one seed with all arms, on one thread.\n"
    by_scale = {group.scale: group for group in groups}
    rows = []
    for scale in SCALES:
        if scale != "small" and scale not in study.scales:
            continue
        group, expected = by_scale.get(scale), study.seconds.get(scale)
        time = f"{duration(mean_wall(group))}" if group else f"about {duration(expected)}" if expected else "not known"
        peak = max((cell.cost.get("peak_mb", 0.0) for cell in group.cells), default=0.0) if group else 0.0
        memory = f"{number(peak)} MB" if peak else "not measured"
        sets = ", ".join(study.data.get(scale, ())) or "comes with installed packages"
        rows.append((scale, str(study.seed_count(scale)), time, memory, sets, _changes(study, scale)))
    yield _table(("Scale", "Seeds", "Time", "Peak memory", "Data", "Changed settings"), rows)
    yield ""
    for group in groups:
        yield from (f"- {group.scale}, {seeds}: {_escaped(words)}" for seeds, words in environments(group))
    yield "\n## Settings of the study\n"
    yield "The defaults are the scale small.\n"
    yield _settings(_settings_module(study.id), "Settings")


def _settings_module(method: str) -> str:
    """Where the settings class of a study stands: its own module, or the one that it imports the class from."""
    module = load_registry()[method].study_module or ""
    for node in ast.parse(_source(module)).body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == "Settings" for alias in node.names):
            return node.module or module
    return module


def _changes(study: Study, scale: str) -> str:
    changes = study.scales.get(scale, {})
    return ", ".join(_code(f"{key} = {json.dumps(value)}") for key, value in changes.items())


def _data(study: Study) -> Iterator[str]:
    sets = list(dict.fromkeys(set_id for ids in study.data.values() for set_id in ids))
    if not sets:
        return
    yield "\n## Data\n"
    yield f"`transfuse data get {' '.join(sets)}` fetches and verifies what the scale public reads.\n"
    rows = [
        (
            _code(s.id),
            _escaped(s.title),
            _escaped(s.licence),
            size(sum(file.bytes for file in s.files)),
            _escaped(s.citation),
        )
        for s in map(data_set, sets)
    ]
    yield _table(("Set", "What it is", "Licence", "Size", "Please cite"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _escaped(text: str) -> str:
    """Text that is read as text and stays inside its table cell; what stands in backticks is code."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))  # every second one is code
    return "".join(
        _code(part) if index % 2 else _MARKUP.sub(r"\\\g<0>", part).translate(_ENTITIES)
        for index, part in enumerate(parts)
    )


def _code(text: str) -> str:
    """Text as code; a bar would end the table cell, so that it is written as an entity."""
    if "|" in text or "`" in text:
        return f"<code>{html.escape(text, quote=False).replace('|', '&#124;').replace('`', '&#96;')}</code>"
    return f"`{text}`" if text else ""


def write() -> Iterator[str]:
    """Write what has changed and remove pages of methods that are gone; yields a line for each file."""
    wanted = {FOLDER / name: content for name, content in pages().items()}
    configuration = ROOT / "mkdocs.yml"
    wanted[configuration] = navigation(configuration.read_text(encoding="utf-8"))
    for path, content in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            write_text(path, content)
            yield f"{path.relative_to(ROOT)} renewed"
    for path in FOLDER.glob("*.md"):
        if path not in wanted:
            path.unlink()
            yield f"{path.relative_to(ROOT)} removed"


if __name__ == "__main__":
    sys.stdout.write("\n".join(write()) + "\n")
