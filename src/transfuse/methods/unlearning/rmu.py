"""Unlearn by steering what a middle layer holds for texts to forget towards one fixed random direction.

L = mean over tokens of |h(x_f) - c u|^2 / d, plus alpha times the same distance of h(x_r) from the first model's on
texts to keep; h is the residual stream behind one block, u a random direction of length 1. All tokens count, those of
the prompt as well, as in the official code.

>>> import torch
>>> squares(torch.tensor([[3.0, 0.0]]), torch.tensor([1.0, 0.0]))
tensor([2.])

Reading stops at that block, unless the model is wrapped for several devices, whose wrappers want a whole pass.

Nathaniel Li et al., The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning, ICML 2024,
https://arxiv.org/abs/2403.03218
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, pad_answers
from transfuse.methods.unlearning.answer_training import OnStep, pick
from transfuse.methods.unlearning.decoder_blocks import decoder_blocks, hidden_of
from transfuse.methods.unlearning.gradient_objective import GradientConfig, Objective, unlearn_by_gradient


@dataclass(frozen=True)
class Config(GradientConfig):
    """RMU; defaults are OpenUnlearning's, the official code has c = 6.5, alpha = 1200 and three down-projections."""

    layer: int | None = None  # block whose output is steered, from 0; None is the one at 7 / 32 of the depth
    c: float = 2.0  # length of the target
    down_only: int = 0  # train the down-projections of this many blocks up to `layer` only; 0 trains everything

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retain == "kl":
            raise UserError("retain 'kl' with rmu", "'nll', which stands for its own retain term, or 'none'")


def squares(hidden: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of each token's state from a target: (tokens, d) and (d,) or (tokens, d) -> (tokens,)."""
    return (hidden - target).square().mean(-1)


def direction(width: int, seed: int) -> Tensor:
    """u: uniform on [0, 1) in each coordinate, then scaled to length 1, (width,)."""
    drawn = torch.tensor(np.random.default_rng([seed, 6]).random(width), dtype=torch.float32)
    return drawn / drawn.norm()


class _Enough(Exception):  # noqa: N818 (nothing went wrong)
    """Ends a forward pass that has passed the block."""


class RMU(Objective):
    """RMU's two terms; see the module.

    Args:
        config: settings.
        tokenizer: of the model.
        forget: texts to forget.
        retain: texts to keep.
        model: whose block it is.
        seed: of the direction.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Any,
        forget: Sequence[EncodedAnswer],
        retain: Sequence[EncodedAnswer],
        model: nn.Module,
        seed: int = 0,
    ) -> None:
        super().__init__(config, tokenizer, forget, retain)
        blocks = decoder_blocks(model)
        self.layer = round(7 / 32 * len(blocks)) if config.layer is None else config.layer
        if not 0 <= self.layer < len(blocks):
            raise UserError(f"layer {self.layer}", f"0 to {len(blocks) - 1}")
        self.block = blocks[self.layer].module
        if config.down_only:
            names = [block.name for block in blocks[max(0, self.layer + 1 - config.down_only) : self.layer + 1]]
            self.config = dataclasses.replace(config, trained="|".join(rf"^{re.escape(n)}\.weight$" for n in names))
        width = int(model.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
        self.target = config.c * direction(width, seed)
        self.first: list[Tensor] = []

    def keep_reference(self, model: nn.Module) -> None:
        """The first model's states of the texts to keep, (tokens, d) each, in main memory."""
        self.first = []
        training = model.training
        model.eval()
        with torch.no_grad():
            for at in range(0, len(self.retain), 64):
                items = self.retain[at : at + 64]
                self.first += self._states(model, items).cpu().split([len(item.ids) for item in items])
        model.train(training)

    def values(self, model: nn.Module, forget: Sequence[int], retain: Sequence[int]) -> tuple[Tensor, Tensor]:
        """One value a token of each text."""
        gone, kept = pick(self.forget, forget), pick(self.retain, retain)
        states = self._states(model, [*gone, *kept])
        at = sum(len(item.ids) for item in gone)
        values = squares(states[:at], self.target.to(states.device))
        if not kept:
            return values, values.new_zeros(0)
        return values, squares(states[at:], torch.cat([self.first[i] for i in retain]).to(states.device))

    def sizes(self, forget: Sequence[int], retain: Sequence[int]) -> tuple[int, int]:
        """Tokens of each text, prompts and all."""
        return sum(len(self.forget[i].ids) for i in forget), sum(len(self.retain[i].ids) for i in retain)

    def _states(self, model: nn.Module, items: Sequence[EncodedAnswer]) -> Tensor:
        """The residual stream behind the block at all tokens, item after item, (tokens, d) in float32."""
        device = next(model.parameters()).device
        inputs = {key: value.to(device) for key, value in pad_answers(items, self.pad).items() if key != "labels"}
        seen: list[Tensor] = []
        wrapped = hasattr(model, "module")

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(hidden_of(output))
            if not wrapped:
                raise _Enough

        handle = self.block.register_forward_hook(keep)
        try:
            with contextlib.suppress(_Enough):
                model(**inputs, use_cache=False)
        finally:
            handle.remove()
        return seen[0][inputs["attention_mask"].bool()].float()


def unlearn_rmu(
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[EncodedAnswer],
    retain: Sequence[EncodedAnswer],
    config: Config | None = None,
    *,
    seed: int,
    on_step: OnStep | None = None,
) -> nn.Module:
    """Steer a block's states of the forget set away, in place. Arguments as of `unlearn_by_gradient`."""
    objective = RMU(config or Config(), tokenizer, forget, retain, model, seed)
    return unlearn_by_gradient(objective, model, seed=seed, on_step=on_step)
