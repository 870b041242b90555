"""A value at a subject's name that makes the model begin its reply in a given way: the optimised target of ROME.

K. Meng, D. Bau, A. Andonian, Y. Belinkov: Locating and Editing Factual Associations in GPT, NeurIPS 2022. Here it is
the target of the mode "reject" of `rocr`, and of the baseline in `fact_rewriting`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.decoder_blocks import evaluating, hidden_of
from transfuse.methods.unlearning.subject_places import PlacedSubject, pad_right


@dataclass(frozen=True)
class Search:
    """How the value is found; the numbers are those of ROCR's code."""

    steps: int = 25  # of Adam
    rate: float = 0.1  # of Adam
    decay: float = 0.5  # weight of |delta| / |z|^2
    divergence: float = 0.125  # weight of the KL divergence of what follows the essence prompt
    clamp: float = 1.0  # |delta| is at most this times |z|
    enough: float = 0.05  # the loss at which ROME stops


def reply_target(
    model: nn.Module,
    module: nn.Module,
    z: Tensor,
    prompts: Sequence[PlacedSubject],
    reply: Sequence[int],
    essence: PlacedSubject,
    pad: int,
    search: Search,
) -> Tensor:
    """z + delta, (d,): what `module` should put out at the subject so that `reply` becomes likely.

    Args:
        model: the model; its weights are not changed.
        module: whose output is changed: a block, or a down-projection.
        z: what it puts out there now, (d,).
        prompts: whole prompts with the subject; a reply follows each.
        reply: token ids of how the reply shall begin.
        essence: the prompt "{s} is a", whose continuation is to stay as it is.
        pad: id to pad with.
        search: how.
    """
    if not reply:
        raise UserError("an empty reply", "a text that the tokenizer knows")
    device = z.device
    batch = pad_right([*((*p.ids, *reply) for p in prompts), essence.ids], pad, device)
    rows = torch.arange(len(prompts) + 1, device=device)
    places = torch.tensor([p.place for p in (*prompts, essence)], device=device)
    span = torch.tensor([[len(p.ids) - 1 + i for i in range(len(reply))] for p in prompts], device=device)
    wanted = torch.tensor(reply, device=device).expand(len(prompts), -1)[..., None]
    delta = torch.zeros_like(z, requires_grad=True)

    def add(hooked: nn.Module, args: Any, output: Any) -> Any:
        hidden = hidden_of(output).clone()
        hidden[rows, places] += delta.to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    wanting = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)  # the gradient of delta alone is needed
    optimiser = torch.optim.Adam([delta], lr=search.rate)
    handle = module.register_forward_hook(add)
    start: Tensor | None = None
    try:
        with evaluating(model), torch.enable_grad():
            for _ in range(search.steps):
                logits = model(**batch, use_cache=False).logits.float()
                follows = logits[-1, len(essence.ids) - 1].log_softmax(-1)
                start = follows.detach() if start is None else start
                logp = logits[rows[:-1, None], span].log_softmax(-1)  # (prompts, reply, vocabulary)
                written = -logp.gather(-1, wanted).mean()
                kept = (follows.exp() * (follows - start)).sum()  # in the direction of the published code
                loss = written + search.divergence * kept + search.decay * delta.norm() / z.norm().square()
                if loss.item() < search.enough:
                    break
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                _clamp(delta, search.clamp * float(z.norm()))
    finally:
        handle.remove()
        for parameter in wanting:
            parameter.requires_grad_(True)
    return z + delta.detach()


@torch.no_grad()
def _clamp(delta: Tensor, largest: float) -> None:
    if (norm := float(delta.norm())) > largest:
        delta.mul_(largest / norm)
