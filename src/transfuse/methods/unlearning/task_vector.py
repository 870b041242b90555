"""Unlearn by arithmetic: teach a copy more of what is to be forgotten, and go the other way.

The direction in which fine-tuning on some data moves the weights, theta_ft - theta_0, is called the task vector of
that data. Subtracted, it takes out what it stands for: theta_u = theta_0 - lambda (theta_ft - theta_0), with the
largest lambda of a grid that leaves a control metric at 95 % (Ilharco et al. 2023). MUSE (Shi et al. 2024) does the
same with a model that already knows the data: it is taught still more ("reinforced"), and that change is subtracted.
Both are `negate(target, start, end, strength)`; they differ in which models they are given.

>>> import torch
>>> negate({"w": torch.tensor([1.0])}, {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}, 0.5)
{'w': tensor([0.])}

Not for: facts that fine-tuning on them does not move any more. Where the loss on the forget set is at zero, the
direction is that of the optimiser's noise.

Gabriel Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, https://arxiv.org/abs/2212.04089
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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

GRID = tuple(round(0.05 * i, 2) for i in range(21))  # the paper's: 0, 0.05, .., 1


@dataclass(frozen=True)
class Config:
    """How the direction is learned and how far it is followed."""

    steps: int = 60  # optimiser steps on the forget set
    rate: float = 1e-4  # of AdamW; ten times OpenUnlearning's for 1B, since the models here are small
    batch: int = 32  # OpenUnlearning's effective batch
    grid: tuple[float, ...] = GRID  # the paper's
    keep: float = 0.95  # the paper's share of the control metric


def negate(
    target: Mapping[str, Tensor], start: Mapping[str, Tensor], end: Mapping[str, Tensor], strength: float
) -> dict[str, Tensor]:
    """target - strength (end - start) of state dicts in memory.

    Floating tensors are computed in float32 at least and returned in the target's type. Others, such as counters and
    integer buffers, are the target's. Tensors that share memory in the target share it in the result.

    Args:
        target: what the direction is taken out of; Ilharco's theta_0, MUSE's target model.
        start: where the direction begins.
        end: where it ends: the fine-tuned or reinforced model.
        strength: lambda; 0 gives the target.

    Raises:
        UserError: a floating tensor that `start` or `end` does not have in this shape.
    """
    done: dict[Any, Tensor] = {}
    result = {}
    for name, tensor in target.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        if key not in done:
            done[key] = _negated(name, tensor, start, end, strength) if tensor.is_floating_point() else tensor.clone()
        result[name] = done[key]
    return result


def _negated(
    name: str, target: Tensor, start: Mapping[str, Tensor], end: Mapping[str, Tensor], strength: float
) -> Tensor:
    ends = []
    for which, tensors in (("start", start), ("end", end)):
        if name not in tensors or tensors[name].shape != target.shape:
            found = f"shape {tuple(tensors[name].shape)}" if name in tensors else "none"
            raise UserError(
                f"{which} has {found} for {name!r}", f"shape {tuple(target.shape)}: weights of one architecture"
            )
        ends.append(tensors[name].to(device=target.device, dtype=_wide(target)))
    return (target.to(_wide(target)) - strength * (ends[1] - ends[0])).to(target.dtype)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@torch.no_grad()
def write_negated(model: nn.Module, start: Mapping[str, Tensor], end: Mapping[str, Tensor], strength: float) -> None:
    """Set a model's parameters to start - strength (end - start), one tensor at a time.

    `start` and `end` may be read from files (`FolderTensors`), so that no other model is in memory. A tied weight is
    written once, under any of its names; buffers are left alone.
    """
    for names, parameter in _parameters(model):
        name = next((n for n in names if n in start), names[0])
        if parameter.is_floating_point():
            parameter.copy_(_negated(name, start.get(name, parameter), start, end, strength))


def _parameters(model: nn.Module) -> Iterator[tuple[list[str], nn.Parameter]]:
    """Each parameter once, with all its names."""
    groups: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), ([], parameter))[0].append(name)
    return iter(groups.values())


class FolderTensors(Mapping[str, Tensor]):
    """The weights of a model folder, each read when it is asked for.

    Args:
        folder: holds `model.safetensors`, or shards with `model.safetensors.index.json`.

    Raises:
        UserError: it holds neither, is damaged, or has an index that names a file which is not there.
    """

    def __init__(self, folder: str | Path) -> None:
        from safetensors import safe_open

        self.folder = Path(folder)
        with loading(folder):
            files = _weight_files(self.folder)
            self._open = {file: safe_open(str(self.folder / file), framework="pt") for file in files}
        self.files: dict[str, str] = {name: file for file, opened in self._open.items() for name in opened.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return self._open[self.files[name]].get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def _weight_files(folder: Path) -> list[str]:
    """Names of a model folder's files of weights; an index may name files beside it only."""
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in files:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"no file {name!r} in {str(folder)!r}", "a folder that save_pretrained wrote")
    return files


def negate_folder(
    target: str | Path, end: str | Path, out: str | Path, strength: float, *, start: str | Path | None = None
) -> Path:
    """Write a model folder with target - strength (end - start); one file of weights is in memory at a time.

    Args:
        target: folder of the model to take something out of; its other files (config, tokenizer) are copied.
        end: folder of the model that was fine-tuned on it.
        out: a folder that does not exist yet.
        strength: lambda.
        start: folder of the model that `end` was fine-tuned from, where that is not the target.

    Raises:
        UserError: `out` exists, or the folders do not hold the same weights.
    """
    from safetensors.torch import save_file

    out, source = Path(out), Path(target)
    if out.exists():
        raise UserError(f"{str(out)!r} exists already", "a new folder")
    weights, ending = FolderTensors(source), FolderTensors(end)
    beginning = weights if start is None else FolderTensors(start)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for file in sorted(set(weights.files.values())):
            part = {name: weights[name] for name, held in weights.files.items() if held == file}
            save_file(negate(part, beginning, ending, strength), partial / file, metadata={"format": "pt"})
        for path in source.iterdir():
            if path.suffix in (".json", ".txt", ".model", ".jinja", ".md") and path.is_file():
                shutil.copy2(path, partial / path.name)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def unlearn_task_vector(
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
    """Reinforce a model on the forget set, then subtract what that changed, in place.

    Two copies of the weights lie in main memory meanwhile.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        forget: answers to forget.
        retain: answers that the default control metric is taken from.
        config: settings.
        seed: of the batches.
        on_step: called at each strength of the grid, upwards; True keeps that strength.
        control: what must stay at `config.keep`; None is the mean probability of the retained answers.
    """
    config = config or Config()
    needs_items(forget=forget, retain=retain)
    pad = pad_id(tokenizer)
    start = _parameters_now(model)
    with seeded(seed, model):
        fine_tune(model, forget, pad, steps=config.steps, rate=config.rate, batch=config.batch, seed=seed)
    end = _parameters_now(model)
    scan_strength(
        model, lambda strength: write_negated(model, start, end, strength), config.grid,
        control or answer_control(retain, pad), config.keep, on_step,
    )  # fmt: skip
    return model


def _parameters_now(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters in main memory, a tied one once."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()}
