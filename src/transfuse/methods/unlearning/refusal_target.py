"""A value for one position of the residual stream that makes the model begin its reply with a given refusal.

The optimised target of ROME (Meng and others, 2022), with a refusal in place of a new object. The target of the mode
"reject" of `rocr`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.decoder_blocks import Block, evaluating, hidden_of
from transfuse.methods.unlearning.subject_places import PlacedSubject, pad_right


@dataclass(frozen=True)
class Search:
    """How the value is found; the numbers are those of the published code."""

    steps: int = 25  # of Adam
    rate: float = 0.1  # of Adam
    decay: float = 0.5  # weight of |delta| / |z|^2
    divergence: float = 0.125  # weight of the KL divergence of what follows "{s} is a"
    clamp: float = 1.0  # |delta| is at most this times |z|
    enough: float = 0.05  # the loss at which ROME stops


def refusal_target(
    model: nn.Module,
    block: Block,
    z: Tensor,
    prompts: Sequence[PlacedSubject],
    refusal: Sequence[int],
    essence: PlacedSubject,
    pad: int,
    search: Search,
) -> Tensor:
    """z + delta, (d,): the residual stream after `block` at the subject that makes `refusal` the likely reply.

    Args:
        model: the model; its weights are not changed.
        block: the last block that will be edited.
        z: what the stream holds there now, (d,).
        prompts: whole prompts with the subject; a reply follows each.
        refusal: token ids of how the reply shall begin.
        essence: the prompt "{s} is a", whose continuation is to stay as it is.
        pad: id to pad with.
        search: how.
    """
    if not refusal:
        raise UserError("an empty refusal", "a text that the tokenizer knows")
    device = z.device
    batch = pad_right([*((*p.ids, *refusal) for p in prompts), essence.ids], pad, device)
    rows = torch.arange(len(prompts) + 1, device=device)
    places = torch.tensor([p.place for p in (*prompts, essence)], device=device)
    span = torch.tensor([[len(p.ids) - 1 + i for i in range(len(refusal))] for p in prompts], device=device)
    wanted = torch.tensor(refusal, device=device).expand(len(prompts), -1)[..., None]
    delta = torch.zeros_like(z, requires_grad=True)

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = hidden_of(output).clone()
        hidden[rows, places] += delta.to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    wanting = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)  # the gradient of delta alone is needed
    optimiser = torch.optim.Adam([delta], lr=search.rate)
    handle = block.module.register_forward_hook(add)
    start: Tensor | None = None
    try:
        with evaluating(model), torch.enable_grad():
            for _ in range(search.steps):
                logits = model(**batch, use_cache=False).logits.float()
                follows = logits[-1, len(essence.ids) - 1].log_softmax(-1)
                start = follows.detach() if start is None else start
                logp = logits[rows[:-1, None], span].log_softmax(-1)  # (prompts, refusal, vocabulary)
                written = -logp.gather(-1, wanted).mean()
                kept = (start.exp() * (start - follows)).sum()
                loss = written + search.divergence * kept + search.decay * delta.norm() / z.norm().square()
                if float(loss) < search.enough:
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
