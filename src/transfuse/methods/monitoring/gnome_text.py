"""GNOME on text files of the user's own: the detector from files, and the audit of suspected texts.

`gnome_ood.audit` and `gnome_ood.apply` are the ways in; what is costly is cached by the content of weights and texts.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from torch import Tensor, nn

from transfuse.atomic import replacing
from transfuse.audit import AuditReport, Finding
from transfuse.cache import cache_folder
from transfuse.data.text_files import read_labelled, read_texts
from transfuse.errors import UserError
from transfuse.hosts.encoder_features import Pooling, Tokens, extract, extract_pair, is_peft
from transfuse.hosts.feature_cache import cached, texts_digest, weights_digest
from transfuse.hosts.text_classifier import (
    FineTuning,
    PooledClassifier,
    find_pretrained,
    finetune,
    load_classifier,
    load_encoder,
)
from transfuse.methods.monitoring.detection_metrics import auroc, auroc_interval
from transfuse.methods.monitoring.distortion import length_bins, linear_cka, probe_hits
from transfuse.methods.monitoring.gnome_ood import Config, GnomeScore, recall_threshold
from transfuse.nets.encoder import packaged_encoder

# The recipe where the user brings no classifier: the packaged encoder is small and takes a larger step size.
RECIPE = FineTuning(epochs=3, learning_rate=1e-4, batch_size=32, max_length=64)
LEAST = 20  # texts a part, below which an interval says nothing


@dataclass(frozen=True)
class Options:
    """What `audit` and `apply` share."""

    classifier: str | None = None
    pretrained: str | None = None
    pooling: Tokens = "avg"
    epochs: int = RECIPE.epochs
    seed: int = 0


@dataclass(frozen=True)
class Scored:
    """GNOME and its two parts for some texts, each (N,), larger = more ID; and their features by encoder."""

    gnome: Tensor
    finetuned: Tensor
    pretrained: Tensor
    features: tuple[Tensor, Tensor]


def batch_of(path: str | Path) -> tuple[list[str], Tensor]:
    """A labelled file as one batch for `GNOME.fit`: texts, and their labels numbered in alphabetical order."""
    texts, labels = read_labelled(Path(path))
    codes = {label: code for code, label in enumerate(sorted(set(labels)))}
    return texts, torch.tensor([codes[label] for label in labels])


class FileDetector:
    """GNOME fitted on a labelled training file and an ID validation file."""

    def __init__(self, train: Path, validation: Path, options: Options) -> None:
        self.options = options
        texts, labels = read_labelled(train)
        self.classes = sorted(set(labels))
        self.train_texts = texts
        codes = {label: code for code, label in enumerate(self.classes)}
        y = [codes[label] for label in labels]
        self.validation_texts = read_texts(validation)
        _enough(validation, self.validation_texts)
        self._load((texts, y), validation, codes)
        pair = self.features(texts)
        self.score = GnomeScore(pair, torch.tensor(y), self.features(self.validation_texts), Config())
        self.thresholds = [
            recall_threshold(part) for part in self.score.both(self.features(self.validation_texts))
        ]  # of the fine-tuned and of the pre-trained encoder alone

    def _load(self, train: tuple[list[str], list[int]], validation: Path, codes: dict[str, int]) -> None:
        o = self.options
        self.pretrained: nn.Module | None
        if o.classifier is not None:
            self.finetuned, self.tokenizer = load_classifier(o.classifier)
            peft = is_peft(self.finetuned) and o.pretrained is None
            self.pretrained = None if peft else find_pretrained(self.finetuned, o.pretrained)
            return
        encoder, self.tokenizer = packaged_encoder() if o.pretrained is None else load_encoder(o.pretrained)
        dev_texts, dev_labels = read_labelled(validation)
        unknown = sorted(set(dev_labels) - codes.keys())
        if unknown:
            raise UserError(
                f"label {unknown[0]!r} of {str(validation)!r} is not in the training file", "the same labels"
            )
        dev = (dev_texts, [codes[label] for label in dev_labels])
        self.pretrained = encoder
        self.finetuned = _finetuned(encoder, self.tokenizer, train, dev, o)

    def features(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(fine-tuned, pre-trained) features of texts, from the cache if these weights have seen these texts."""
        if not hasattr(self, "_weights"):
            models = [self.finetuned] + ([self.pretrained] if self.pretrained is not None else [])
            self._weights = [weights_digest(model) for model in models]
        pooling = Pooling(self.options.pooling)
        vocabulary = texts_digest(sorted(self.tokenizer.get_vocab()))
        key = (*self._weights, vocabulary, texts_digest(texts), pooling.name, RECIPE.max_length)

        def make() -> np.ndarray:
            found = extract_pair(
                self.finetuned, self.pretrained, self.tokenizer, texts,
                poolings=(pooling,), max_length=RECIPE.max_length,
            )  # fmt: skip
            return torch.cat([part.features[pooling] for part in found], dim=1).cpu().numpy()

        both = torch.from_numpy(cached(key, make))
        half = both.shape[1] // 2
        return both[:, :half], both[:, half:]

    @torch.no_grad()
    def scored(self, texts: Sequence[str]) -> Scored:
        """Scores of texts."""
        features = self.features(texts)
        finetuned, pretrained = self.score.both(features)
        return Scored(self.score(features), finetuned, pretrained, features)

    def predicted(self, texts: Sequence[str]) -> list[str]:
        """The class that the classifier gives each text, or an empty string if it has no head."""
        logits = extract(self.finetuned, self.tokenizer, texts, (), max_length=RECIPE.max_length).logits
        if logits is None:
            return [""] * len(texts)
        names = self.classes
        if self.options.classifier is not None:
            config: Any = self.finetuned.config
            names = [str(name) for _, name in sorted(config.id2label.items())]
        return [names[i] for i in logits.argmax(dim=1).tolist()]


def _finetuned(
    encoder: nn.Module, tokenizer: Any, train: tuple[list[str], list[int]], dev: tuple[list[str], list[int]], o: Options
) -> nn.Module:
    """The packaged (or given) encoder fine-tuned on the training file; its weights are cached."""
    key = [weights_digest(encoder), *train[0], *dev[0], repr((train[1], dev[1], o.epochs, o.seed, o.pooling, RECIPE))]
    path = cache_folder() / "features" / f"classifier-{texts_digest(key)}.safetensors"
    pooling = Pooling(o.pooling)
    if path.exists():
        import copy

        model = PooledClassifier(copy.deepcopy(encoder), max(train[1]) + 1, pooling).eval()
        try:
            model.load_state_dict(load_file(path))
            return model
        except Exception:  # cut short by a crash, or of another version: it is made anew
            path.unlink(missing_ok=True)
    recipe = FineTuning(o.epochs, RECIPE.learning_rate, RECIPE.batch_size, RECIPE.max_length)
    made = finetune(encoder, tokenizer, train, dev, recipe, seed=o.seed, pooling=pooling).classifier
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in made.state_dict().items()}, temporary)
    return made


def audit_files(train: Path, validation: Path, test: Path, suspects: Path, options: Options) -> AuditReport:
    """See `gnome_ood.audit`."""
    test_texts, suspect_texts = read_texts(test), read_texts(suspects)
    _enough(test, test_texts)
    detector = FileDetector(train, validation, options)
    inside, outside = detector.scored(test_texts), detector.scored(suspect_texts)
    alarms = (inside.gnome < detector.score.threshold).numpy()
    flagged = (outside.gnome < detector.score.threshold).numpy()
    findings = (
        _flagged(flagged, alarms),
        _separation(inside, outside, options.seed),
        _kind(inside, outside, options.seed),
        _only_by_pretrained(detector, outside, flagged),
        *_distortion(detector, inside, test_texts, options.seed),
        _false_alarms(alarms, detector.score.config.recall),
    )
    versions = ("transfuse", "torch", "transformers")
    return AuditReport(
        subject=f"{suspects.name} against {train.name}",
        method="gnome_ood",
        findings=findings,
        false_alarm_rate=float(alarms.mean()),
        calibration=f"{int(alarms.sum())} of {len(alarms)} held-out in-distribution texts were flagged at the "
        f"threshold that {detector.score.config.recall:.0%} of the validation texts pass",
        environment={
            **{name: importlib.metadata.version(name) for name in versions},
            "classifier": options.classifier or f"packaged MiniLM, fine-tuned here for at most {options.epochs} epochs",
            "pretrained": options.pretrained or "what the classifier was fine-tuned from",
            "pooling": options.pooling,
            "train": len(detector.train_texts),
            "classes": len(detector.classes),
            "validation": len(detector.validation_texts),
            "test": len(test_texts),
            "suspects": len(suspect_texts),
            "suspects_also_in_train": len(set(suspect_texts) & set(detector.train_texts)),
        },
    )


def _flagged(flagged: np.ndarray, alarms: np.ndarray) -> Finding:
    interval, null = _share(flagged), _share(alarms)
    found = interval[0] > null[1]
    return Finding(
        "suspects flagged as foreign",
        float(flagged.mean()),
        interval,
        null[1],
        "finding" if found else "ok",
        f"{flagged.mean():.0%} of the suspects score worse than nearly all validation texts; of held-out texts of your "
        f"own distribution {alarms.mean():.0%} do, at most {null[1]:.0%} given their number",
        "send flagged texts to a person or a fallback, and label some of them: `transfuse apply gnome_ood` lists them"
        if found
        else "",
    )


def _separation(inside: Scored, outside: Scored, seed: int) -> Finding:
    value = auroc(inside.gnome, outside.gnome)
    interval = auroc_interval(inside.gnome, outside.gnome)
    limit = null_auroc(inside.gnome.numpy(), len(outside.gnome), seed)
    found = interval[0] > limit
    return Finding(
        "AUROC of suspects against held-out texts",
        value,
        interval,
        limit,
        "finding" if found else "ok",
        "the share of (held-out, suspect) pairs in which the suspect scores worse; two halves of your own held-out "
        f"texts stay below {limit:.2f} in 39 of 40 splits",
        "the suspects come from elsewhere as a whole: look at the worst-scored ones first" if found else "",
    )


def null_auroc(inside_scores: np.ndarray, suspects: int, seed: int, draws: int = 400) -> float:
    """The AUROC that ID texts reach against ID texts in all but 2.5 % of random splits: the null."""
    rng = np.random.default_rng(seed)
    size = min(suspects, len(inside_scores) // 2)
    values = []
    for _ in range(draws):
        mixed = rng.permutation(inside_scores)
        values.append(auroc(mixed[size:], mixed[:size]))
    return float(np.quantile(values, 0.975))


def _kind(inside: Scored, outside: Scored, seed: int) -> Finding:
    def gap(i: np.ndarray, o: np.ndarray) -> float:
        return auroc(inside.pretrained[i], outside.pretrained[o]) - auroc(inside.finetuned[i], outside.finetuned[o])

    n, m = len(inside.gnome), len(outside.gnome)
    rng = np.random.default_rng(seed)
    draws = [gap(rng.integers(n, size=n), rng.integers(m, size=m)) for _ in range(400)]
    low, high = (float(q) for q in np.quantile(draws, (0.025, 0.975)))
    kind = "a new domain or style" if low > 0 else "new classes" if high < 0 else "undecided: neither encoder is better"
    return Finding(
        "kind of shift (AUROC pre-trained less fine-tuned)",
        gap(np.arange(n), np.arange(m)),
        (low, high),
        None,
        "info",
        f"looks like: {kind}. Above 0 the encoder before fine-tuning sees the suspects better, as with a new domain; "
        "below 0 the fine-tuned one does, as with new classes",
    )


def _only_by_pretrained(detector: FileDetector, outside: Scored, flagged: np.ndarray) -> Finding:
    missed = flagged & (outside.finetuned >= detector.thresholds[0]).numpy()
    return Finding(
        "flagged, but missed by the fine-tuned encoder alone",
        float(missed.mean()),
        _share(missed),
        None,
        "info",
        "the share of suspects that a detector on your classifier's own features would have let pass",
    )


def _distortion(detector: FileDetector, inside: Scored, texts: Sequence[str], seed: int) -> tuple[Finding, Finding]:
    """How far the pair of encoders lies apart, and what the fine-tuned one forgot, on held-out ID texts."""
    finetuned, pretrained = (z.numpy() for z in inside.features)
    lengths = [len(ids) for ids in detector.tokenizer(list(texts), truncation=True)["input_ids"]]
    bins = length_bins(lengths)
    if np.bincount(bins).min() < 3 or len(set(bins)) < 2:
        bins = (np.asarray(lengths) > np.median(lengths)).astype(int)
    likeness = linear_cka(pretrained, finetuned)
    cka = Finding(
        "likeness of the two encoders (CKA)",
        likeness,
        None,
        None,
        "info",
        "1 = fine-tuning left the geometry of held-out texts as it was, 0 = nothing is left of it",
    )
    if np.bincount(bins, minlength=2).min() < 3:
        return cka, Finding("distortion", 1 - likeness, None, None, "info", "held-out texts are all of one length")
    loss = probe_hits(pretrained, bins, seed=seed) - probe_hits(finetuned, bins, seed=seed)  # (N,) of -1, 0, 1
    rng = np.random.default_rng(seed)
    draws = loss[rng.integers(len(loss), size=(1000, len(loss)))].mean(axis=1)
    low, high = (float(q) for q in np.quantile(draws, (0.025, 0.975)))
    distorted = low > 0
    return cka, Finding(
        "distortion (text-length probe: accuracy lost in fine-tuning)",
        float(loss.mean()),
        (low, high),
        0.0,
        "finding" if distorted else "ok",
        "the encoder pair is distorted: fine-tuning removed a property that the task does not need"
        if distorted
        else "no loss of this task-agnostic property could be shown",
        "do not rely on the fine-tuned features alone for detection; fewer epochs, or LoRA, distort less"
        if distorted
        else "",
    )


def _false_alarms(alarms: np.ndarray, recall: float) -> Finding:
    interval = _share(alarms)
    off = interval[0] > 1 - recall
    return Finding(
        "false alarms on held-out texts",
        float(alarms.mean()),
        interval,
        round(1 - recall, 6),
        "finding" if off else "ok",
        "the validation file does not stand for the test file: more is flagged than the threshold promises"
        if off
        else "the threshold holds on texts it was not made from",
        "draw validation and test texts at random from the same source, and keep training texts out" if off else "",
    )


def _share(hits: np.ndarray) -> tuple[float, float]:
    """Clopper-Pearson interval of a share."""
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95)
    return float(interval.low), float(interval.high)


def _enough(path: Path, texts: Sequence[str]) -> None:
    if len(texts) < LEAST:
        raise UserError(f"{str(path)!r} holds {len(texts)} texts", f"at least {LEAST} in-distribution ones")
