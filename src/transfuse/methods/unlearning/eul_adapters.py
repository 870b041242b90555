"""Unlearn in adapters of a frozen model, one for each request, and fuse the requests in closed form.

EUL (Chen and Yang 2023) trains adapters to agree with the original model p_0 on what stays and to disagree with it on
what goes, while the task is kept and the language modelling of the forget set undone:
L = alpha [KL(p_0 || p) on D_r - KL(p_0 || p) on D_f] + lambda NLL(D_r) - gamma NLL(D_f).
The model is frozen, so that p_0 is the same model with its adapters off; there is no second one. Adapters of several
requests are fused linear by linear: the fused one is the least-squares answer to all (RegMean, Jin et al. 2023).

>>> import torch
>>> x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
>>> w = torch.tensor([[1.0, 2.0, 3.0]])
>>> regmean([x.T @ x, 2.0 * x.T @ x], [w, w]).allclose(w, atol=1e-4)      # requests that agree
True
>>> eul_loss(*map(torch.tensor, (0.1, 0.4, 2.0, 1.0)), Config(alpha=1.0, task=1.0, gamma=0.5))
tensor(1.2000)

Here the adapters are LoRA or (IA)^3 of PEFT rather than bottleneck layers, and their effective weights are fused, not
each factor of its own: LoRA's factors may be rotated against each other, their product may not.

Jiaao Chen and Diyi Yang, Unlearn What You Want to Forget: Efficient Unlearning for LLMs, EMNLP 2023,
https://arxiv.org/abs/2310.20150
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.adapter_composition import (
    Kind,
    adapter_layers,
    compose_adapters,
    lora_factors,
    new_adapter,
)
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer, by_length, pad_answers
from transfuse.methods.unlearning.answer_training import (
    FORGET,
    RETAIN,
    Control,
    OnStep,
    batch_at,
    kl,
    log_probs,
    needs_items,
    nll,
    optimise,
    pad_id,
    pick,
    seeded,
)


@dataclass(frozen=True)
class Config:
    """The adapter and the weights of the loss."""

    adapter: Kind = "lora"  # or "ia3"; the paper has bottleneck adapters, for which no maintained host exists
    rank: int = 8  # of LoRA; PEFT's default
    lora_alpha: int = 16  # LoRA's scale is this over the rank
    modules: str | tuple[str, ...] = "all-linear"  # LoRA's targets; IA3 takes PEFT's own for the architecture
    alpha: float = 0.8  # of both divergences; the paper's (from memory)
    task: float = 1.0  # the paper's lambda (from memory)
    gamma: float = 0.2  # of the language model's loss on the forget set; the paper's (from memory)
    undone: Literal["answer", "text"] = "answer"  # "text" is the paper's, and also forgets how prompts are worded
    steps: int = 60  # optimiser steps
    rate: float = 1e-3  # of AdamW, for adapters
    batch: int = 32  # items of each set a step
    name: str = "unlearned"  # of the adapter; one for each request


def eul_loss(kl_retain: Tensor, kl_forget: Tensor, nll_retain: Tensor, nll_forget: Tensor, config: Config) -> Tensor:
    """alpha (KL_r - KL_f) + lambda NLL_r - gamma NLL_f. Not bounded below: it needs a stop."""
    return config.alpha * (kl_retain - kl_forget) + config.task * nll_retain - config.gamma * nll_forget


def regmean(grams: Sequence[Tensor], weights: Sequence[Tensor], ridge: float = 0.0) -> Tensor:
    """The W that minimises sum_i |X_i W^T - X_i W_i^T|^2, in closed form.

    W^T = (sum_i G_i)^-1 sum_i G_i W_i^T with G_i = X_i^T X_i. Inputs need not be kept, only their products.

    Args:
        grams: G_i of each request, (in, in), without a common factor: requests of more tokens weigh more.
        weights: W_i, (out, in).
        ridge: times the mean of the diagonal, added to it; pulls towards the plain mean where inputs span no space.

    Returns:
        (out, in) in the type of the weights.
    """
    solved = torch.stack([
        share @ weight.double().T for share, weight in zip(regmean_shares(grams, ridge), weights, strict=True)
    ])  # fmt: skip
    return solved.sum(0).T.to(weights[0].dtype)


def regmean_shares(grams: Sequence[Tensor], ridge: float = 0.0) -> list[Tensor]:
    """(sum_j G_j)^-1 G_i of each request, (in, in) in float64; they sum to the identity where the sum is regular.

    A ridge is shared evenly, so that shares still sum to the identity. Directions that no input takes are left at 0.
    """
    wide = [gram.double() for gram in grams]
    size = len(wide[0])
    if any(gram.shape != (size, size) for gram in wide):
        raise UserError(f"grams of shapes {[tuple(g.shape) for g in wide]}", "square, all of one size")
    extra = ridge * torch.stack([g.diagonal().mean() for g in wide]).sum() / len(wide)
    wide = [gram + extra * torch.eye(size, dtype=gram.dtype, device=gram.device) for gram in wide]
    inverse = torch.linalg.pinv(torch.stack(wide).sum(0), rtol=1e-9, hermitian=True)
    return [inverse @ gram for gram in wide]


def fuse_ia3(vectors: Sequence[Tensor], curvatures: Sequence[Tensor]) -> Tensor:
    """The vector l that minimises sum_i (l - l_i)^T H_i (l - l_i), (channels,).

    Args:
        vectors: l_i.
        curvatures: H_i, (channels, channels): with l on a linear's outputs, diag(Y_i^T Y_i); on its inputs,
            (W^T W) * (X_i^T X_i), elementwise.
    """
    shares = regmean_shares(curvatures)
    solved = torch.stack([share @ (v.double().flatten() - 1) for share, v in zip(shares, vectors, strict=True)]).sum(0)
    return (1 + solved).to(vectors[0].dtype).reshape(vectors[0].shape)


@torch.no_grad()
def input_grams(
    model: Any, encoded: Sequence[EncodedAnswer], pad: int, adapter: str, batch: int = 64
) -> dict[str, Tensor]:
    """X^T X of the inputs of every adapted linear, with one adapter on: name of the layer -> (in, in), float64.

    For (IA)^3 on a linear's outputs the sums of their squares, (out,).

    Args:
        model: a `PeftModel`; the adapter that was active is so afterwards.
        encoded: the forget set of the adapter's request.
        pad: id to pad with; padding does not count.
        adapter: the one of this request.
        batch: items a forward pass.
    """
    adapted = set(adapter_layers(model))
    grams: dict[str, Tensor] = {}
    mask = torch.tensor(False)

    def hook(name: str) -> Any:
        def add(layer: Any, args: tuple[Any, ...]) -> None:
            found = _products(layer, args[0][mask])
            grams[name] = grams[name] + found if name in grams else found

        return add

    handles = [layer.register_forward_pre_hook(hook(n)) for n, layer in model.named_modules() if layer in adapted]
    active, training, device = model.active_adapter, model.training, next(model.parameters()).device
    model.set_adapter(adapter, inference_mode=True)
    model.eval()
    try:
        for indices in by_length(encoded, batch):
            inputs = {key: value.to(device) for key, value in pad_answers(pick(encoded, indices), pad).items()}
            inputs.pop("labels")
            mask = inputs["attention_mask"].bool()
            model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        model.set_adapter(active, inference_mode=True)
        model.train(training)
    return grams


def _products(layer: Any, x: Tensor) -> Tensor:
    """What fusion needs to know of the inputs (tokens, in) of a layer, in float64: differences of sums are inverted."""
    if not x.is_floating_point():
        raise UserError("an adapter on an embedding", "adapters on linear layers, which have inputs to regress on")
    if getattr(layer, "is_feedforward", True):
        return x.double().T @ x.double()
    return layer.get_base_layer()(x).double().square().sum(0)


@torch.no_grad()
def fuse_adapters(
    model: Any, grams: Mapping[str, Mapping[str, Tensor]], name: str = "fused", *, ridge: float = 0.0
) -> None:
    """Fuse adapters of several requests into one more adapter of a `PeftModel`, which becomes the active one.

    Exact for LoRA: the least-squares change of a weight, sum_i B_i A_i G_i (sum_j G_j)^-1, is again a product of two
    factors, with B_i as they were.

    Args:
        model: with one adapter a request.
        grams: name of an adapter -> `input_grams` of its request.
        name: of the fused adapter.
        ridge: see `regmean`.
    """
    names = list(grams)
    compose_adapters(model, dict.fromkeys(names, 1.0), name)
    for path, layer in model.named_modules():
        held = [adapter for adapter in names if path in grams[adapter]]
        if not held or name not in (layer.ia3_l if hasattr(layer, "ia3_l") else layer.scaling):
            continue
        if len(held) < len(names):
            raise UserError(f"no inputs of {path!r} for one of {names}", "input_grams of every adapter fused")
        if hasattr(layer, "ia3_l"):
            curvatures = [_curvature(layer, grams[adapter][path]) for adapter in names]
            layer.ia3_l[name].copy_(fuse_ia3([layer.ia3_l[adapter] for adapter in names], curvatures))
            continue
        first, target = 0, lora_factors(layer, name)[0]
        for adapter, share in zip(names, regmean_shares([grams[a][path] for a in names], ridge), strict=True):
            if adapter in layer.scaling:  # compose_adapters put A_i below one another in this order
                a = lora_factors(layer, adapter)[0]
                target[first : first + len(a)].copy_(a.double() @ share.T)
                first += len(a)


def _curvature(layer: Any, products: Tensor) -> Tensor:
    """How much a change of each (IA)^3 entry changes what the layer puts out, on the inputs of one request."""
    if not layer.is_feedforward:
        return torch.diag(products)
    weight = layer.get_base_layer().weight.double()
    weight = weight.T if layer.fan_in_fan_out else weight  # (out, in)
    return (weight.T @ weight) * products


def unlearn_eul(
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[EncodedAnswer],
    retain: Sequence[EncodedAnswer],
    config: Config | None = None,
    *,
    seed: int,
    on_step: OnStep | None = None,
    control: Control | None = None,
) -> nn.Module:
    """Train an adapter to forget and return the `PeftModel`; the model's own weights are not touched.

    Given a `PeftModel` of an earlier request, one more adapter is added to it, trained by itself; `fuse_adapters` joins
    them.

    Args:
        model: a causal language model of transformers, or a `PeftModel` that this function returned.
        tokenizer: its tokenizer.
        forget: answers to forget.
        retain: answers to keep.
        config: settings.
        seed: of the adapter's first weights and of the batches.
        on_step: called after each step; True stops.
        control: not used; nothing is chosen here.
    """
    c = config or Config()
    needs_items(forget=forget, retain=retain)
    pad = pad_id(tokenizer)
    undone = [EncodedAnswer(item.ids, 1) for item in forget] if c.undone == "text" else list(forget)
    with seeded(seed, model):
        peft = _with_adapter(model, c)

        def losses(step: int) -> Iterator[Tensor]:
            # The two halves have backward passes of their own, so that one graph is in memory at a time.
            stay = pick(retain, batch_at(step, len(retain), c.batch, seed, RETAIN))
            reference = _original(peft, stay, pad)
            p, tokens = log_probs(peft, stay, pad)
            zero = p.new_zeros(())
            yield eul_loss(kl(reference, p), zero, nll(p, tokens), zero, c)
            chosen = batch_at(step, len(forget), c.batch, seed, FORGET)
            reference = _original(peft, pick(forget, chosen), pad)
            p, tokens = log_probs(peft, pick(forget, chosen), pad)
            other = nll(p, tokens) if c.undone == "answer" else nll(*log_probs(peft, pick(undone, chosen), pad))
            yield eul_loss(zero, kl(reference, p), zero, other, c)

        optimise(peft, losses, steps=c.steps, rate=c.rate, on_step=on_step)
    return peft


@torch.no_grad()
def _original(peft: Any, items: Sequence[EncodedAnswer], pad: int) -> Tensor:
    """Log probabilities of the frozen model, without adapters and without dropout."""
    training = peft.training
    peft.eval()
    with peft.disable_adapter():
        found = log_probs(peft, items, pad)[0]
    peft.train(training)
    return found


def _with_adapter(model: Any, config: Config) -> Any:
    """The model with a fresh adapter, the only one that is on and trained."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return new_adapter(model, config.adapter, config.rank, config.lora_alpha, config.modules, config.name)
    if config.name in model.peft_config:
        raise UserError(f"adapter {config.name!r} is there already", fix="give the next request a name of its own")
    fresh: dict[str, Any] = {"inference_mode": False}
    if config.adapter == "lora":
        fresh |= {"r": config.rank, "lora_alpha": config.lora_alpha, "lora_dropout": 0.0, "init_lora_weights": True}
    model.add_adapter(config.name, dataclasses.replace(next(iter(model.peft_config.values())), **fresh))
    model.set_adapter(config.name)
    return model
