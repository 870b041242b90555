"""The costly part of the GNOME study: fine-tune once a task, and keep the features of all texts at every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import nn

from transfuse.hosts.encoder_features import Pooling, extract
from transfuse.hosts.text_classifier import FineTuning, PooledClassifier, dropout_logits, finetune, load_encoder
from transfuse.nets.encoder import packaged_encoder, tiny_encoder
from transfuse.studies.monitoring.gnome_tasks import Task
from transfuse.study.streams import Streams

AVG, CLS, AVG_AVG = Pooling("avg"), Pooling("cls"), Pooling("avg", "avg")
POOLINGS = {"avg": AVG, "cls": CLS, "avg_avg": AVG_AVG}
FRACTIONS = (0.25, 0.5, 0.75, 1.0)  # of fine-tuning; with the encoder as it was, five checkpoints


@dataclass(frozen=True)
class Settings:
    """Defaults are the scale small."""

    tasks: tuple[Literal["docstrings", "sst2", "trec", "clinc"], ...] = ("docstrings",)
    encoder: str = "packaged"  # packaged MiniLM, "tiny" (random weights, for dry runs), or a folder or hub name
    train: int = 480  # ID training texts; balanced as far as classes reach
    validation: int = 150  # ID texts for the best epoch, the normalisation and thresholds
    test: int = 150  # ID test texts, and texts of each foreign set
    epochs: int = 3  # until ID validation accuracy stops rising
    learning_rate: float = 1e-4  # best ID validation accuracy of 5e-5, 1e-4, 2e-4; no foreign text was looked at
    batch_size: int = 32  # the sheet's small protocol
    max_length: int = 32  # tokens; most sentences are shorter
    passes: int = 5  # of MC dropout, as in the paper's code
    neighbours: int = 10  # of KNN, as in the paper's code
    corpus: int = 0  # docstring sentences read a subject; 0 = all
    device: str = "cpu"  # small encoders on short texts need no accelerator


def features_of(task: Task, settings: Settings, streams: Streams) -> dict[str, np.ndarray]:
    """The costly part: fine-tune once, and keep the features of all texts at every checkpoint that counts.

    Keys: "pre/POOLING/PART", "ft/POOLING/PART", "logits/PART", "dropout/PART", "lengths/PART", "0.25/avg/PART", ...
    """
    encoder, tokenizer = _encoder(settings, task, streams)
    encoder.to(settings.device)
    found: dict[str, np.ndarray] = {}
    texts = {"train": task.train[0], "validation": task.validation[0]}
    texts |= {part: texts_of(task, part) for part in part_names(task)}
    tracked = [name for name in texts if name in ("train", "validation", *tracked_parts(task))]
    steps_seen: list[int] = []

    def keep(prefix: str, model: nn.Module, parts: list[str], logits: bool = False) -> None:
        for part in parts:
            poolings = tuple(POOLINGS.values()) if prefix in ("pre", "ft") else (AVG,)
            out = extract(model, tokenizer, texts[part], poolings, 32, settings.max_length)
            for name, pooling in POOLINGS.items():
                if pooling in out.features:
                    found[f"{prefix}/{name}/{part}"] = out.features[pooling].cpu().numpy()
            if logits and out.logits is not None:
                found[f"logits/{part}"] = out.logits.cpu().numpy()

    def watch(done: int, total: int, model: PooledClassifier) -> None:
        for fraction in FRACTIONS:
            if done == max(1, round(fraction * total)) and done not in steps_seen:
                steps_seen.append(done)
                keep(f"{fraction:g}", model, tracked)

    keep("pre", encoder, list(texts))
    recipe = FineTuning(settings.epochs, settings.learning_rate, settings.batch_size, settings.max_length)
    seed = streams.init.integer()
    trained = finetune(
        encoder, tokenizer, task.train, task.validation, recipe, seed=seed, pooling=AVG, on_step=watch
    )  # fmt: skip
    keep("ft", trained.classifier, list(texts), logits=True)
    for part in part_names(task):
        drawn = dropout_logits(
            trained.classifier, tokenizer, texts[part], settings.passes,
            seed=streams.noise.child(part).integer(), max_length=settings.max_length,
        )  # fmt: skip
        found[f"dropout/{part}"] = drawn.cpu().numpy()
    for part, own in texts.items():
        ids = tokenizer(list(own), truncation=True, max_length=settings.max_length)["input_ids"]
        found[f"lengths/{part}"] = np.array([len(row) for row in ids], dtype=np.float32)
    return found


def _encoder(settings: Settings, task: Task, streams: Streams) -> tuple[nn.Module, Any]:
    if settings.encoder == "packaged":
        return packaged_encoder()
    if settings.encoder == "tiny":
        return tiny_encoder(task.train[0], seed=streams.init.child("tiny").integer())
    return load_encoder(settings.encoder)


def part_names(task: Task) -> list[str]:
    return ["inside", *("/".join(key).replace("/", "-") for key in task.foreign)]


def tracked_parts(task: Task) -> list[str]:
    """The parts that are followed along fine-tuning."""
    return [part for part in part_names(task) if part.split("-")[0] in ("inside", "background", "semantic")]


def texts_of(task: Task, part: str) -> tuple[str, ...]:
    if part in ("train", "inside"):
        return (task.train if part == "train" else task.inside)[0]
    return task.foreign[dict(zip(part_names(task)[1:], task.foreign, strict=True))[part]]
