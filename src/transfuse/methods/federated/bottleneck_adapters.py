"""Bottleneck adapters on any transformers model, by forward hooks on dotted paths: no other library, no version lock.

An adapter stands behind the attention or feed-forward block whose path is named, before the residual is added. Its
parameters become a submodule beside that block, so `state_dict`, `save_pretrained` and optimisers see them.

>>> import torch
>>> from transformers import MBartConfig, MBartForConditionalGeneration
>>> config = MBartConfig(vocab_size=20, d_model=16, encoder_layers=3, decoder_layers=3, encoder_ffn_dim=16,
...                      decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2)
>>> model = MBartForConditionalGeneration(config)
>>> sites = adapter_sites(model, keep="output")               # a third of the layers of each stack, at the output end
>>> sites[0], len(sites)
('model.encoder.layers.2.self_attn', 5)
>>> attached = attach_adapters(model, sites)                  # freezes the rest; layer norms stay trainable
>>> sum(p.numel() for p in exchanged_parameters(model).values()) < 0.2 * sum(p.numel() for p in model.parameters())
True
>>> attached.detach()                                         # the model is as it was
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transfuse.errors import UserError

Keep = Literal["all", "input", "middle", "output"]
Init = Literal["linear", "zero"]

# Last part of the path of the blocks whose output is added to the residual: Bart, mBart, M2M100, Marian; T5.
BLOCKS = ("self_attn", "encoder_attn", "fc2", "SelfAttention", "EncDecAttention", "DenseReluDense")
LAYER_NORM = "layer_norm"  # the official code trains all parameters with these words in their names
_LAYER = re.compile(r"^(?P<stack>.*?)\.(?P<layer>\d+)\.")


class BottleneckAdapter(nn.Module):
    """A(z) = z + W_up ReLU(W_down z + b_down) + b_up.

    Args:
        width: size of z.
        bottleneck: size in the middle.
        init: "linear" is PyTorch's default, as the paper's code has it, so that step 0 is not the base model; "zero"
            starts W_up and b_up at zero, so that it is.
        device: where the parameters lie.
        dtype: of the parameters.
    """

    def __init__(
        self, width: int, bottleneck: int, init: Init = "linear", device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck, device=device, dtype=dtype)
        self.up = nn.Linear(bottleneck, width, device=device, dtype=dtype)
        if init == "zero":
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, z: Tensor) -> Tensor:
        """Adapted states of the same shape, (..., width)."""
        return z + self.up(torch.relu(self.down(z)))


@dataclass
class AttachedAdapters:
    """What `attach_adapters` did to a model, and how to undo it.

    Attributes:
        model: the model.
        adapters: path of the adapted block -> its adapter.
    """

    model: nn.Module
    adapters: dict[str, BottleneckAdapter]
    _handles: list[Any] = field(default_factory=list)
    _trainable: dict[str, bool] = field(default_factory=dict)

    def detach(self) -> None:
        """Remove hooks and adapters, and let the parameters be trainable as before."""
        for handle in self._handles:
            handle.remove()
        for path in self.adapters:
            parent, name = _parent(self.model, path)
            delattr(parent, _adapter_name(name))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trainable.get(name, True))
        self.adapters.clear()


def adapter_sites(model: nn.Module, keep: Keep = "all", share: float = 1 / 3) -> list[str]:
    """Dotted paths of the blocks that get an adapter, in the order of the model.

    Args:
        model: an encoder-decoder, encoder or decoder of transformers whose blocks are named as in `BLOCKS`.
        keep: "all" layers, or the `share` of each stack's layers at its input end, in its middle or at its output end.
        share: of the layers, rounded to at least one.

    Raises:
        UserError: no block is found; give `attach_adapters` the paths.
    """
    paths = [path for path, _ in model.named_modules() if path.rpartition(".")[2] in BLOCKS]
    if not paths:
        raise UserError(
            f"a {type(model).__name__} without blocks named {', '.join(BLOCKS)}",
            "a model of the Bart or T5 kind",
            "give attach_adapters the dotted paths of its attention and feed-forward blocks",
        )
    return pruned(paths, keep, share)


def pruned(paths: Sequence[str], keep: Keep, share: float = 1 / 3) -> list[str]:
    """The paths that lie in the kept layers of their stack."""
    if keep not in ("all", "input", "middle", "output"):
        raise UserError(f"keep {keep!r}", "'all', 'input', 'middle' or 'output'")
    if not 0.0 < share <= 1.0:
        raise UserError(f"share {share}", "a share of the layers, above 0 and at most 1")
    if keep == "all":
        return list(paths)
    places = {path: _place(path) for path in paths}
    counts: dict[str, int] = {}
    for stack, layer in places.values():
        counts[stack] = max(counts.get(stack, 0), layer + 1)
    kept = {stack: _kept_layers(layers, keep, share) for stack, layers in counts.items()}
    return [path for path, (stack, layer) in places.items() if layer in kept[stack]]


def _kept_layers(layers: int, keep: Keep, share: float) -> range:
    number = max(1, round(share * layers))
    start = {"input": 0, "middle": (layers - number) // 2, "output": layers - number}[keep]
    return range(start, start + number)


def _place(path: str) -> tuple[str, int]:
    """Stack and layer of a path: ("model.encoder.layers", 2)."""
    found = _LAYER.match(path)
    if found is None:
        raise UserError(f"{path!r} names no layer", "a path with a number, as model.encoder.layers.0.self_attn")
    return found["stack"], int(found["layer"])


def attach_adapters(
    model: nn.Module,
    sites: Sequence[str] | None = None,
    *,
    reduction: int = 16,
    init: Init = "linear",
    layer_norms: str = LAYER_NORM,
    width: int | None = None,
) -> AttachedAdapters:
    """Freeze a model, put adapters behind its blocks, and leave these and the layer norms trainable.

    Args:
        model: any module whose blocks return a tensor, or a tuple whose first element is one, (..., width).
        sites: dotted paths of the blocks; None means `adapter_sites` of the model.
        reduction: width over bottleneck; the paper has 16.
        init: see `BottleneckAdapter`.
        layer_norms: parameters with this text in their name stay trainable; empty for none.
        width: of the states; None reads it from ``model.config``.

    Raises:
        UserError: an unknown path, or a width that the reduction does not leave anything of.
    """
    paths = adapter_sites(model) if sites is None else list(dict.fromkeys(sites))
    modules = dict(model.named_modules())
    if unknown := [path for path in paths if path not in modules] or ([] if paths else ["no path at all"]):
        raise UserError(f"adapter at {unknown[0]!r}", "dotted paths from model.named_modules()")
    size = width or _width(model)
    if not 1 <= reduction <= size:
        raise UserError(f"reduction {reduction} of a width of {size}", f"a whole number from 1 to {size}")
    attached = AttachedAdapters(model, {})
    attached._trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(layer_norms) and layer_norms in name)
    like = next(model.parameters())
    for path in paths:
        parent, name = _parent(model, path)
        if _adapter_name(name) in dict(parent.named_children()):
            raise UserError(f"{path!r} already has an adapter", "one adapter a block", "detach the first")
        adapter = BottleneckAdapter(size, size // reduction, init, like.device, like.dtype)
        parent.add_module(_adapter_name(name), adapter)
        attached.adapters[path] = adapter
        attached._handles.append(modules[path].register_forward_hook(_hook(adapter)))
    return attached


def _hook(adapter: BottleneckAdapter) -> Any:
    def adapt(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # attention also returns its weights
            return (adapter(output[0]), *output[1:])
        return adapter(output)

    return adapt


def _parent(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    head, _, name = path.rpartition(".")
    return model.get_submodule(head), name


def _adapter_name(block: str) -> str:
    return f"{block}_adapter"


def _width(model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    size = getattr(config, "hidden_size", None)
    if not isinstance(size, int):
        raise UserError(f"a {type(model).__name__} whose config has no hidden_size", fix="give attach_adapters a width")
    return size


def exchanged_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a client trains and sends: the trainable parameters by name. Holds for PEFT models too."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def exchanged_share(model: nn.Module) -> float:
    """Trainable parameters over all parameters of the model without its adapters; works on the meta device."""
    sent = sum(parameter.numel() for parameter in exchanged_parameters(model).values())
    return sent / sum(p.numel() for name, p in model.named_parameters() if "_adapter." not in name)


def load_arrays(model: nn.Module, arrays: Iterable[tuple[str, Any]]) -> None:
    """Copy arrays into the parameters of these names, whatever their device and dtype.

    Raises:
        UserError: a name that the model does not train, or another shape.
    """
    parameters = exchanged_parameters(model)
    with torch.no_grad():
        for name, array in arrays:
            if name not in parameters or tuple(parameters[name].shape) != tuple(array.shape):
                expected = f"shape {tuple(parameters[name].shape)}" if name in parameters else "a trainable parameter"
                raise UserError(f"array {name!r} of shape {tuple(array.shape)}", expected)
            parameters[name].copy_(torch.tensor(array))
