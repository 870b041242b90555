"""How many of the hard negatives that you mined are positives?

``transfuse audit negatives --pairs mined.jsonl --positives train.jsonl --candidates corpus.jsonl`` counts known
positives and near-duplicates of them among the negatives, bounds the share of positives that nobody labelled, overall,
by hardness and by retriever, and sets the figures beside random candidates and beside the negatives of other queries.
With ``--judged`` the rate is estimated from labels; ``--cleaned`` writes the pairs without the known positives.

>>> mined = [MinedNegative("red fruit", "apple pie", 1), MinedNegative("red fruit", "the blue sea", 2),
...          MinedNegative("deep water", "a lake", 1), MinedNegative("deep water", "apple", 2)]
>>> positives = {"red fruit": ["apple"], "deep water": ["the blue sea", "a lake"]}
>>> report = audit_mined_negatives(mined, positives, ["apple", "a lake", "the blue sea", "a chair"], tfidf_encoder())
>>> report.findings[0].name, report.findings[0].value
('known positives among the negatives', 0.25)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from scipy.stats import binomtest

from transfuse.audit import AuditReport, Finding
from transfuse.audit.finding import Result
from transfuse.cache import cache_folder
from transfuse.errors import UserError
from transfuse.hosts.sentence_encoder import Encoder, load_encoder, packaged_encoder, tfidf_encoder
from transfuse.methods.negatives.false_negative_bound import exceedance
from transfuse.methods.negatives.mined_pairs import (
    MinedNegative,
    plain,
    read_candidates,
    read_judged,
    read_mined,
    read_positives,
    write_cleaned,
    write_for_judging,
)
from transfuse.methods.negatives.query_similarities import Similarities, similarities

__all__ = ["MinedNegative", "audit", "audit_mined_negatives", "near_duplicates", "tfidf_encoder"]

NULL_DRAWS = 200  # random sets of negatives that say how often the audit would flag clean ones
_NULL_BOOTSTRAP = 100  # draws of the interval within each
_SIMILAR = 0.8  # Jaccard similarity from which two texts count as near-duplicates, as in web deduplication
_SHINGLE = 3  # words
_JUDGED = 100  # negatives in the sample for judging: a share of a quarter comes out within 9 points
_REMEDY_BOUND = (
    "judge a random sample (--to-judge FILE writes one, --judged FILE reads it); then train with weights (CETLoss), "
    "mine with a margin below the positive, or drop those of high suspicion (--cleaned FILE)"
)


def near_duplicates(mined: Sequence[MinedNegative], positives: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Which negatives say nearly what a known positive of their query says: Jaccard similarity of word 3-grams.

    Args:
        mined: n negatives.
        positives: known positives by query, both plain text.

    Returns:
        Shape (n,), bool; a negative that is a known positive itself counts too.
    """
    shingles: dict[str, frozenset[str]] = {}

    def of(text: str) -> frozenset[str]:
        if text not in shingles:
            words = text.split()
            parts = (" ".join(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1)))
            shingles[text] = frozenset(parts)
        return shingles[text]

    def alike(one: frozenset[str], other: frozenset[str]) -> bool:
        shared = len(one & other)
        return shared >= _SIMILAR * (len(one) + len(other) - shared)

    return np.array(
        [any(alike(of(plain(n.text)), of(text)) for text in positives.get(plain(n.query), ())) for n in mined], bool
    )


def audit_mined_negatives(
    mined: Sequence[MinedNegative],
    positives: Mapping[str, Sequence[str]],
    candidates: Sequence[str],
    encoder: Encoder,
    *,
    judged: Sequence[bool] = (),
    tolerated: float = 0.05,
    queries: int = 1000,
    draws: int = 1000,
    seed: int = 0,
    cache: Path | None = None,
) -> AuditReport:
    """Findings about mined negatives; see `audit` for the arguments that the command has too.

    Args:
        mined: negatives with their queries.
        positives: known positives by query, both as `plain` text.
        candidates: texts of the corpus that was mined.
        encoder: list of texts -> unit vectors (n, d).
        judged: for a random sample of the negatives that are not known positives, whether each is relevant.
        tolerated: share of false negatives that does no harm.
        queries: that are looked at for similarities.
        draws: of the bootstrap.
        seed: of samples and bootstrap.
        cache: folder for embeddings.

    Raises:
        UserError: the pairs and the positives share too few queries.
    """
    check_queries(mined, positives)
    known = known_positives(mined, positives)
    near = near_duplicates(mined, positives) & ~known
    counted = [_known_finding(known), _near_finding(near)]
    rest = [one for one, drop in zip(mined, known | near, strict=True) if not drop and plain(one.query) in positives]
    if len({one.query for one in rest}) < 2:
        counted.append(_info("negatives left for similarities", len(rest), "too few queries for the other findings"))
        return AuditReport("mined negatives", "negatives", tuple(counted), None, "counts only, nothing is estimated")
    rest = _sample(rest, queries, seed)
    similar = similarities(rest, positives, candidates, encoder, seed=seed, cache=cache)
    findings = [*counted, *_estimated(rest, similar, tolerated, draws, seed)]
    if judged:
        findings.insert(2, _judged_finding(judged, tolerated))
    alarm = false_alarms(similar, tolerated, seed)
    return AuditReport(
        subject=f"{len(mined)} mined negatives of {len({one.query for one in mined})} queries",
        method="negatives",
        findings=tuple(findings),
        false_alarm_rate=alarm,
        calibration=f"{NULL_DRAWS} sets of random candidates in place of the negatives, against the same threshold; "
        "the other findings are counts",
        environment={
            "candidates": len(candidates),
            "encoder": getattr(encoder, "identity", "a callable"),
            "queries looked at": len(similar.random),
            "seed": seed,
        },
    )


def check_queries(mined: Sequence[MinedNegative], positives: Mapping[str, Sequence[str]]) -> None:
    """Refuse pairs whose queries the positives do not know."""
    asked = list(dict.fromkeys(plain(one.query) for one in mined))
    missing = [query for query in asked if query not in positives]
    if 2 * len(missing) > len(asked):
        raise UserError(
            f"{len(missing)} of {len(asked)} queries of the pairs have no known positive, such as {missing[0][:60]!r}",
            "the same queries, written alike, in --pairs and --positives",
        )


def known_positives(mined: Sequence[MinedNegative], positives: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Which negatives are a known positive of their query, letter by letter. Shape (n,), bool."""
    sets = {query: set(texts) for query, texts in positives.items()}
    return np.array([plain(one.text) in sets.get(plain(one.query), ()) for one in mined], bool)


def false_alarms(similar: Similarities, tolerated: float, seed: int) -> float:
    """Share of random sets of candidates that the bound would flag."""
    rng = np.random.default_rng(seed)
    flagged = 0
    for index in range(NULL_DRAWS):
        drawn, query = similar.draw_random(rng)
        flagged += len(drawn) > 0 and similar.bound_of(drawn, query, _NULL_BOOTSTRAP, index).low > tolerated
    return flagged / NULL_DRAWS


def _sample(mined: list[MinedNegative], queries: int, seed: int) -> list[MinedNegative]:
    names = list(dict.fromkeys(one.query for one in mined))
    if len(names) <= queries:
        return mined
    chosen = {names[i] for i in np.random.default_rng(seed).choice(len(names), queries, replace=False)}
    return [one for one in mined if one.query in chosen]


def _wilson(hits: int, of: int) -> tuple[float, float]:
    interval = binomtest(hits, of).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _known_finding(known: np.ndarray) -> Finding:
    hits = int(known.sum())
    return Finding(
        "known positives among the negatives", hits / len(known), _wilson(hits, len(known)), 0.0,
        "finding" if hits else "ok", f"{hits} of {len(known)} negatives are labelled as positives of the same query",
        "drop them: --cleaned FILE writes the pairs without them" if hits else "",
    )  # fmt: skip


def _near_finding(near: np.ndarray) -> Finding:
    hits = int(near.sum())
    return Finding(
        "near-duplicates of known positives", hits / len(near), _wilson(hits, len(near)), 0.0,
        "finding" if hits else "ok",
        f"{hits} further negatives share {_SIMILAR:.0%} of their word {_SHINGLE}-grams with a positive of their query",
        "drop them with --cleaned FILE, and take duplicates out of the corpus before mining" if hits else "",
    )  # fmt: skip


def _judged_finding(judged: Sequence[bool], tolerated: float) -> Finding:
    hits = sum(judged)
    low, high = _wilson(hits, len(judged))
    verdict = _verdict(low, high, tolerated)
    return Finding(
        "false negatives by judgement", hits / len(judged), (low, high), tolerated, verdict,
        f"{hits} of {len(judged)} judged negatives are relevant; holds for all if they were drawn at random",
        _REMEDY_BOUND if verdict == "finding" else "",
    )  # fmt: skip


def _verdict(low: float, high: float, tolerated: float) -> Result:
    return "finding" if low > tolerated else "ok" if high <= tolerated else "info"


def _info(name: str, value: float, meaning: str, interval: tuple[float, float] | None = None) -> Finding:
    return Finding(name, float(value), interval, None, "info", meaning)


def _estimated(
    mined: Sequence[MinedNegative], similar: Similarities, tolerated: float, draws: int, seed: int
) -> list[Finding]:
    """What similarities say: the bound, its two controls, how it goes with hardness and with the retriever."""
    every = np.ones(len(mined), bool)
    whole = similar.bound(every, draws, seed)
    verdict = _verdict(whole.low, whole.high, tolerated)
    meaning = (
        "upper bound of the share of the other negatives that are as similar to their queries as known positives are; "
        "hard true negatives count in, so that only judging can confirm it"
    )
    remedy = _REMEDY_BOUND if verdict == "finding" else ""
    interval = (whole.low, whole.high)
    findings = [Finding("unlabelled positives at most", whole.value, interval, tolerated, verdict, meaning, remedy)]
    drawn, query = similar.draw_random(np.random.default_rng(seed))
    controls = {
        "the same bound, random candidates": (drawn, query, "control: what negatives drawn blindly would give"),
        "the same bound, negatives of other queries": (
            similar.other, similar.negative_query, "control: the same texts beside queries they were not mined for"
        ),
    }  # fmt: skip
    for name, (values, at, meaning) in controls.items():
        if len(values):
            bound = similar.bound_of(values, at, draws, seed)
            findings.append(_info(name, bound.value, meaning, (bound.low, bound.high)))
    for name, rows in _parts(mined).items():
        part = similar.bound(rows, draws, seed)
        findings.append(_info(f"the same bound, {name}", part.value, f"{rows.sum()} negatives", (part.low, part.high)))
    above = "share more similar to the query than all its known positives; a margin of 0 when mining drops these"
    separation = "how often a known positive is more similar to its query than a negative; 1 tells all apart, 0.5 none"
    if similar.auroc < 0.5:
        separation += (
            ". Below 0.5 the miner chose by a similarity like this one, and the bound says little: take another --model"
        )
    return [
        *findings,
        _info("negatives above every known positive", similar.above_positives.mean(), above),
        _info("similarity tells them apart (AUROC)", similar.auroc, separation),
    ]


def _parts(mined: Sequence[MinedNegative]) -> dict[str, np.ndarray]:
    """Halves by rank within the query, and retrievers, as far as there is more than one of either."""
    rank = np.array([one.rank for one in mined])
    middle = float(np.median(rank))
    parts = {f"ranks up to {middle:g}": rank <= middle, f"ranks above {middle:g}": rank > middle}
    retrievers = sorted({one.retriever for one in mined})
    if len(retrievers) > 1:
        names = np.array([one.retriever for one in mined])
        parts |= {f"retriever {name or '(not named)'}": names == name for name in retrievers}
    return {name: rows for name, rows in parts.items() if rows.any() and not rows.all()}


def audit(
    *,
    pairs: Annotated[Path, "mined negatives: CSV, TSV or JSONL as mine_hard_negatives gives; rank, retriever if known"],
    positives: Annotated[Path, "known positives: rows with query and positive (or answer, document)"],
    candidates: Annotated[Path, "the corpus that was mined: rows with text, and id if pairs name documents by ids"],
    judged: Annotated[
        Path | None, "a random sample of the negatives judged by people: rows with relevant, 1 or 0"
    ] = None,
    to_judge: Annotated[Path | None, "write a random sample of the negatives for people to judge"] = None,
    cleaned: Annotated[Path | None, "write triplets without known positives, with a column suspicion"] = None,
    model: Annotated[str, "minilm, tfidf, or a sentence-transformers model; better not the one that mined"] = "minilm",
    tolerated: Annotated[float, "share of false negatives that you can live with"] = 0.05,
    queries: Annotated[int, "how many queries to encode; all of them where --cleaned is given"] = 1000,
    draws: Annotated[int, "bootstrap draws"] = 1000,
    seed: Annotated[int, "of samples and bootstrap"] = 0,
) -> AuditReport:
    """How many of your mined hard negatives are positives: known ones, near-duplicates, and at most how many others.

    Returns:
        Findings; exit status 1 if there are known positives or near-duplicates among the negatives, or if more than
        the tolerated share cannot be told from positives.
    """
    if not 0 < tolerated < 1 or queries < 2 or draws < 1:
        raise UserError(f"tolerated {tolerated:g}, queries {queries}, draws {draws}", "a share, 2 or more, 1 or more")
    corpus = read_candidates(candidates)
    known, mined = read_positives(positives, corpus), read_mined(pairs, corpus)
    labels = read_judged(judged) if judged else []
    check_queries(mined, known)
    encoder = _encoder(model)
    cache = cache_folder()
    looked_at = len(mined) if cleaned else queries
    sys.stderr.write(f"encoding {min(looked_at, len({one.query for one in mined}))} queries and their texts\n")
    report = audit_mined_negatives(
        mined, known, corpus.texts, encoder, judged=labels, tolerated=tolerated, queries=looked_at, draws=draws,
        seed=seed, cache=cache,
    )  # fmt: skip
    kept = _without_positives(mined, known)
    if cleaned:
        write_cleaned(cleaned, kept, known, suspicion_of(kept, known, corpus.texts, encoder, cache))
        sys.stderr.write(f"written: {cleaned} ({len(kept)} of {len(mined)} negatives)\n")
    if to_judge:
        drawn = np.random.default_rng(seed).permutation(len(kept))[:_JUDGED]
        write_for_judging(to_judge, [kept[index] for index in drawn], known)
        sys.stderr.write(f"written: {to_judge} (fill the column relevant with 1 or 0, then --judged {to_judge})\n")
    return report


def _encoder(model: str) -> Encoder:
    if model == "minilm":
        return packaged_encoder()
    return tfidf_encoder() if model == "tfidf" else load_encoder(model)


def _without_positives(mined: Sequence[MinedNegative], known: Mapping[str, Sequence[str]]) -> list[MinedNegative]:
    drop = known_positives(mined, known) | near_duplicates(mined, known)
    return [one for one, gone in zip(mined, drop, strict=True) if not gone and plain(one.query) in known]


def suspicion_of(
    mined: Sequence[MinedNegative],
    positives: Mapping[str, Sequence[str]],
    candidates: Sequence[str],
    encoder: Encoder,
    cache: Path | None = None,
) -> np.ndarray:
    """Share of known positives that are at most as similar to their query as each negative to its own. Shape (n,).

    0: less similar than every known positive; 1: more similar than all of them. No probability.
    """
    if len({plain(one.query) for one in mined}) < 2:
        raise UserError("fewer than 2 queries with negatives are left after cleaning", "more pairs")
    similar = similarities(mined, positives, candidates, encoder, cache=cache)
    return exceedance(similar.negative, similar.positive)
