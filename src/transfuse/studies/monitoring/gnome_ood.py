"""Does GNOME find foreign texts of both kinds where single detectors find one, and does fine-tuning cause that?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transfuse.hosts.feature_cache import texts_digest
from transfuse.methods.monitoring import ood_scores
from transfuse.methods.monitoring.detection_metrics import aupr_out, auroc, fpr_at_recall
from transfuse.methods.monitoring.distortion import length_bins, linear_cka, probe_hits
from transfuse.methods.monitoring.gnome_ood import Config, GnomeScore
from transfuse.methods.monitoring.tied_gaussian import fit_gaussian
from transfuse.studies.monitoring.gnome_features import (
    FRACTIONS,
    Settings,
    maker,
    part_names,
    texts_of,
    tracked_parts,
)
from transfuse.studies.monitoring.gnome_tasks import Sizes, Task, clinc_task, docstring_task, sst2_task, trec_task
from transfuse.study import AtMost, Beats, Measurement, Metric, Study, Trend, Within
from transfuse.study.stage import Stages
from transfuse.study.streams import Streams

STUDY = Study(
    id="gnome_ood",
    question="Does joining distances in a fine-tuned encoder and in its pre-trained initialisation find texts of new "
    "domains and of new classes alike?",
    arms=(
        "gnome",
        "gnome_min",
        "gnome_min_max",
        "gnome_svm",
        "unnormalised_sum",
        "mahalanobis_finetuned",
        "mahalanobis_pretrained",
        "mahalanobis_finetuned_cls",
        "mahalanobis_pretrained_cls",
        "avg_avg",
        "msp",
        "max_logit",
        "energy",
        "odin",
        "d2u",
        "mc_dropout",
        "lof",
        "knn",
        "shuffled_labels",
        "text_length",
    ),
    controls=("shuffled_labels", "text_length"),
    metrics={
        "auroc": Metric("higher", "1", "share of (ID, foreign) pairs of texts in the right order"),
        "fpr95": Metric("lower", "1", "share of foreign texts let in where 95 % of ID texts pass"),
        "aupr_out": Metric("higher", "1", "average precision for finding foreign texts"),
        "shortfall": Metric("lower", "1", "AUROC of the better of the two single-encoder detectors, less this arm's"),
        "probe_accuracy": Metric("higher", "1", "accuracy of a linear probe of a property the task does not need"),
        "cka": Metric("neither", "1", "likeness of the fine-tuned to the pre-trained features; 1 = same geometry"),
        "id_accuracy": Metric("higher", "1", "accuracy of the classifier on ID test texts"),
        "texts": Metric("neither", "1", "first 12 hexadecimal digits of the hash of all texts, as a number"),
    },
    conditions={
        "shift": ("background", "background_respelled", "semantic", "both", "cross_task", "same_distribution"),
        "dataset": (
            "other_libraries",
            "other_subjects",
            "standard_library",
            "held_out",
            "custrev",
            "trec",
            "clinc",
            "pydoc",
            "subj_objective",
            "mpqa",
            "rt_polarity",
        ),
        "task": ("docstrings", "sst2", "trec", "clinc"),
        "probe": ("length", "source"),
    },
    claims=(
        Beats(
            "mahalanobis_pretrained",
            "mahalanobis_finetuned",
            on="auroc",
            where={"shift": "background"},
            paper="claim 1: fine-tuning severely deteriorates the detection of non-semantic shift",
            likely="the packaged encoder is a contrastive sentence encoder, trained to ignore what is not meaning",
        ),
        Beats(
            "mahalanobis_pretrained",
            "mahalanobis_finetuned",
            on="auroc",
            where={"shift": "background_respelled"},
            scales=("public", "full"),
            paper="claim 1 with the foreign texts in the spelling of the ID texts, so that tokenisation cannot decide",
        ),
        Beats(
            "mahalanobis_finetuned",
            "mahalanobis_pretrained",
            on="auroc",
            where={"shift": "semantic"},
            paper="claim 2: fine-tuned features are the better ones for semantic shift",
            likely="a contrastive sentence encoder already separates subjects it was never tuned on",
        ),
        Beats(
            "gnome",
            "mahalanobis_finetuned",
            on="auroc",
            where={"shift": "both"},
            by=0.01,
            paper="claim 3: best on average over both shifts",
        ),
        Beats(
            "gnome",
            "mahalanobis_pretrained",
            on="auroc",
            where={"shift": "both"},
            by=0.01,
            paper="claim 3: best on average over both shifts",
        ),
        Beats("gnome", "msp", on="auroc", where={"shift": "both"}, paper="claim 3, against the usual baseline"),
        Beats("gnome", "knn", on="auroc", where={"shift": "both"}, paper="claim 3, against KNN with one definition"),
        AtMost(
            "gnome", 0.03, on="shortfall", where={"shift": "background"}, paper="claim 3: close to the better detector"
        ),
        AtMost(
            "gnome", 0.03, on="shortfall", where={"shift": "semantic"}, paper="claim 3: close to the better detector"
        ),
        Beats(
            "gnome",
            "mahalanobis_finetuned",
            on="auroc",
            where={"shift": "cross_task"},
            paper="claim 4: better than either part where both shifts come at once",
        ),
        Beats(
            "gnome",
            "mahalanobis_pretrained",
            on="auroc",
            where={"shift": "cross_task"},
            paper="claim 4: better than either part where both shifts come at once",
        ),
        Trend(
            "mahalanobis_finetuned",
            "step",
            "rises",
            on="auroc",
            where={"shift": "semantic"},
            paper="claim 5: semantic detection grows with fine-tuning",
        ),
        Trend(
            "mahalanobis_finetuned",
            "step",
            "falls",
            on="auroc",
            where={"shift": "background"},
            paper="claim 5: background detection falls with fine-tuning",
        ),
        Trend(
            "mahalanobis_finetuned",
            "step",
            "falls",
            on="probe_accuracy",
            where={"probe": "length"},
            paper="claim 5: task-agnostic information is lost",
        ),
        Trend(
            "mahalanobis_finetuned",
            "step",
            "falls",
            on="probe_accuracy",
            where={"probe": "source"},
            paper="claim 5: task-agnostic information is lost",
        ),
        Within(
            "gnome",
            0.5,
            on="auroc",
            where={"shift": "same_distribution"},
            width=0.05,
            control=True,
            paper="negative control: texts of the same source cannot be told apart",
        ),
        Beats(
            "gnome",
            "text_length",
            on="auroc",
            where={"shift": "both"},
            control=True,
            paper="control: the sets do not differ by length alone",
        ),
        Beats(
            "gnome",
            "shuffled_labels",
            on="auroc",
            where={"shift": "semantic"},
            control=True,
            paper="placebo: the class means must carry the effect, not the mere sum of two scores",
        ),
    ),
    settings=Settings,
    scales={
        "quick": {
            "encoder": "tiny", "train": 60, "validation": 30, "test": 30, "epochs": 1, "learning_rate": 1e-3,
            "batch_size": 8, "max_length": 16, "corpus": 60,
        },
        "public": {"tasks": ("sst2", "trec", "clinc"), "validation": 150, "test": 120},
        "full": {
            "tasks": ("sst2", "trec", "clinc"), "encoder": "FacebookAI/roberta-base", "train": 2400,
            "validation": 800, "test": 1000, "epochs": 5, "learning_rate": 2e-5, "batch_size": 16, "max_length": 128,
            "device": "cuda",
        },
    },
    seeds={"quick": 1, "small": 5, "public": 5, "full": 5},
    data={
        "public": ("sent-conv", "clinc150", "pydoc-topics"),
        "full": ("sent-conv", "clinc150", "pydoc-topics"),
    },
    seconds={"quick": 5, "small": 75, "public": 220, "full": 1200},
    notes=(
        "The packaged encoder is a sentence encoder trained contrastively, not a raw masked language model, so its "
        "pre-trained features are better at meaning and worse at style than the paper's.",
        "Mean pooling throughout, the encoder's native one; the arms that end in _cls show the first token.",
        "small: subjects of SciPy's docstrings against the same subjects in NumPy, scikit-learn and PyTorch "
        "(background), SciPy's other subjects (semantic) and the standard library (cross-task); see data/docstrings.",
        "The number of training texts was changed after scores had been seen: from 360 to 700 after a first run "
        "at small (below the 384 dimensions of the encoder the covariance of the pre-trained features is mostly "
        "its shrinkage), "
        "then to 500 for time, after one seed at 700.",
        "500 training texts keep a cell within minutes on one core; the paper fine-tunes on whole data sets.",
        "MC dropout takes five passes and is measured on background and semantic shift only.",
        "Foreign texts are scored and never used to fit, normalise, stop or choose anything.",
    ),
)  # fmt: skip


def run(settings: Settings, seed: int, streams: Streams, stage: Stages) -> Iterator[Measurement]:
    """All arms on all tasks at one seed."""
    by_shift: dict[tuple[str, str], list[float]] = {}
    for task in make_tasks(settings, streams):
        for m in measure_task(task, settings, streams, stage):
            if m.metric == "auroc" and m.step is None:
                by_shift.setdefault((m.arm, str(m.where["shift"])), []).append(m.value)
            yield m
    for arm in STUDY.arms:
        means = {shift: float(np.mean(by_shift[arm, shift])) for shift in ("background", "semantic")}
        yield Measurement(arm, "auroc", float(np.mean(list(means.values()))), {"shift": "both"})
        for shift, value in means.items():
            better = max(np.mean(by_shift[f"mahalanobis_{which}", shift]) for which in ("finetuned", "pretrained"))
            yield Measurement(arm, "shortfall", float(better) - value, {"shift": shift})


def make_tasks(settings: Settings, streams: Streams) -> list[Task]:
    """The tasks of the settings, split by the seed."""
    sizes = Sizes(settings.train, settings.validation, settings.test)
    makers: dict[str, Callable[[], Task]] = {
        "docstrings": lambda: docstring_task(sizes, streams.split, settings.corpus or None),
        "sst2": lambda: sst2_task(sizes, streams.split.child("sst2")),
        "trec": lambda: trec_task(sizes, streams.split.child("trec")),
        "clinc": lambda: clinc_task(sizes, streams.split.child("clinc")),
    }
    return [makers[name]() for name in settings.tasks]


def measure_task(task: Task, settings: Settings, streams: Streams, stage: Stages) -> Iterator[Measurement]:
    """Every arm, the learning curve and the distortion of one task."""
    digest = texts_digest([*texts_of(task, "train"), *(t for name in part_names(task) for t in texts_of(task, name))])
    inputs = {"settings": asdict(settings), "seed": streams.seed, "task": task.name, "texts": digest}
    found = {
        key: torch.as_tensor(value)
        for key, value in stage("gnome-features", maker(task, settings, streams), inputs=inputs).items()
    }
    where = {"task": task.name}
    yield Measurement("gnome", "texts", float(int(digest[:12], 16)), where)
    hits = found["logits/inside"].argmax(dim=1) == torch.tensor(task.inside[1])
    yield Measurement("msp", "id_accuracy", float(hits.double().mean()), where)
    scores = scores_of(task, found, settings, streams)
    for arm, by_part in scores.items():
        inside = by_part["inside"]
        for (shift, dataset), part in zip(task.foreign, part_names(task)[1:], strict=True):
            if part not in by_part:
                continue
            place = {"shift": shift, "dataset": dataset, "task": task.name}
            yield Measurement(arm, "auroc", auroc(inside, by_part[part]), place)
            yield Measurement(arm, "fpr95", fpr_at_recall(inside, by_part[part]), place)
            yield Measurement(arm, "aupr_out", aupr_out(inside, by_part[part]), place)
    yield from curve(task, found)


def scores_of(
    task: Task, found: Mapping[str, Tensor], settings: Settings, streams: Streams
) -> dict[str, dict[str, Tensor]]:
    """Scores (larger = more ID) of every arm on every part. Only train and validation parts are fitted on."""
    y = torch.tensor(task.train[1])
    shuffled = torch.from_numpy(streams.noise.child("labels").numpy().permutation(task.train[1]))

    def pair(part: str) -> tuple[Tensor, Tensor]:
        return found[f"ft/avg/{part}"], found[f"pre/avg/{part}"]

    def joined(labels: Tensor, **options: Any) -> Callable[[str], Tensor]:
        score = GnomeScore(pair("train"), labels, pair("validation"), Config(**options))
        return lambda part: score(pair(part))

    def single(features: str) -> Callable[[str], Tensor]:
        gaussian = fit_gaussian(found[f"{features}/train"], y)
        return lambda part: gaussian(found[f"{features}/{part}"])

    bank = found["ft/avg/train"]
    centre = found["lengths/validation"].mean()
    arms: dict[str, Callable[[str], Tensor]] = {
        "gnome": joined(y),
        "gnome_min": joined(y, aggregation="min"),
        "gnome_min_max": joined(y, normalisation="min_max"),
        "gnome_svm": joined(y, aggregation="svm"),
        "unnormalised_sum": joined(y, normalisation="none"),
        "mahalanobis_finetuned": single("ft/avg"),
        "mahalanobis_pretrained": single("pre/avg"),
        "mahalanobis_finetuned_cls": single("ft/cls"),
        "mahalanobis_pretrained_cls": single("pre/cls"),
        "avg_avg": single("ft/avg_avg"),
        "msp": lambda part: ood_scores.msp(found[f"logits/{part}"]),
        "max_logit": lambda part: ood_scores.max_logit(found[f"logits/{part}"]),
        "energy": lambda part: ood_scores.energy(found[f"logits/{part}"]),
        "odin": lambda part: ood_scores.odin(found[f"logits/{part}"]),
        "d2u": lambda part: ood_scores.d2u(found[f"logits/{part}"]),
        "mc_dropout": lambda part: ood_scores.mc_dropout(found[f"dropout/{part}"]),
        "lof": lambda part: ood_scores.local_outlier_factor(bank, found[f"ft/avg/{part}"]),
        "knn": lambda part: ood_scores.knn(bank, found[f"ft/avg/{part}"], settings.neighbours),
        "shuffled_labels": joined(shuffled),
        "text_length": lambda part: -(found[f"lengths/{part}"] - centre).abs(),
    }
    measured = dict.fromkeys(arms, part_names(task)) | {"mc_dropout": tracked_parts(task)}
    return {arm: {part: score(part) for part in measured[arm]} for arm, score in arms.items()}


def curve(task: Task, found: Mapping[str, Tensor]) -> Iterator[Measurement]:
    """AUROC, probes and CKA of the encoder along fine-tuning: step 0 = pre-trained, 1 = last step."""
    y = torch.tensor(task.train[1])
    names = dict(zip(part_names(task)[1:], task.foreign, strict=True))
    tracked = [part for part in tracked_parts(task) if part != "inside"]
    steps = {0.0: "pre"} | {fraction: f"{fraction:g}" for fraction in FRACTIONS if f"{fraction:g}/avg/train" in found}
    arm = "mahalanobis_finetuned"
    for step, prefix in steps.items():
        gaussian = fit_gaussian(found[f"{prefix}/avg/train"], y)
        inside = gaussian(found[f"{prefix}/avg/inside"])
        for part in tracked:
            shift, dataset = names[part]
            place = {"shift": shift, "dataset": dataset, "task": task.name}
            value = auroc(inside, gaussian(found[f"{prefix}/avg/{part}"]))
            yield Measurement(arm, "auroc", value, place, step=step)
        for probe, accuracy in _probes(task, found, prefix):
            yield Measurement(arm, "probe_accuracy", accuracy, {"probe": probe, "task": task.name}, step=step)
        likeness = linear_cka(found["pre/avg/inside"], found[f"{prefix}/avg/inside"])
        yield Measurement(arm, "cka", likeness, {"task": task.name}, step=step)
    for arm, prefix in (("mahalanobis_pretrained", "pre"), ("mahalanobis_finetuned", "ft")):
        for probe, accuracy in _probes(task, found, prefix):
            yield Measurement(arm, "probe_accuracy", accuracy, {"probe": probe, "task": task.name})
    yield Measurement(arm, "cka", linear_cka(found["pre/avg/inside"], found["ft/avg/inside"]), {"task": task.name})


def _probes(task: Task, found: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, float]]:
    """Length bin over unseen ID texts; and which corpus a text is from, where the task has another of its kind."""
    unseen = torch.cat([found[f"{prefix}/avg/{part}"] for part in ("validation", "inside")])
    lengths = torch.cat([found[f"lengths/{part}"] for part in ("validation", "inside")])
    yield "length", float(probe_hits(unseen, length_bins(lengths)).mean())
    for part, (shift, _) in zip(part_names(task)[1:], task.foreign, strict=True):
        if shift == "background":
            parts = [found[f"{prefix}/avg/{name}"] for name in ("inside", part)]
            source = np.repeat([0, 1], [len(own) for own in parts])
            yield "source", float(probe_hits(torch.cat(parts), source).mean())
