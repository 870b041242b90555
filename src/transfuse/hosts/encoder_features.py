"""Features of texts from transformers encoders: any pooling, any layers, one pass for all of them.

Feature extraction dominates the cost of detection, so texts are sorted by length and padded per batch, several poolings
share a pass, and a PEFT model gives the fine-tuned and the pre-trained features from one set of weights.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from transfuse.errors import UserError

Tokens = Literal["avg", "cls"]
Layers = Literal["last", "avg", "avg_with_embeddings", "first_last"]


@dataclass(frozen=True)
class Pooling:
    """How the hidden states of a text become one vector.

    Attributes:
        tokens: avg = mean over the tokens that are not padding; cls = the first token. The first token of an encoder
            that was never fine-tuned says little, so avg is the safer choice for the pre-trained one.
        layers: last; avg = mean of layers 1 .. n; avg_with_embeddings = mean of 0 .. n; first_last = mean of layers 1
            and n; or a tuple of layer numbers (0 = embeddings, negative from the end).
    """

    tokens: Tokens = "avg"
    layers: Layers | tuple[int, ...] = "last"

    def __post_init__(self) -> None:
        if self.tokens not in get_args(Tokens):
            raise UserError(f"token pooling {self.tokens!r}", f"one of {', '.join(get_args(Tokens))}")
        if isinstance(self.layers, str) and self.layers not in get_args(Layers):
            raise UserError(f"layer pooling {self.layers!r}", f"one of {', '.join(get_args(Layers))}, or layer numbers")

    @property
    def name(self) -> str:
        layers = self.layers if isinstance(self.layers, str) else "_".join(map(str, self.layers))
        return f"{self.tokens}/{layers}"

    def indices(self, count: int) -> list[int]:
        """The hidden states that are averaged, of `count` = layers + 1."""
        if not isinstance(self.layers, str):
            if not self.layers or not all(-count <= i < count for i in self.layers):
                raise UserError(f"layers {self.layers!r}", f"numbers from {-count} to {count - 1} for this encoder")
            return [i % count for i in self.layers]
        first = {"last": count - 1, "avg": 1, "avg_with_embeddings": 0}
        return [1, count - 1] if self.layers == "first_last" else list(range(first[self.layers], count))


def pool(hidden_states: Sequence[Tensor], mask: Tensor, pooling: Pooling) -> Tensor:
    """Hidden states (layers + 1) x (batch, tokens, d) and mask (batch, tokens) -> features (batch, d)."""
    states = [hidden_states[i] for i in pooling.indices(len(hidden_states))]
    mean = states[0] if len(states) == 1 else torch.stack(states).mean(dim=0)  # (batch, tokens, d)
    if pooling.tokens == "cls":
        first = mask.int().argmax(dim=1)  # left-padded tokenizers do not start at 0
        return mean[torch.arange(len(mean), device=mean.device), first]
    weights = mask[..., None].to(mean.dtype)
    return (mean * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def check_texts(texts: Sequence[str]) -> None:
    """One clear line where something else than a list of texts was passed."""
    if isinstance(texts, str):
        raise UserError("one string", "a list of texts", "put it in a list")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"text {index} is {type(text).__name__}", "strings")


def batches_by_length(
    tokenizer: Any, texts: Sequence[str], batch_size: int, max_length: int, by_length: bool = True
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Tokenised batches of texts of similar length, each padded to its own longest: (positions, inputs).

    With `by_length` off, all batches are padded to the longest text of all: the slow form, kept for comparison.
    """
    if not len(texts):
        return
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    order = np.argsort(lengths, kind="stable") if by_length else np.arange(len(texts))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = {key: [values[i] for i in chosen] for key, values in encoded.items()}
        pad: dict[str, Any] = {"padding": True} if by_length else {"padding": "max_length", "max_length": max(lengths)}
        yield torch.from_numpy(chosen.astype(np.int64)), dict(tokenizer.pad(rows, return_tensors="pt", **pad))


@dataclass(frozen=True)
class Extracted:
    """What one pass gave: features (N, d) by pooling, and logits (N, classes) if the model is a classifier."""

    features: dict[Pooling, Tensor]
    logits: Tensor | None


@torch.no_grad()
def extract(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    poolings: Sequence[Pooling] = (Pooling(),),
    batch_size: int = 32,
    max_length: int = 128,
    autocast: torch.dtype | None = None,
    by_length: bool = True,
) -> Extracted:
    """Features and logits of texts, in the order of the texts, in evaluation mode and without gradient.

    Args:
        model: a transformers encoder or sequence classifier, a PEFT model, or a `PooledClassifier`.
        tokenizer: its tokenizer.
        texts: any number of strings.
        poolings: all are made from the same pass.
        batch_size: texts a batch.
        max_length: longer texts are cut, in tokens.
        autocast: for example torch.bfloat16; features come back as float32.
        by_length: sort by length before padding.
    """
    check_texts(texts)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    gathered: dict[Pooling, list[Tensor]] = {pooling: [] for pooling in poolings}
    logits, positions = [], []
    try:
        for rows, inputs in batches_by_length(tokenizer, texts, batch_size, max_length, by_length):
            inputs = {key: value.to(device) for key, value in inputs.items()}
            with _autocast(device, autocast):
                output = model(**_accepted(model, inputs), output_hidden_states=True)
            positions.append(rows)
            for pooling, parts in gathered.items():
                parts.append(pool(_hidden_states(output), inputs["attention_mask"], pooling).float())
            if getattr(output, "logits", None) is not None:
                logits.append(output.logits.float())
    finally:
        model.train(was_training)
    if not positions:
        raise UserError("no texts", "at least one")
    back = torch.cat(positions).argsort().to(device)
    features = {pooling: torch.cat(parts)[back] for pooling, parts in gathered.items()}
    return Extracted(features, torch.cat(logits)[back] if logits else None)


def extract_pair(
    finetuned: nn.Module, pretrained: nn.Module | None, tokenizer: Any, texts: Sequence[str], **options: Any
) -> tuple[Extracted, Extracted]:
    """`extract` for both encoders. `pretrained` None: `finetuned` is a PEFT model, whose adapter is switched off."""
    first = extract(finetuned, tokenizer, texts, **options)
    if pretrained is not None:
        return first, extract(pretrained, tokenizer, texts, **options)
    with adapter_off(finetuned):
        return first, extract(finetuned, tokenizer, texts, **options)


def is_peft(model: nn.Module) -> bool:
    """Whether the model is a PEFT model (known by its type's module, so that peft need not be installed)."""
    return type(model).__module__.startswith("peft.")


def adapter_off(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """The base weights of a PEFT model inside the block."""
    if not is_peft(model):
        raise UserError(f"{type(model).__name__} has no adapter to switch off", "a PEFT model", "pass pretrained=...")
    return model.disable_adapter()  # type: ignore[operator]


class TextEncoder(nn.Module):
    """A callable from texts to features (N, d), for `GNOME` and for any code that wants an encoder.

    Args:
        model: as for `extract`.
        tokenizer: its tokenizer.
        pooling: how features are made.
        base_of_peft: use the base weights of a PEFT model.
        batch_size: texts a batch.
        max_length: longer texts are cut, in tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        pooling: Pooling | None = None,
        base_of_peft: bool = False,
        batch_size: int = 32,
        max_length: int = 128,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.pooling = model, tokenizer, pooling or Pooling()
        self.base_of_peft, self.batch_size, self.max_length = base_of_peft, batch_size, max_length

    def forward(self, texts: Sequence[str]) -> Tensor:
        with adapter_off(self.model) if self.base_of_peft else contextlib.nullcontext():
            found = extract(
                self.model, self.tokenizer, texts, (self.pooling,), self.batch_size, max_length=self.max_length
            )
        return found.features[self.pooling]


def text_encoders(
    classifier: nn.Module, tokenizer: Any, pretrained: nn.Module | str | None = None, **options: Any
) -> tuple[TextEncoder, TextEncoder]:
    """The two encoders of GNOME: of a fine-tuned classifier, and of the checkpoint it started from.

    Args:
        classifier: a transformers classifier or encoder, a PEFT model, or a SentenceTransformer.
        tokenizer: its tokenizer.
        pretrained: the encoder before fine-tuning, or its folder or hub name. None: the adapter of a PEFT model is
            switched off; otherwise `config._name_or_path` must name a checkpoint other than the classifier's own.
        **options: passed to `TextEncoder`.
    """
    model = inner_transformer(classifier)
    if pretrained is None and is_peft(model):
        return TextEncoder(model, tokenizer, **options), TextEncoder(model, tokenizer, base_of_peft=True, **options)
    if pretrained is None or isinstance(pretrained, str):
        from transfuse.hosts.text_classifier import find_pretrained

        pretrained = find_pretrained(model, pretrained)
    return (
        TextEncoder(model, tokenizer, **options),
        TextEncoder(inner_transformer(pretrained), tokenizer, **options),
    )


def inner_transformer(model: nn.Module) -> nn.Module:
    """The transformers model inside a SentenceTransformer; any other model itself."""
    if not type(model).__module__.startswith("sentence_transformers."):
        return model
    first = model[0]  # type: ignore[index]
    inner = getattr(first, "auto_model", None)
    if inner is None:
        raise UserError(f"SentenceTransformer whose first module is {type(first).__name__}", "a Transformer module")
    return inner


def _hidden_states(output: Any) -> Sequence[Tensor]:
    states = getattr(output, "hidden_states", None)
    if states is None:
        states = getattr(output, "encoder_hidden_states", None)
    if states is None:
        raise UserError("the encoder returns no hidden states", "a transformers encoder", "see output_hidden_states")
    return states


def _accepted(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what the model does not take, such as token_type_ids for a DistilBERT."""
    names = inspect.signature(model.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in names.values()):
        return inputs
    return {key: value for key, value in inputs.items() if key in names}


def _autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext()
