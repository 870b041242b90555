"""Unlearn with a sign: train a small adapter on what is to be forgotten, then use its negative.

Adapters can be added, subtracted and set in analogy like the weights they stand for (Zhang et al. 2023). A LoRA adds
B A to a weight, so that its negative is (-B) A: one factor changes its sign, since both would cancel. An (IA)^3 vector
multiplies by l, so that its negative is 1 - lambda (l - 1), at lambda = 1 the paper's 2 - l.

>>> import torch
>>> from peft import LoraConfig, get_peft_model
>>> from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer
>>> llama = tiny_llama(word_tokenizer(["a b c"]), width=16, layers=1)
>>> peft = get_peft_model(llama, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False), adapter_name="toxic")
>>> compose_adapters(peft, {"toxic": -0.5}, "less_toxic")      # {"a": 1, "b": -1, "c": 1} is the analogy a - b + c
>>> ids = torch.tensor([[1, 2]])
>>> peft(ids).logits.shape                                     # the new adapter is the active one
torch.Size([1, 2, 7])

`negate_adapter_folder` does it to a saved adapter, without the model.

Jinghan Zhang et al., Composing Parameter-Efficient Modules with Arithmetic Operations, NeurIPS 2023,
https://arxiv.org/abs/2306.14870
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transfuse.atomic import replacing, write_text
from transfuse.errors import UserError
from transfuse.hosts.model_folder import loading
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.answer_training import (
    Control,
    OnStep,
    answer_control,
    fine_tune,
    needs_items,
    pad_id,
    scan_strength,
    seeded,
)
from transfuse.user_file import read_utf8

Kind = Literal["lora", "ia3"]


@dataclass(frozen=True)
class Config:
    """Which adapter is trained on the forget set, and how much of it is subtracted."""

    adapter: Kind = "lora"  # the paper has both
    rank: int = 8  # of LoRA; the paper's
    alpha: int = 16  # LoRA's scale is alpha / rank
    modules: str | tuple[str, ...] = "all-linear"  # LoRA's targets; IA3 takes PEFT's own for the architecture
    steps: int = 60  # optimiser steps on the forget set
    rate: float = 1e-3  # of AdamW; adapters take ten times the rate of full fine-tuning
    batch: int = 32  # OpenUnlearning's effective batch
    grid: tuple[float, ...] = tuple(round(0.05 * i, 2) for i in range(21))  # as for task vectors
    keep: float = 0.95  # as for task vectors: share of the control metric that must remain


def combine_lora(parts: Sequence[tuple[Tensor, Tensor, float]], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Factors of sum_i w_i s_i B_i A_i, exact for any number of adapters, of the rank of all together.

    The weight goes to one factor only: on both, a negative would cancel and others would be squared. The paper adds A
    to A and B to B, whose product has cross terms B_i A_j; the two agree for a single adapter.

    Args:
        parts: A (r_i, in), B (out, r_i) and scale s_i of each adapter.
        weights: w_i, negative to subtract.
    """
    a = torch.cat([a for a, _, _ in parts], dim=0)
    b = torch.cat([w * s * b for (_, b, s), w in zip(parts, weights, strict=True)], dim=1)
    return a, b


def combine_ia3(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """1 + sum_i w_i (l_i - 1): what scaling vectors change is added up; a weight of -lambda negates one."""
    total = torch.ones_like(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        total = total + weight * (vector - 1.0)
    return total


@torch.no_grad()
def compose_adapters(model: Any, weights: Mapping[str, float], name: str) -> None:
    """Add to a `PeftModel` the adapter sum_i w_i adapter_i, or fill it anew if it is there, and make it the active one.

    The adapters may have other ranks, scales and targets; where a module lacks one, that one adds nothing.

    Args:
        model: with LoRA or (IA)^3 adapters.
        weights: name of an adapter -> its weight; {"a": -1} negates, {"a": 1, "b": -1, "c": 1} is a - b + c.
        name: of the new adapter; save it with ``model.save_pretrained(folder, selected_adapters=[name])``.

    Raises:
        UserError: unknown adapters, or adapters that are not linear in this way (DoRA, trained biases or modules).
    """
    if unknown := [adapter for adapter in weights if adapter not in model.peft_config] or ([] if weights else [""]):
        raise UserError(f"adapter {unknown[0]!r}", f"one or more of {', '.join(model.peft_config)}")
    if name in weights:
        raise UserError(f"the new adapter is called {name!r} as one of its parts", "a name of its own")
    for adapter in weights:
        refuse_nonlinear(vars(model.peft_config[adapter]))
    if name not in model.peft_config:
        model.add_adapter(name, _combined_config([model.peft_config[adapter] for adapter in weights]))
    for layer in adapter_layers(model):
        if name in getattr(layer, "ia3_l", {}):
            held = [adapter for adapter in weights if adapter in layer.ia3_l]
            vectors = [layer.ia3_l[adapter] for adapter in held]
            layer.ia3_l[name].copy_(combine_ia3(vectors, [weights[a] for a in held]) if held else torch.tensor(1.0))
        elif name in layer.scaling:
            _fill_lora(layer, weights, name)
    model.set_adapter(name, inference_mode=True)


def _fill_lora(layer: Any, weights: Mapping[str, float], name: str) -> None:
    """Write the combination into a layer's factors; rows and columns that are left over are zero."""
    held = [adapter for adapter in weights if adapter in layer.scaling]
    a, b = lora_factors(layer, name)
    a.zero_()
    b.zero_()
    if held:
        parts = [(*lora_factors(layer, adapter), layer.scaling[adapter]) for adapter in held]
        new_a, new_b = combine_lora(parts, [weights[adapter] for adapter in held])
        a[: len(new_a)].copy_(new_a)
        b[:, : new_b.shape[1]].copy_(new_b / layer.scaling[name])


def lora_factors(layer: Any, adapter: str) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) of an adapter at a layer of PEFT, linear or embedding."""
    if adapter in layer.lora_A:
        return layer.lora_A[adapter].weight.data, layer.lora_B[adapter].weight.data
    return layer.lora_embedding_A[adapter].data, layer.lora_embedding_B[adapter].data


def adapter_layers(model: nn.Module) -> Iterator[Any]:
    """The layers of a `PeftModel` that hold LoRA factors or (IA)^3 vectors."""
    from peft.tuners.ia3.layer import IA3Layer
    from peft.tuners.lora.layer import LoraLayer

    return (module for module in model.modules() if isinstance(module, LoraLayer | IA3Layer))


def _combined_config(configs: Sequence[Any]) -> Any:
    """The configuration of a sum: all targets, the ranks together, a scale of 1."""
    targets: set[str] = set()
    for config in configs:
        if isinstance(config.target_modules, str) and config.target_modules != configs[0].target_modules:
            raise UserError(f"target modules by a pattern, {config.target_modules!r}", "lists, or one pattern for all")
        targets |= {config.target_modules} if isinstance(config.target_modules, str) else set(config.target_modules)
    shared = {
        "target_modules": configs[0].target_modules if isinstance(configs[0].target_modules, str) else targets,
        "inference_mode": True,
    }
    if configs[0].peft_type == "IA3":
        feedforward = set().union(*(set(config.feedforward_modules or ()) for config in configs))
        return dataclasses.replace(configs[0], **shared, feedforward_modules=feedforward)
    rank = sum(max([config.r, *config.rank_pattern.values()]) for config in configs)
    # Rank-stabilised LoRA has the scale alpha / sqrt(r), which would not be 1.
    return dataclasses.replace(
        configs[0], **shared, r=rank, lora_alpha=rank, rank_pattern={}, alpha_pattern={}, use_rslora=False,
        lora_dropout=0.0, init_lora_weights=True,
    )  # fmt: skip


def refuse_nonlinear(config: Mapping[str, Any]) -> None:
    """Refuse adapters whose effect is not a product of two factors or a scale, from PEFT's configuration.

    Raises:
        UserError: DoRA, trained biases, modules saved whole, or another kind than LoRA and (IA)^3.
    """
    kind = str(getattr(config.get("peft_type"), "value", config.get("peft_type")))
    if kind not in ("LORA", "IA3"):
        raise UserError(f"an adapter of type {kind}", "LORA or IA3")
    for name in ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices"):
        if config.get(name):
            raise UserError(f"an adapter with {name}", "one without: that part cannot be negated by a sign")
    if config.get("bias", "none") != "none":
        raise UserError(f"an adapter with bias={config['bias']!r}", "bias='none'")


def negate_adapter_folder(source: str | Path, out: str | Path, strength: float = 1.0) -> Path:
    """Write the negative of a saved adapter, scaled, without loading any model.

    Args:
        source: a folder with `adapter_config.json` and `adapter_model.safetensors`.
        out: a folder that does not exist yet.
        strength: lambda; 1 is the whole negative.
    """
    from safetensors.torch import load_file, save_file

    source, out = Path(source), Path(out)
    weights, settings = source / "adapter_model.safetensors", source / "adapter_config.json"
    for path in (weights, settings):
        if not path.is_file():
            raise UserError(f"no {path.name} in {str(source)!r}", "an adapter that save_pretrained wrote")
    if out.exists():
        raise UserError(f"{str(out)!r} exists already", "a new folder")
    text = read_utf8(settings)
    with loading(source):
        found, trained = json.loads(text), load_file(weights)
    refuse_nonlinear(found)
    tensors = {name: negated_tensor(name, tensor, strength) for name, tensor in trained.items()}
    try:
        with replacing(out / weights.name) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        write_text(out / settings.name, text)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return out


def negated_tensor(name: str, tensor: Tensor, strength: float = 1.0) -> Tensor:
    """A tensor of a saved adapter, negated if it is the factor B or an (IA)^3 vector; the factor A is left alone."""
    if "lora_B" in name or "lora_embedding_B" in name:
        return -strength * tensor
    if "ia3_l" in name:
        return combine_ia3([tensor], [-strength])
    if "lora_A" in name or "lora_embedding_A" in name:
        return tensor
    raise UserError(f"tensor {name!r} in the adapter", "factors of LoRA or vectors of (IA)^3")


def new_adapter(model: nn.Module, kind: Kind, rank: int, alpha: int, modules: str | tuple[str, ...], name: str) -> Any:
    """A `PeftModel` around a model, frozen but for a fresh adapter that changes nothing yet."""
    from peft import IA3Config, LoraConfig, get_peft_model

    if kind not in ("lora", "ia3"):
        raise UserError(f"adapter {kind!r}", "'lora' or 'ia3'")
    targets = modules if isinstance(modules, str) else list(modules)
    config: Any = (
        LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0)
        if kind == "lora"
        else IA3Config(task_type="CAUSAL_LM")
    )
    # PEFT's wrapper is made in training mode, whatever the model's.
    return get_peft_model(model, config, adapter_name=name).train(model.training)


def unlearn_adapter_negation(
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
    """Train an adapter on the forget set and return a `PeftModel` whose active adapter, "unlearned", is its negative.

    The model's own weights are not touched. The adapter that was trained stays beside it as "taught".

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        forget: answers to forget.
        retain: answers that the default control metric is taken from.
        config: settings.
        seed: of the adapter's first weights and of the batches.
        on_step: called at each strength of the grid, upwards; True keeps that strength.
        control: what must stay at `config.keep`; None is the mean probability of the retained answers.
    """
    c = config or Config()
    needs_items(forget=forget, retain=retain)
    pad = pad_id(tokenizer)
    with seeded(seed, model):
        peft = new_adapter(model, c.adapter, c.rank, c.alpha, c.modules, "taught")
        fine_tune(peft, forget, pad, steps=c.steps, rate=c.rate, batch=c.batch, seed=seed)
    scan_strength(
        peft, lambda strength: compose_adapters(peft, {"taught": -strength}, "unlearned"), c.grid,
        control or answer_control(retain, pad), c.keep, on_step,
    )  # fmt: skip
    return peft
