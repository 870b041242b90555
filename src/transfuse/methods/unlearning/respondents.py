"""Who answers an audit: a callable, a language model in this process, an endpoint. All take scripted dialogues, in
which the user's turns are fixed and the answers in between are the respondent's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

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

    Args:
        ask: the callable.
        workers: calls at a time, for one that waits for a network.
    """

    def __init__(self, ask: Ask, workers: int = 1) -> None:
        self.ask, self.workers = ask, workers

    def answer(self, messages: list[Message], draw: int) -> str:
        """One reply; a plain callable is asked again for each draw."""
        return self.ask(messages)

    def converse(self, dialogues: Sequence[Sequence[str]], draw: int = 0) -> list[list[str]]:
        """Lead dialogues to their end, turn by turn; see `Respondent`."""
        replies: list[list[str]] = [[] for _ in dialogues]
        with ThreadPoolExecutor(self.workers) as pool:
            for turn in range(max(map(len, dialogues), default=0)):
                asked: dict[tuple[str, ...], list[int]] = {}
                for number, turns in enumerate(dialogues):
                    if len(turns) > turn:
                        alone = (str(number),) if draw else ()  # samples are not shared
                        asked.setdefault((*turns[: turn + 1], *alone), []).append(number)
                messages = [_messages(dialogues[m[0]][: turn + 1], replies[m[0]]) for m in asked.values()]
                each = pool.map if self.workers > 1 else map
                found = each(lambda m: checked_reply(self.answer(m, draw)), messages)
                for members, reply in zip(asked.values(), found, strict=True):
                    for member in members:
                        replies[member].append(reply)
        return replies


def _messages(turns: Sequence[str], replies: Sequence[str]) -> list[Message]:
    messages: list[Message] = []
    for place, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        if place < len(replies):
            messages.append({"role": "assistant", "content": replies[place]})
    return messages


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
