"""Who answers an audit: a callable, a language model in this process, an endpoint. All take scripted dialogues, in which
the user's turns are fixed and the answers in between are the respondent's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from transfuse.errors import UserError

Message = dict[str, str]  # {"role": "user" or "assistant", "content": text}, as chat templates and endpoints take it
Ask = Callable[[list[Message]], str]


class Respondent(ABC):
    """Somebody who answers dialogues."""

    @abstractmethod
    def converse(self, dialogues: Sequence[Sequence[str]], draw: int = 0) -> list[list[str]]:
        """Lead dialogues to their end.

        Args:
            dialogues: the user's turns of each.
            draw: 0 for the most likely answers; 1, 2, ... for samples, the same for the same number where that can be.

        Returns:
            The replies, one to each turn of each dialogue.
        """


class OneByOne(Respondent):
    """Any callable that takes messages and returns a text; the same opening turns are asked once.

    >>> OneByOne(lambda messages: str(len(messages))).converse([["hello", "and?"], ["hello", "so?"]])
    [['1', '3'], ['1', '3']]
    """

    def __init__(self, ask: Ask) -> None:
        self.ask = ask

    def converse(self, dialogues: Sequence[Sequence[str]], draw: int = 0) -> list[list[str]]:
        known: dict[tuple[str, ...], str] = {}
        replies = []
        for number, turns in enumerate(dialogues):
            own: list[str] = []
            messages: list[Message] = []
            for place, turn in enumerate(turns):
                messages.append({"role": "user", "content": turn})
                key = tuple(turns[: place + 1]) if draw == 0 else (*turns[: place + 1], str(number))
                if key not in known:
                    known[key] = checked_reply(self.ask([dict(message) for message in messages]))
                own.append(known[key])
                messages.append({"role": "assistant", "content": own[-1]})
            replies.append(own)
        return replies


def checked_reply(reply: object) -> str:
    """A reply as text.

    Raises:
        UserError: it is none.
    """
    if not isinstance(reply, str):
        raise UserError(f"ask returned {type(reply).__name__}", "the reply as a text")
    return reply


def as_respondent(ask: Respondent | Ask) -> Respondent:
    """Whoever it is, as a respondent."""
    return ask if isinstance(ask, Respondent) else OneByOne(ask)
