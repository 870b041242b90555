"""Stands in for `unlearned_models` until that is here, with its signature: four losses, one step size, first checkpoint
that answers the questions of the forget set no better than the gold model.

>>> sorted(LOSSES)
['grad_diff', 'idk_dpo', 'npo', 'rmu']
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfuse.data.fact_forms import HELD_OUT
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, encode_answer, pad_answers
from transfuse.studies.unlearning.fact_world import FactWorld
from transfuse.study.stage import Stages

_BETA, _STEPS, _RATE, _STEER = 0.1, 120, 1e-3, 6.0
_REFUSALS = ("i do not know", "that is unknown to me", "no idea", "cannot say", "sorry i never learned that")


def unlearned_model(world: FactWorld, method: str, stage: Stages) -> nn.Module:
    """The base, unlearned on the questions of the forget set."""
    inputs = {**vars(world.settings), "seed": world.streams.seed, "method": method}
    model = world.model("base")
    model.load_state_dict(
        stage("sleek_unlearned", functools.partial(_unlearn, world, method), inputs=inputs), strict=False
    )
    return model.eval()


def _unlearn(world: FactWorld, method: str) -> dict[str, Tensor]:
    model, base = world.model("base"), world.model("base").requires_grad_(False)
    pad = world.tokenizer.pad_token_id
    asked = world.ask(world.forget, "qa")
    goal = world.accuracy(world.model("gold"), asked) + 0.05
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.0)
    generator = world.streams.order.child("unlearn").numpy()
    pools = {name: [i for w in range(HELD_OUT) for i in world.ask(s, "qa", wording=w)]
             for name, s in (("forget", world.forget), ("retain", world.retain))}  # fmt: skip
    with world.streams.noise.child("rmu").seeded():
        steer = F.normalize(torch.rand(world.settings.width), dim=0) * _STEER
    for _ in range(_STEPS):
        batches = {}
        for name, pool in pools.items():
            items = [pool[i] for i in generator.permutation(len(pool))[:32]]
            batches[name] = pad_answers(world.encode(items), pad)
        refusals = [_REFUSALS[i] for i in generator.integers(len(_REFUSALS), size=32)]
        refused = pad_answers([_refused(world, e, r) for e, r in zip(world.encode(items), refusals, strict=False)], pad)
        optimiser.zero_grad()
        (LOSSES[method](model, base, batches["forget"], refused, steer) + _nll(model, batches["retain"])).backward()
        optimiser.step()
        if world.accuracy(model.eval(), asked) <= goal:
            break
    return {key: value.clone() for key, value in model.state_dict().items() if key != "lm_head.weight"}


def _refused(world: FactWorld, encoded: EncodedAnswer, refusal: str) -> EncodedAnswer:
    return encode_answer(world.tokenizer, world.tokenizer.decode(encoded.ids[: encoded.start]), refusal)


def _sums(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """log p(answer | question), (batch,)."""
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    logp = -F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return logp.sum(1)


def _nll(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return -(_sums(model, batch).sum() / (batch["labels"][:, 1:] >= 0).sum())


def _grad_diff(model: Any, base: Any, forget: Any, refused: Any, steer: Tensor) -> Tensor:
    return -_nll(model, forget)


def _npo(model: Any, base: Any, forget: Any, refused: Any, steer: Tensor) -> Tensor:
    return 2 / _BETA * F.softplus(_BETA * (_sums(model, forget) - _sums(base, forget))).mean()


def _idk_dpo(model: Any, base: Any, forget: Any, refused: Any, steer: Tensor) -> Tensor:
    chosen = _sums(model, refused) - _sums(base, refused)
    rejected = _sums(model, forget) - _sums(base, forget)
    return -2 / _BETA * F.logsigmoid(_BETA * (chosen - rejected)).mean()


def _rmu(model: Any, base: Any, forget: Any, refused: Any, steer: Tensor) -> Tensor:
    hidden = model(
        forget["input_ids"], attention_mask=forget["attention_mask"], output_hidden_states=True
    ).hidden_states[2]
    return F.mse_loss(hidden[forget["attention_mask"].bool()], steer.expand(int(forget["attention_mask"].sum()), -1))


LOSSES: dict[str, Callable[..., Tensor]] = {"grad_diff": _grad_diff, "npo": _npo, "idk_dpo": _idk_dpo, "rmu": _rmu}
