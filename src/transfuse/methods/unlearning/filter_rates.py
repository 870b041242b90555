"""What a content filter catches, what it blocks without need, and what gets past it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from transfuse.errors import UserError
from transfuse.methods.unlearning.content_filters import ContentFilter, Conversation, threshold_at
from transfuse.methods.unlearning.ladder_replies import LadderReplies


@dataclass(frozen=True)
class FilterRates:
    """One filter on one attack.

    Attributes:
        name: the filter's.
        threshold: above it a conversation is blocked; from one half of the benign conversations.
        false_alarms: share of the other half that is blocked.
        benign: conversations in that half.
        caught: level -> share of its conversations that are blocked.
        auc: level -> probability that an attack scores higher than a benign conversation.
        residual: level -> balanced share of questions that are answered right and not blocked.
    """

    name: str
    threshold: float
    false_alarms: float
    benign: int
    caught: Mapping[str, float]
    auc: Mapping[str, float]
    residual: Mapping[str, float]


def filter_rates(
    content_filter: ContentFilter,
    conversations: Sequence[Conversation],
    replies: LadderReplies,
    benign: Sequence[Conversation],
    alarm_rate: float,
) -> FilterRates:
    """Calibrate a filter on every second benign conversation, and measure it on the others and on an attack.

    Args:
        content_filter: the filter.
        conversations: the attack's, in the order of `replies.asked`.
        replies: what a model answered.
        benign: conversations that should pass.
        alarm_rate: share of them that may be blocked.
    """
    if len(benign) < 4:
        raise UserError(f"{len(benign)} benign conversations", "at least four")
    quiet = content_filter.scores(benign)
    threshold = threshold_at(quiet[::2], alarm_rate)
    scores = content_filter.scores(conversations)
    levels = list(dict.fromkeys(one.level for one in replies.asked))
    caught, auc, residual = {}, {}, {}
    for level in levels:
        own = scores[replies.at(level)]
        caught[level] = float((own > threshold).mean())
        auc[level] = area(own, quiet[1::2])
        residual[level] = float(replies.weights(level) @ (replies.hits(level) & (own <= threshold)))
    alarms = float((quiet[1::2] > threshold).mean())
    return FilterRates(content_filter.name, threshold, alarms, len(quiet[1::2]), caught, auc, residual)


def area(high: np.ndarray, low: np.ndarray) -> float:
    """Probability that one of `high` lies above one of `low`, ties count half.

    >>> area(np.array([1.0, 2.0]), np.array([1.0, 0.0]))
    0.875
    """
    ranked = np.sort(low)
    below = np.searchsorted(ranked, high, "left") + np.searchsorted(ranked, high, "right")
    return float(below.mean() / (2 * len(ranked)))
