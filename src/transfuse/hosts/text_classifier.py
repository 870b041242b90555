"""Text classifiers: fine-tuning with the best-dev recipe, and finding the checkpoint that one started from."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.hosts.encoder_features import Pooling, batches_by_length, check_texts, pool
from transfuse.hosts.model_folder import SAFELY, loading


@dataclass(frozen=True)
class ClassifierOutput:
    """Logits (batch, classes) and hidden states (layers + 1) x (batch, tokens, d), named as in transformers."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...]


class PooledClassifier(nn.Module):
    """An encoder, its pooled features, dropout, and one linear layer: features are what the layer sees.

    Args:
        encoder: a transformers encoder; it is trained in place.
        classes: number of classes.
        pooling: how hidden states become the features.
        dropout: on the features.
    """

    def __init__(self, encoder: nn.Module, classes: int, pooling: Pooling | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        config: Any = encoder.config
        self.encoder, self.pooling = encoder, pooling or Pooling()
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(config.hidden_size, classes)

    @property
    def config(self) -> Any:
        return self.encoder.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = True, **inputs: Tensor
    ) -> ClassifierOutput:
        # extract() asks for hidden states, training does not, but pooling needs them either way
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, **inputs)
        features = pool(output.hidden_states, attention_mask, self.pooling)
        return ClassifierOutput(self.head(self.dropout(features)), output.hidden_states)


@dataclass(frozen=True)
class FineTuning:
    """The paper's recipe. Small encoders and small data take a larger step size."""

    epochs: int = 5  # the paper's code
    learning_rate: float = 2e-5  # the paper's code, for a base-size encoder
    batch_size: int = 16  # the paper's code
    max_length: int = 128  # the paper's code pads to 512; single sentences are far shorter
    weight_decay: float = 0.0  # the paper's code
    clip: float = 1.0  # the paper's code: largest norm of the gradient


@dataclass(frozen=True)
class Trained:
    """A classifier at its best dev accuracy, the epoch that gave it, and the dev accuracy of every epoch."""

    classifier: PooledClassifier
    best_epoch: int
    dev_accuracy: tuple[float, ...]


def finetune(
    encoder: nn.Module,
    tokenizer: Any,
    train: tuple[Sequence[str], Sequence[int]],
    dev: tuple[Sequence[str], Sequence[int]],
    recipe: FineTuning | None = None,
    *,
    seed: int,
    pooling: Pooling | None = None,
    on_step: Callable[[int, int, PooledClassifier], None] | None = None,
) -> Trained:
    """Fine-tune a copy of `encoder` on labelled texts; the weights of the best epoch on `dev` are kept.

    Args:
        encoder: the pre-trained encoder; it is not changed.
        tokenizer: its tokenizer.
        train: texts and their classes 0 .. C-1.
        dev: the same, not trained on.
        recipe: step size, epochs, ...
        seed: of the head, the order of batches and dropout; the caller's random state is left as it was.
        pooling: the features that the head sees.
        on_step: called as (steps done, steps in all, classifier) after every step; the classifier is in training mode.
    """
    recipe = recipe or FineTuning()
    texts, labels = train
    check_texts(texts)
    y = torch.as_tensor(np.asarray(labels), dtype=torch.long)
    if len(y) != len(texts) or not len(y):
        raise UserError(f"{len(texts)} training texts and {len(y)} labels", "one label a text, at least one")
    devices = [next(encoder.parameters()).device]
    with torch.random.fork_rng(devices=[d for d in devices if d.type == "cuda"]):
        torch.manual_seed(seed)
        model = PooledClassifier(copy.deepcopy(encoder), int(y.max()) + 1, pooling).to(devices[0])
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        rng = np.random.default_rng(seed)
        total, done = recipe.epochs * -(-len(texts) // recipe.batch_size), 0
        best: dict[str, Tensor] = {}
        accuracies: list[float] = []
        for _ in range(recipe.epochs):
            for rows in np.array_split(rng.permutation(len(texts)), -(-len(texts) // recipe.batch_size)):
                _step(model, optimiser, tokenizer, [texts[i] for i in rows], y[torch.from_numpy(rows)], recipe)
                done += 1
                if on_step is not None:
                    on_step(done, total, model)
            accuracies.append(accuracy(model, tokenizer, *dev, max_length=recipe.max_length))
            if accuracies[-1] > max(accuracies[:-1], default=-1.0):
                best = {key: value.detach().clone() for key, value in model.state_dict().items()}
        model.load_state_dict(best or model.state_dict())
    return Trained(model.eval(), int(np.argmax(accuracies)) + 1 if accuracies else 0, tuple(accuracies))


def _step(
    model: PooledClassifier,
    optimiser: torch.optim.Optimizer,
    tokenizer: Any,
    texts: list[str],
    y: Tensor,
    recipe: FineTuning,
) -> None:
    model.train()
    device = next(model.parameters()).device
    inputs = tokenizer(texts, truncation=True, max_length=recipe.max_length, padding=True, return_tensors="pt")
    logits = model(**{key: value.to(device) for key, value in inputs.items()}).logits
    optimiser.zero_grad()
    F.cross_entropy(logits, y.to(device)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimiser.step()


@torch.no_grad()
def accuracy(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], labels: Sequence[int], max_length: int = 128
) -> float:
    """Share of texts whose class the model names."""
    model.eval()
    device = next(model.parameters()).device
    y = torch.as_tensor(np.asarray(labels))
    right = 0
    for rows, inputs in batches_by_length(tokenizer, texts, 32, max_length):
        logits = model(**{key: value.to(device) for key, value in inputs.items()}).logits
        right += int((logits.argmax(dim=1).cpu() == y[rows]).sum())
    return right / max(1, len(y))


@torch.no_grad()
def dropout_logits(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], passes: int = 5, *, seed: int, max_length: int = 128
) -> Tensor:
    """Logits (passes, N, classes) with dropout on, for MC dropout; the caller's random state is left as it was."""
    device = next(model.parameters()).device
    was_training = model.training
    rows, parts = [], []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model.train()
        try:
            for positions, inputs in batches_by_length(tokenizer, texts, 32, max_length):
                inputs = {key: value.to(device) for key, value in inputs.items()}
                parts.append(torch.stack([model(**inputs).logits.float() for _ in range(passes)]))
                rows.append(positions)
        finally:
            model.train(was_training)
    return torch.cat(parts, dim=1)[:, torch.cat(rows).argsort().to(device)]


def load_encoder(name: str | Path) -> tuple[nn.Module, Any]:
    """An encoder (without head) and its tokenizer from a folder or a hub name.

    Raises:
        UserError: there is no such model, or it needs code of its own, which is never run.
    """
    return _load(name, "AutoModel"), load_tokenizer(name)


def load_classifier(name: str | Path) -> tuple[nn.Module, Any]:
    """A sequence classifier and its tokenizer from a folder or a hub name; a PEFT adapter folder gives a PEFT model."""
    if (Path(name) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForSequenceClassification

        with loading(name):
            model = AutoPeftModelForSequenceClassification.from_pretrained(str(name), **SAFELY).eval()
        return model, load_tokenizer(str(model.peft_config["default"].base_model_name_or_path))
    from transformers import AutoModelForSequenceClassification as AutoClassifier

    with loading(name):
        model, report = AutoClassifier.from_pretrained(str(name), output_loading_info=True, **SAFELY)
    if missing := sorted(report["missing_keys"]):  # the host would go on with a head of random weights
        raise UserError(f"{str(name)!r} has no weights for {missing[0]}", "a fine-tuned classifier, not an encoder")
    return model.eval(), load_tokenizer(name)


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a folder or hub name."""
    from transformers import AutoTokenizer

    with loading(name):
        return AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)


def find_pretrained(model: nn.Module, pretrained: str | None = None) -> nn.Module:
    """The encoder that a classifier was fine-tuned from: `pretrained`, or what its configuration names.

    A classifier that was saved and loaded again names its own folder; then the base must be given.
    """
    config: Any = model.config
    own = str(getattr(config, "_name_or_path", ""))
    name = pretrained or _recorded_base(own) or own
    base = _load(name, "AutoModel") if name else None
    if base is None:
        raise UserError("the classifier does not say which checkpoint it started from", fix="pass pretrained=NAME")
    for key in ("model_type", "hidden_size", "vocab_size"):
        if getattr(base.config, key, None) != getattr(config, key, None):
            raise UserError(
                f"pretrained {name!r} has {key} {getattr(base.config, key, None)!r}, "
                f"the classifier {getattr(config, key, None)!r}",
                "the encoder that the classifier was fine-tuned from",
            )
    if pretrained is None and _same_weights(base, model):
        raise UserError(
            f"the configuration of the classifier names {own!r}, which is the classifier itself",
            "the checkpoint before fine-tuning",
            "pass pretrained=NAME",
        )
    return base


def _recorded_base(folder: str) -> str:
    """The checkpoint that a saved model's own configuration file still names, or an empty string."""
    path = Path(folder) / "config.json"
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("_name_or_path", "")
    except (OSError, ValueError):
        return ""
    return named if isinstance(named, str) and named != folder else ""


def _same_weights(base: nn.Module, model: nn.Module) -> bool:
    """Whether every weight of the encoder stands unchanged inside the model."""
    there = model.state_dict()
    ends = {key: value for key, value in base.state_dict().items() if value.is_floating_point()}
    matches = [next((there[name] for name in there if name == key or name.endswith("." + key)), None) for key in ends]
    pairs = [(a, b) for a, b in zip(ends.values(), matches, strict=True) if b is not None and a.shape == b.shape]
    return bool(pairs) and all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


def _load(name: str | Path, auto_class: str) -> nn.Module:
    import transformers

    with loading(name):
        return getattr(transformers, auto_class).from_pretrained(str(name), **SAFELY).eval()
