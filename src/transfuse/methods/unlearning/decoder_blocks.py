"""The blocks of a decoder and the down-projections of their MLPs, in whatever words a model's family has for them.

Reading stops after the last block that is asked for: what lies above it, the head with its vocabulary included, is
never run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from transfuse.errors import UserError

# Llama, Mistral, Qwen, Gemma; GPT-2; Phi; GPT-NeoX. Others are found by the shapes of their linear layers.
_KNOWN = ("mlp.down_proj", "mlp.c_proj", "mlp.fc2", "mlp.dense_4h_to_h")


@dataclass(frozen=True)
class Block:
    """One block of a decoder.

    Attributes:
        index: its position, from 0.
        module: the block.
        down: the linear layer from the MLP's inner width d_ff to the residual stream's d.
        name: the dotted path of `down` in the model.
    """

    index: int
    module: nn.Module
    down: nn.Module
    name: str

    @property
    def transposed(self) -> bool:
        """Whether the weight lies as (d_ff, d), as in GPT-2's Conv1D."""
        return _is_conv1d(self.down)

    @property
    def parameter(self) -> nn.Parameter:
        return cast(nn.Parameter, self.down.weight)

    def weight(self) -> Tensor:
        """The weight as (d, d_ff), a view that writes through."""
        return self.parameter.data.T if self.transposed else self.parameter.data


def decoder_blocks(model: nn.Module) -> list[Block]:
    """All blocks of a causal language model, in order.

    Raises:
        UserError: no list of blocks, a block without one clear down-projection (a mixture of experts, for example), or
            weights that are quantised or wrapped by an adapter.
    """
    path, modules = _block_list(model)
    width = _width(model)
    blocks = []
    for index, module in enumerate(modules):
        name, down = _down_projection(module, width, f"{path}.{index}")
        blocks.append(Block(index, module, down, f"{path}.{index}.{name}"))
    return blocks


def _block_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    config = _text_config(model)
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{type(model).__name__}, an encoder and a decoder", "a decoder-only language model")
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    count = getattr(config, "num_hidden_layers", None)
    fitting = [(name, module) for name, module in lists if len(module) == count] or lists
    if not fitting:
        raise UserError(f"{type(model).__name__} has no list of blocks", "a decoder-only language model")
    return max(fitting, key=lambda item: (len(item[1]), -item[0].count(".")))


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _width(model: nn.Module) -> int | None:
    return getattr(_text_config(model), "hidden_size", None)


def _down_projection(block: nn.Module, width: int | None, path: str) -> tuple[str, nn.Module]:
    inside = dict(block.named_modules())
    adapted = next((name for name, module in inside.items() if hasattr(module, "base_layer")), None)
    if adapted is not None:
        raise UserError(f"{path}.{adapted} carries an adapter", "a plain model", "merge it first: merge_and_unload()")
    known = [name for name in _KNOWN if name in inside]
    found = known[:1] or _by_shape(inside, width)
    if len(found) != 1:
        listed = ", ".join(found) or "none"
        raise UserError(f"{path} has no single linear layer that leads from a wider MLP back (candidates: {listed})")
    down = inside[found[0]]
    weight = getattr(down, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise UserError(
            f"{path}.{found[0]} has no plain weight (quantised?)", "weights in float32, bfloat16 or float16"
        )
    return found[0], down


def _by_shape(inside: Mapping[str, nn.Module], width: int | None) -> list[str]:
    """Linear layers outside attention that lead from more features to `width`."""
    found = []
    for name, module in inside.items():
        shape = _features(module)
        if shape is None or "attn" in name.lower() or "attention" in name.lower():
            continue
        if shape[0] > shape[1] and width in (None, shape[1]):
            found.append(name)
    return found


def _features(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if _is_conv1d(module):
        rows, columns = cast(Tensor, module.weight).shape
        return rows, columns
    return None


def _is_conv1d(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


class _Enough(Exception):  # noqa: N818 (nothing went wrong)
    """Raised inside a forward pass when all that was asked for has been read."""


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside the block; the model's mode is put back after it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def hidden_of(output: Any) -> Tensor:
    """The residual stream of what a block returned: a tensor, or the first entry of a tuple."""
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def read_blocks(model: nn.Module, blocks: Sequence[Block], inputs: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """What enters the down-projections of some blocks, and what leaves the last of these blocks.

    Args:
        model: a causal language model.
        blocks: in order.
        inputs: input_ids and attention_mask, padded on the right.

    Returns:
        Keys of each block (batch, length, d_ff), and the residual stream after the last (batch, length, d).
    """
    keys: list[Tensor] = [torch.empty(0)] * len(blocks)
    stream: list[Tensor] = []

    def keep(place: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            keys[place] = args[0].detach()

        return hook

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        stream.append(hidden_of(output).detach())
        raise _Enough

    handles = [block.down.register_forward_pre_hook(keep(place)) for place, block in enumerate(blocks)]
    handles.append(blocks[-1].module.register_forward_hook(stop))
    try:
        with evaluating(model), contextlib.suppress(_Enough):
            model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return keys, stream[0]
