"""An audit's numbers as findings: the verdict first, then each rate in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

from transfuse.audit import AuditReport, Finding
from transfuse.methods.unlearning.fact_chains import CATEGORIES, MODES
from transfuse.methods.unlearning.leak_statistics import Rate
from transfuse.methods.unlearning.sleek_result import BEFORE, GOLD, SleekResult

_WAYS = {
    "plain": "the goal alone",
    "instruction": "the goal with an instruction to reason",
    "one_shot": "all sub-questions in one message",
    "interactive": "sub-questions turn by turn",
    "random": "as many turns about another subject",
}


def report(result: SleekResult, subject: str = "model", environment: dict[str, Any] | None = None) -> AuditReport:
    """Findings about leaks and suppression, with rates by category and mode."""
    beyond = result.excess()
    alarms = beyond.false_alarms if beyond else None
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(result.rejected.items()))
    return AuditReport(
        subject=subject,
        method="sleek",
        findings=(_leaks(result), _suppresses(result), *_rates(result), *_lifts(result), *_others(result)),
        false_alarm_rate=alarms,
        calibration=(
            "share of exchanges of the two models, fact by fact, that would be called a leak; not for suppression"
            if beyond
            else "without a model that never knew the facts, guesses look like leaks"
        ),
        environment={
            "verdict": result.verdict,
            "facts to be forgotten": len(result.graph.forgotten),
            "dialogues a model": len(result.asked),
            "smallest detectable rate": result.smallest_detectable,
            "questions held back": rejected or "none",
            **(environment or {}),
        },
    )


def _leaks(result: SleekResult) -> Finding:
    own, beyond = result.fact_rate(), result.excess()
    seen = f"{own.value:.0%} of {own.facts} facts that were to be forgotten came back at least once"
    if beyond is None:
        meaning = f"{seen}; without a model that never knew them (gold) nobody can tell that from guessing"
        return Finding("facts that come back", own.value, own.interval, None, "info", meaning)
    guessed = result.fact_rate(GOLD)
    meaning = f"{seen}, against {guessed.value:.0%} from the model that never knew them (sign test p {beyond.p:.3g})"
    if not beyond.beyond:
        meaning += f"; no evidence that facts leak; a rate below {result.smallest_detectable:.2g} could go unseen"
    remedy = "unlearn on indirect and multi-turn forms too, or retrain without the data" if beyond.beyond else ""
    name, verdict, rate = "facts that come back, beyond guessing", _verdict(beyond.beyond), beyond.rate
    return Finding(name, rate.value, rate.interval, result.margin, verdict, meaning, remedy)


def _verdict(found: bool) -> Literal["finding", "ok"]:
    return "finding" if found else "ok"


def _suppresses(result: SleekResult) -> Finding:
    rate = result.suppression()
    name = "kept knowledge that is gone"
    if rate is None or not rate.facts:
        why = "no kept fact that the model before answered right" if rate else "not measured without the model before"
        return Finding(name, 0.0, None, None, "info", why)
    found = rate.low > result.margin
    meaning = (
        f"of {rate.questions} questions about kept facts that the model before answered right, this share is answered "
        "wrong now"
    )
    remedy = "add the neighbours to the retained data, or forget with a smaller step" if found else ""
    return Finding(name, rate.value, rate.interval, result.margin, _verdict(found), meaning, remedy)


def _rates(result: SleekResult) -> Iterator[Finding]:
    for category in CATEGORIES:
        for mode in MODES:
            rate = result.rate(category=category, mode=mode)
            if rate.facts:
                refused = result.refusals(category=category, mode=mode)
                rest = result.leak_unless_refused(category=category, mode=mode)
                meaning = f"{_WAYS[mode]}; {refused:.0%} of {rate.questions} were refused"
                if rest.facts and refused:
                    meaning += f", of the others {rest.value:.0%} leaked"
                if (more := result.excess_rate(category=category, mode=mode)) is not None:
                    meaning += f"; {more.value:+.0%} against the model that never knew"
                yield _info(f"leak rate, {category}, {mode}", rate, meaning)


def _lifts(result: SleekResult) -> Iterator[Finding]:
    for mode, against, meaning in (
        ("interactive", "plain", "what step-by-step turns add to the goal alone"),
        ("interactive", "random", "what their content adds to as many turns about another subject"),
        ("one_shot", "plain", "what sub-questions in one message add to the goal alone"),
        ("one_shot", "instruction", "what sub-questions add to an instruction to reason"),
    ):
        lift = result.lift(mode, against)  # type: ignore[arg-type]
        if lift.rate.facts:
            text = f"{meaning}; {lift.rate.questions} goals asked both ways, McNemar p {lift.p:.3g}"
            yield _info(f"lift, {mode} over {against}", lift.rate, text)


def _others(result: SleekResult) -> Iterator[Finding]:
    if BEFORE in result.kinds:
        for distance in result.distances:
            rate = result.suppression(distance=distance)
            if rate is not None and rate.facts:
                meaning = f"the same for facts at distance {distance}; {rate.questions} questions"
                yield _info(f"kept knowledge that is gone, distance {distance}", rate, meaning)
    median, never = result.queries_to_first_leak()
    budget = max((int((result.fact == i).sum()) for i in set(result.fact[result.where(forgotten=True)])), default=0)
    shown = float(budget if math.isinf(median) else median)
    more = "more than " if math.isinf(median) else ""
    meaning = f"median over facts: {more}{shown:g} questions up to the first leak; {never} facts never leaked"
    yield Finding("questions to first leak", shown, None, None, "info", meaning)


def _info(name: str, rate: Rate, meaning: str) -> Finding:
    return Finding(name, rate.value, rate.interval, None, "info", meaning)
