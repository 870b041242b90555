"""What an edit did, and edits as files: a checkpoint with its card, or a PEFT LoRA that can be loaded and removed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.decoder_blocks import Block
from transfuse.nets.encoder import quiet_loading

RECORD = "redirections.json"


@dataclass(frozen=True)
class LayerEdit:
    """What an edit did to one layer.

    Attributes:
        index: the layer.
        name: dotted path of its down-projection.
        left: (d, n); the weight grew by left @ right.
        right: (n, d_ff).
        efficacy: share of each subject's residual that the stored weight now adds, rounding to the weight's type
            included.
        free: share of each subject's key in the null space (squared lengths).
        null_rank: dimension of the null space.
        relative_size: Frobenius norm of the change over that of the weight.
    """

    index: int
    name: str
    left: Tensor = field(repr=False)
    right: Tensor = field(repr=False)
    efficacy: tuple[float, ...]
    free: tuple[float, ...]
    null_rank: int
    relative_size: float


@dataclass(frozen=True)
class Edit:
    """One edit.

    Attributes:
        subjects: the names that were redirected, aliases included.
        to: what is perceived in the place of each; None in the modes reject and noise.
        reached: how much of the way from what was perceived to the target was gone, a name: 1 is all, 0 nothing. Below
            the layers' efficacy where a model scales or normalises what its MLP writes.
        layers: what was done to each layer.
        keys: of the subjects after the edit, (d_ff, n) a layer.
    """

    subjects: tuple[str, ...]
    to: tuple[str | None, ...]
    reached: tuple[float, ...]
    layers: tuple[LayerEdit, ...]
    keys: tuple[Tensor, ...] = field(repr=False)

    def problems(self) -> Iterator[str]:
        """What the user can act on: little was written, or it was written over what general text uses."""
        for i, name in enumerate(self.subjects):
            for layer in self.layers:
                if layer.efficacy[i] < 0.5:
                    yield (
                        f"layer {layer.index}: {layer.efficacy[i]:.0%} of what {name!r} needs was written; lambda, tau "
                        "or the weights' half precision do not fit the model (leave ridge and tau out, or save a LoRA)"
                    )
                if layer.free[i] < 0.01:
                    yield (
                        f"layer {layer.index}: {layer.free[i]:.1%} of the key of {name!r} is free of general text; "
                        "leave texts about it out (without=...), or others change with it"
                    )
            if self.reached[i] < 0.5:
                yield (
                    f"{name!r} went {self.reached[i]:.0%} of the way; the model may scale what its MLP writes, or "
                    "other names stand in the way"
                )

    def summary(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON values."""
        layers = [
            {
                "layer": layer.index,
                "module": layer.name,
                "efficacy": [round(value, 4) for value in layer.efficacy],
                "free": [round(value, 4) for value in layer.free],
                "null_rank": layer.null_rank,
                "relative_size": round(layer.relative_size, 6),
            }
            for layer in self.layers
        ]
        reached = [round(value, 4) for value in self.reached]
        return {"subjects": list(self.subjects), "to": list(self.to), "reached": reached, "layers": layers}


def save_model(model: Any, tokenizer: Any, edits: Sequence[Edit], folder: Path, base: str) -> Path:
    """Write an edited model with its tokenizer, its card and the record of its edits."""
    with quiet_loading():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _write_record(edits, folder, base)
    return folder


def save_edits(model: nn.Module, blocks: Sequence[Block], edits: Sequence[Edit], folder: Path) -> Path:
    """Write edits as a PEFT LoRA of rank n on the down-projections, for the model from before them.

    `PeftModel.from_pretrained(base, folder)` gives the edited model; `merge_and_unload` and `disable_adapter` do what
    they do with any adapter.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    if not edits:
        raise UserError("no edits to save", "at least one redirect")
    tensors = {}
    for place, block in enumerate(blocks):
        stem = f"base_model.model.{block.name}.lora_"
        tensors[f"{stem}A.weight"] = torch.cat([edit.layers[place].right for edit in edits]).cpu().contiguous()
        tensors[f"{stem}B.weight"] = torch.cat([edit.layers[place].left for edit in edits], 1).cpu().contiguous()
    rank = len(next(iter(tensors.values())))
    base = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # a scale of one
        lora_dropout=0.0,
        target_modules=[block.name for block in blocks],
        fan_in_fan_out=blocks[0].transposed,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base or None,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _write_record(edits, folder, base, adapter=True)
    return folder


def _write_record(edits: Sequence[Edit], folder: Path, base: str, adapter: bool = False) -> None:
    summaries = [edit.summary() for edit in edits]
    (folder / RECORD).write_text(json.dumps({"method": "rocr", "base": base, "edits": summaries}, indent=1) + "\n")
    (folder / "README.md").write_text(_card(edits, base, adapter), encoding="utf-8")


def _card(edits: Sequence[Edit], base: str, adapter: bool) -> str:
    named = f"`{base}`" if base else "its base model"
    rows = [
        f"| {name} | {edit.to[i] or 'nothing'} | {layer.index} | {layer.efficacy[i]:.2f} | {layer.relative_size:.2g} |"
        for edit in edits
        for i, name in enumerate(edit.subjects)
        for layer in edit.layers
    ]
    head = ["---", "tags: [unlearning, rocr]", *(["library_name: peft"] if adapter else []), "---", ""]
    return "\n".join([
        *head,
        f"# {'Adapter that edits' if adapter else 'Edited from'} {named}",
        "",
        "Made by transfuse's `rocr`: where a listed name stands, the model perceives the other one. Weights of the MLP",
        "down-projections of the listed layers were changed by low-rank updates; nothing was trained.",
        "",
        "| name | perceived as | layer | share written | change over weight |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Limits: questions that do not name the subject, and spellings that are not listed, still reach what the model",
        "knows. The model now asserts facts of the other name about the subject. An edit hides; it proves nothing.",
        "",
    ])  # fmt: skip
