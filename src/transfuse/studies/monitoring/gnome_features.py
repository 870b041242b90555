"""The costly part of the GNOME study: fine-tune once a task, and keep the features of all texts at every checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from transfuse.hosts.encoder_features import Pooling, extract
from transfuse.hosts.text_classifier import (
    FineTuning,
    PooledClassifier,
    Trained,
    dropout_logits,
    finetune,
    load_encoder,
)
from transfuse.nets.encoder import packaged_encoder, tiny_encoder
from transfuse.studies.monitoring.gnome_tasks import Task
from transfuse.study.streams import Streams

AVG, CLS, AVG_AVG = Pooling("avg"), Pooling("cls"), Pooling("avg", "avg")
POOLINGS = {"avg": AVG, "cls": CLS, "avg_avg": AVG_AVG}
TaskName = Literal["docstrings", "sst2", "trec", "clinc"]
FRACTIONS = (0.25, 0.5, 0.75, 1.0)  # of fine-tuning; with the encoder as it was, five checkpoints


@dataclass(frozen=True)
class Settings:
    """Defaults are the scale small."""

    tasks: tuple[TaskName, ...] = ("docstrings",)  # what installed packages bring; the others need the data folder
    encoder: str = "packaged"  # packaged MiniLM, "tiny" (random weights, for dry runs), or a folder or hub name
    train: int = 500  # ID training texts, classes even as far as they reach; above d = 384, and two minutes of work
    validation: int = 100  # ID texts for the best epoch, the normalisation and thresholds
    test: int = 100  # ID test texts, and texts of each foreign set
    epochs: int = 2  # small replication; ID validation accuracy hardly rises after it
    learning_rate: float = 2e-4  # best ID validation accuracy of 5e-5, 1e-4, 2e-4; no foreign text was looked at
    batch_size: int = 32  # 16 steps an epoch
    max_length: int = 32  # tokens; most sentences are shorter
    passes: int = 5  # of MC dropout, as in the paper's code
    neighbours: int = 10  # of KNN, as in the paper's code
    corpus: int = 0  # docstring sentences read a subject; 0 = all
    device: str = "cpu"  # small encoders on short texts need no accelerator


class Collector:
    """Gathers features of a task's texts under the keys that `features_of` documents."""

    def __init__(self, task: Task, tokenizer: Any, max_length: int) -> None:
        self.texts = {"train": task.train[0], "validation": task.validation[0]}
        self.texts |= {part: texts_of(task, part) for part in part_names(task)}
        self.tracked = ["train", "validation", *tracked_parts(task)]
        self.tokenizer, self.max_length = tokenizer, max_length
        self.found: dict[str, np.ndarray] = {}
        self.last: dict[str, Tensor] = {}

    def everything(self, prefix: str, model: nn.Module) -> None:
        """All poolings and the logits of all parts."""
        for part, texts in self.texts.items():
            out = extract(model, self.tokenizer, texts, tuple(POOLINGS.values()), max_length=self.max_length)
            for name, pooling in POOLINGS.items():
                self.found[f"{prefix}/{name}/{part}"] = out.features[pooling].cpu().numpy()
            if out.logits is not None:
                self.found[f"logits/{part}"] = out.logits.cpu().numpy()

    def checkpoint(self, prefix: str, model: nn.Module) -> None:
        """Mean-pooled features of the parts that are followed along fine-tuning."""
        for part in self.tracked:
            out = extract(model, self.tokenizer, self.texts[part], (AVG,), max_length=self.max_length)
            self.found[f"{prefix}/avg/{part}"] = out.features[AVG].cpu().numpy()

    def watch(self, done: int, total: int, model: PooledClassifier) -> None:
        """After every step: a checkpoint where one is due. The last state is only set aside."""
        if done == total:
            self.last = {name: value.detach().clone() for name, value in model.state_dict().items()}
        elif prefix := next((f"{f:g}" for f in FRACTIONS if done == max(1, round(f * total))), None):
            self.checkpoint(prefix, model)

    def finish(self, trained: Trained, epochs: int) -> None:
        """The kept classifier, and the last state of training, which mostly is the same."""
        self.everything("ft", trained.classifier)
        if trained.best_epoch == epochs:
            self.found |= {f"1/avg/{part}": self.found[f"ft/avg/{part}"] for part in self.tracked}
            return
        best = {name: value.detach().clone() for name, value in trained.classifier.state_dict().items()}
        trained.classifier.load_state_dict(self.last)
        self.checkpoint("1", trained.classifier)
        trained.classifier.load_state_dict(best)


def features_of(task: Task, settings: Settings, streams: Streams) -> dict[str, np.ndarray]:
    """The costly part: fine-tune once, and keep the features of all texts at every checkpoint that counts.

    Keys: "pre/POOLING/PART" and "ft/POOLING/PART" of the encoder before fine-tuning and of the kept classifier,
    "logits/PART", "dropout/PART", "lengths/PART", and "0.25/avg/PART", ..., "1/avg/PART" along fine-tuning.
    """
    encoder, tokenizer = _encoder(settings, task, streams)
    encoder.to(settings.device)
    collector = Collector(task, tokenizer, settings.max_length)
    collector.everything("pre", encoder)
    recipe = FineTuning(settings.epochs, settings.learning_rate, settings.batch_size, settings.max_length)
    trained = finetune(
        encoder, tokenizer, task.train, task.validation, recipe,
        seed=streams.init.integer(), pooling=AVG, on_step=collector.watch,
    )  # fmt: skip
    collector.finish(trained, settings.epochs)
    found = collector.found
    for part in tracked_parts(task):  # five passes are dear: MC dropout is measured on the shifts of claims 1 to 3
        drawn = dropout_logits(
            trained.classifier, tokenizer, collector.texts[part], settings.passes,
            seed=streams.noise.child(part).integer(), max_length=settings.max_length,
        )  # fmt: skip
        found[f"dropout/{part}"] = drawn.cpu().numpy()
    for part, own in collector.texts.items():
        ids = tokenizer(list(own), truncation=True, max_length=settings.max_length)["input_ids"]
        found[f"lengths/{part}"] = np.array([len(row) for row in ids], dtype=np.float32)
    return found


def maker(task: Task, settings: Settings, streams: Streams) -> Callable[[], dict[str, np.ndarray]]:
    """`features_of` for the stage cache, whose key covers the code of this module and not that of the arms."""
    return lambda: features_of(task, settings, streams)


def _encoder(settings: Settings, task: Task, streams: Streams) -> tuple[nn.Module, Any]:
    if settings.encoder == "packaged":
        return packaged_encoder()
    if settings.encoder == "tiny":
        return tiny_encoder(task.train[0], seed=streams.init.child("tiny").integer())
    return load_encoder(settings.encoder)


def part_names(task: Task) -> list[str]:
    """The ID test texts, and every foreign set as "SHIFT-DATASET", in the order of `task.foreign`."""
    return ["inside", *("-".join(key) for key in task.foreign)]


def tracked_parts(task: Task) -> list[str]:
    """The parts that are followed along fine-tuning."""
    return [part for part in part_names(task) if part.split("-")[0] in ("inside", "background", "semantic")]


def texts_of(task: Task, part: str) -> tuple[str, ...]:
    """The texts of a part."""
    if part in ("train", "inside"):
        return (task.train if part == "train" else task.inside)[0]
    return task.foreign[dict(zip(part_names(task)[1:], task.foreign, strict=True))[part]]
