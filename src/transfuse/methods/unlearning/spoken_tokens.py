"""How messages become the text that a model continues, and its tokens a reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transfuse.methods.unlearning.respondents import Message

Render = Callable[[Any, list[Message]], str]


def render_messages(tokenizer: Any, messages: list[Message]) -> str:
    """A dialogue as the text that the model continues: its chat template, or questions and answers without one."""
    if getattr(tokenizer, "chat_template", None):
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    lines = [f"{'Question' if m['role'] == 'user' else 'Answer'}: {m['content']}" for m in messages]
    return "\n".join([*lines, "Answer:"])


@dataclass(frozen=True)
class Speech:
    """How a model's tokens become replies, the same for all ways to compute them.

    Attributes:
        tokenizer: with a chat template or without.
        render: messages -> text to continue.
        stop: texts that end a reply.
        ends: tokens that do.
        special: whether the tokenizer adds its special tokens; a chat template brings its own.
    """

    tokenizer: Any
    render: Render
    stop: tuple[str, ...]
    ends: frozenset[int]
    special: bool

    @classmethod
    def of(cls, model: Any, tokenizer: Any, render: Render, stop: Sequence[str] | None) -> Speech:
        template = bool(getattr(tokenizer, "chat_template", None))
        default = ("\n",) if render is render_messages and not template else ()
        named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
        return cls(tokenizer, render, default if stop is None else tuple(stop), frozenset(ends), not template)

    def encode(self, messages: list[Message]) -> list[int]:
        text = self.render(self.tokenizer, messages)
        return list(self.tokenizer(text, add_special_tokens=self.special)["input_ids"])

    def text(self, ids: Sequence[int]) -> str:
        """Tokens of a reply as text, up to the first stop."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return text[: min((text.index(stop) for stop in self.stop if stop in text), default=len(text))].strip()

    def is_over(self, ids: Sequence[int]) -> bool:
        """Whether a reply is complete."""
        if ids[-1] in self.ends:
            return True
        if not self.stop:
            return False
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True)).lstrip()
        return any(stop in text for stop in self.stop)
