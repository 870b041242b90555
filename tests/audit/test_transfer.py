"""The transfer audit on real learners: a source that helps, one that does nothing, one that hurts."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

from transfuse.audit import AuditReport, transfer_audit
from transfuse.errors import UserError

Source = tuple[np.ndarray, np.ndarray]
X, Y = load_digits(return_X_y=True)
X = X / 16


def learner(size: int, classes: tuple[int, ...] = tuple(range(10))) -> Callable[[Source | None, int], float]:
    """Naive Bayes on a few target digits and the source; accuracy on held-out target digits."""
    own = np.isin(Y, classes)

    def fit_score(source: Source | None, seed: int) -> float:
        order = np.random.default_rng(seed).permutation(np.flatnonzero(own)[900:])
        train, test = order[:size], order[size : size + 300]
        x, y = X[train], Y[train]
        if source is not None:
            x, y = np.concatenate([x, source[0]]), np.concatenate([y, source[1]])
        return GaussianNB(var_smoothing=1e-2).fit(x, y).score(X[test], Y[test])

    return fit_score


def verdicts(report: AuditReport) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in report.findings}


@pytest.fixture(scope="module")
def helpful() -> AuditReport:
    return transfer_audit(learner(30), (X[:400], Y[:400]), subject="digits for digits")


def test_a_source_of_the_same_task_helps(helpful: AuditReport) -> None:
    assert verdicts(helpful) == {
        "gain over no source": "ok",
        "gain over shuffled labels": "ok",
        "gain over noise": "ok",
        "placebo: shuffled labels over no source": "info",
    }
    assert helpful.exit_code == 0
    gain = helpful.findings[0]
    assert gain.interval is not None and 0.02 < gain.interval[0] < gain.value < gain.interval[1]
    assert helpful.false_alarm_rate is not None and helpful.false_alarm_rate <= 0.06


def test_the_report_says_what_was_measured(helpful: AuditReport) -> None:
    table = json.loads(helpful.to_json())
    means = table["environment"]["mean scores"]
    assert means["source"] - means["no source"] == pytest.approx(helpful.findings[0].value)
    assert table["environment"]["seeds"] == list(range(10))
    assert "digits for digits" in str(helpful) and "false-alarm rate" in str(helpful)


def test_a_source_with_wrong_labels_hurts() -> None:
    report = transfer_audit(learner(200), (X[:400], (Y[:400] + 1) % 10))
    assert verdicts(report)["gain over no source"] == "finding"
    assert report.findings[0].value < 0 and "negative transfer" in report.findings[0].meaning
    assert report.findings[0].remedy
    assert report.exit_code == 1


def test_a_source_without_labels_of_use_is_not_credited() -> None:
    labels = np.random.default_rng(0).permutation(Y[:400])
    report = transfer_audit(learner(100), (X[:400], labels))
    found = {finding.name: finding for finding in report.findings}
    assert found["gain over shuffled labels"].verdict == "finding"
    assert found["gain over shuffled labels"].remedy
    assert report.exit_code == 1


def test_help_that_a_placebo_gives_too_is_told_apart() -> None:
    # the score counts rows seen, whatever they hold: "transfer" that is only more steps
    def fit_score(source: Source | None, seed: int) -> float:
        return (0 if source is None else 0.1) + 0.01 * np.random.default_rng(seed).standard_normal()

    report = transfer_audit(fit_score, (X[:50], Y[:50]))
    assert verdicts(report)["gain over no source"] == "ok"
    assert verdicts(report)["gain over shuffled labels"] == "finding"
    assert "not knowledge" in report.findings[-1].meaning


def test_scores_of_which_less_is_better() -> None:
    def loss(source: Source | None, seed: int) -> float:
        keep = np.random.default_rng(seed).permutation(np.arange(900, len(Y)))
        x, y = X[keep[:20]], Y[keep[:20]]
        if source is not None:
            x, y = np.concatenate([x, source[0]]), np.concatenate([y, source[1]])
        model = LogisticRegression(max_iter=300).fit(x, y)
        chance = model.predict_proba(X[keep[20:200]])
        place = np.searchsorted(model.classes_, Y[keep[20:200]]).clip(max=chance.shape[1] - 1)
        return float(-np.log(chance[np.arange(180), place] + 1e-9).mean())

    report = transfer_audit(loss, (X[:200], Y[:200]), seeds=range(5), higher_is_better=False)
    assert verdicts(report)["gain over no source"] == "ok" and report.findings[0].value > 0
    means = report.environment["mean scores"]
    assert 0 < means["source"] < means["no source"]


def test_mean_scores_keep_their_sign() -> None:
    report = transfer_audit(lambda source, seed: -1.0 - seed, (X[:9], Y[:9]), seeds=range(5))
    assert report.environment["mean scores"]["source"] == -3.0


def test_a_useless_source_is_seldom_credited() -> None:
    rng = np.random.default_rng(0)
    source = (np.zeros((5, 2)), np.arange(5))
    credited = hurt = 0
    runs = 120
    for _ in range(runs):
        report = transfer_audit(lambda source, seed: float(rng.standard_normal()), source, seeds=range(6))
        credited += report.findings[0].verdict == "ok"
        hurt += "negative transfer" in report.findings[0].meaning
    assert max(credited, hurt) / runs <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / runs)


def test_a_gain_below_the_minimum_is_not_enough(helpful: AuditReport) -> None:
    report = transfer_audit(learner(30), (X[:400], Y[:400]), minimum=0.9)
    assert verdicts(report)["gain over no source"] == "finding"
    assert report.findings[0].threshold == 0.9


@pytest.mark.parametrize(
    ("source", "seeds", "words"),
    [
        ((X[:5], Y[:4]), range(5), "5 rows of features and 4 labels"),
        ((X[:0], Y[:0]), range(5), "empty"),
        ((3, 4), range(5), "not made of arrays"),
        ((X[:5], Y[:5]), range(4), "at least 5 distinct seeds"),
        ((X[:5], Y[:5]), [1, 1, 2, 3, 4, 5], "at least 5 distinct seeds"),
    ],
)
def test_bad_input_is_one_line(source: Source, seeds: range, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        transfer_audit(lambda source, seed: 0.0, source, seeds=seeds)
    assert "\n" not in str(caught.value)


def test_a_score_that_is_not_finite_names_arm_and_seed() -> None:
    scores = iter([0.1, 0.2, 0.3, np.nan])
    with pytest.raises(UserError, match="returned nan with noise, seed 0"):
        transfer_audit(lambda source, seed: next(scores), (X[:9], Y[:9]))
