"""What the stored cells say about a study, as plain values; judged once and kept until anything changes.

Judging needs SciPy, which takes longer to import than `transfuse show` may take to answer. The summary is
therefore cached under a key over the cells and the code: their names, sizes and times.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfuse.cache import cache_folder
from transfuse.registry import Entry, Registry

if TYPE_CHECKING:
    from transfuse.study.claims import Verdict
    from transfuse.study.evidence import Evidence

_PACKAGE = Path(__file__).resolve().parent.parent


def summaries(folder: Path, registry: Registry, entry: Entry) -> list[dict[str, Any]]:
    """The evidence about one study in a results folder, a dictionary for each group of comparable cells."""
    cells = sorted((folder / entry.id).glob("*/seed*.json"))
    if not cells or entry.study_module is None:
        return []
    kept = _cached(_key([*cells, *_code(entry)]))
    with contextlib.suppress(OSError, ValueError):
        found: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    from transfuse.atomic import write_text
    from transfuse.study.evidence import gather
    from transfuse.study.store import Store

    found = [summarise(evidence) for evidence in gather(Store(folder), registry, [entry.id])]
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        write_text(kept, json.dumps(found))
    return found


def summarise(evidence: Evidence) -> dict[str, Any]:
    """One group of cells as JSON values."""
    cells = evidence.cells
    return {
        "study": evidence.study.id,
        "scale": evidence.scale,
        "key": cells[0].spec.key,
        "seeds": evidence.seeds,
        "stale": evidence.stale,
        "wall_s": sum(cell.cost.get("wall_s", 0.0) for cell in cells) / len(cells),
        "peak_mb": max(cell.cost.get("peak_mb", 0.0) for cell in cells),
        "verdicts": [_plain(verdict) for verdict in evidence.verdicts],
    }


def _plain(verdict: Verdict) -> dict[str, Any]:
    from transfuse.study.claims import needed_note

    claim, estimate = verdict.claim, verdict.estimate
    return {
        "claim": claim.text(),
        "outcome": verdict.outcome,
        "effect": estimate.mean if estimate else None,
        "low": _finite(estimate.low) if estimate else None,
        "high": _finite(estimate.high) if estimate else None,
        "seeds": len(verdict.effects),
        "margin": claim.margin,
        "p_holm": verdict.p_holm,
        "p_sign_flip": verdict.p_sign_flip,
        "meaning": verdict.meaning,
        "needed": needed_note(verdict),
        "control": claim.control,
        "paper": claim.paper,
        "published": claim.published,
        "likely": claim.likely,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cached(key: str) -> Path:
    return cache_folder() / "verdicts" / f"{key}.json"


def _key(paths: list[Path]) -> str:
    stats = [(str(path), stat.st_size, stat.st_mtime_ns) for path in paths for stat in [path.stat()]]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:24]


def _code(entry: Entry) -> Iterator[Path]:
    """All that verdicts, declarations and fingerprints are made from: this package, and a plug-in's own."""
    yield from sorted(_PACKAGE.rglob("*.py"))
    for module in (entry.module, entry.study_module or ""):
        if module.startswith("transfuse."):
            continue
        spec = importlib.util.find_spec(module.split(".")[0])
        for folder in spec.submodule_search_locations or () if spec else ():
            yield from sorted(Path(folder).rglob("*.py"))
        if spec and spec.origin:
            yield Path(spec.origin)
