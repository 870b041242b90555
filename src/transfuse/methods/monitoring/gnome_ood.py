"""Tells texts that a fine-tuned classifier has no business answering, whatever made them foreign.

Distances in a fine-tuned encoder see new *classes* (semantic shift) but miss a new *domain* (background shift), because
fine-tuning drops the features that the task does not need; distances in the encoder it started from err the other way.
GNOME scores a text in both, puts the two scores on the scale of the same in-distribution (ID) validation set, and
averages.

>>> import torch
>>> from transfuse.methods.monitoring.gnome_ood import GNOME
>>> finetuned, pretrained = (lambda x: x[:, :2]), (lambda x: x[:, 2:])  # any two callables: batch -> (batch, d)
>>> x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
>>> detector = GNOME(finetuned, pretrained).fit([(x[:200], torch.arange(200) % 2)], [(x[200:], torch.zeros(100))])
>>> bool(detector.predict(x[200:] + 9).min() > detector.predict(x[200:]).max())  # higher = more foreign
True

Texts of your own: from a script as in the docstring of `GNOME`, from the shell `transfuse audit gnome_ood`.

Chen, Yang, Bi, Sun (2023), Fine-Tuning Deteriorates General Textual Out-of-Distribution Detection by Distorting
Task-Agnostic Features, Findings of EACL, arXiv 2301.12715.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from pytorch_ood.api import DetectorInfo, FeaturesDetector, Paper, RequiresFittingException, Task
from torch import Tensor, nn

from transfuse.audit import AuditReport
from transfuse.card import Card
from transfuse.errors import UserError
from transfuse.methods.monitoring.tied_gaussian import Covariance, fit_gaussian

CARD = Card(
    id="gnome_ood",
    title="Fine-Tuning Deteriorates General Textual Out-of-Distribution Detection by Distorting Task-Agnostic Features",
    summary="Detects texts of a foreign class or a foreign domain by joining distances in a fine-tuned text encoder "
    "and in the encoder it was fine-tuned from.",
    authors="Sishuo Chen, Wenkai Yang, Xiaohan Bi, Xu Sun",
    year=2023,
    venue="Findings of EACL",
    url="https://arxiv.org/abs/2301.12715",
    family="monitoring",
    host="pytorch-ood: FeaturesDetector; scikit-learn: OutlierMixin (gnome_sklearn.GnomeEstimator)",
    entry="transfuse.methods.monitoring.gnome_ood.GNOME",
    needs=(
        "a fine-tuned text classifier and the encoder it started from (or a PEFT model, which holds both)",
        "labelled in-distribution training texts",
        "in-distribution validation texts that were not trained on",
    ),
    data="text",
    problems=(
        "Which requests should my text classifier refuse to answer?",
        "Did the texts that reach my model change since I trained it?",
        "What did fine-tuning take away from my encoder?",
    ),
    extra="text",
    requires=("torch", "transformers", "pytorch_ood", "sklearn"),
    differs=(
        "The detector follows pytorch-ood's sign (higher = more foreign); the pure functions keep the paper's.",
        "KNN has one definition for all texts (distance to the 10th neighbour); the authors' code scores ID texts by "
        "the mean and foreign texts by the maximum of the ten distances, which alone gives an AUROC of about 0.65.",
        "The one-class SVM and the min-max scale of the authors' ablations are options, never the default.",
        "ODIN is its temperature only: a token sequence has no input on which the gradient step could act.",
        "MC dropout averages the class probabilities of five passes and takes their maximum.",
        "Mean pooling is the default, first-token pooling an explicit choice; the authors' code has it the other way.",
        "Ledoit-Wolf shrinkage can be chosen for small training sets.",
    ),
    showcase=True,
)

Normalisation = Literal["z", "min_max", "none"]
Aggregation = Literal["mean", "min", "svm"]


@dataclass(frozen=True)
class Config:
    """How the two scores are made and joined. Nothing here may be chosen by looking at foreign texts."""

    covariance: Covariance = "shrunk"  # the authors' code; steadier than the empirical one when N is near d
    shrinkage: float = 0.1  # the authors' code: scikit-learn's default for ShrunkCovariance
    normalisation: Normalisation = "z"  # the paper; min_max is its ablation, none shows why a common scale is needed
    aggregation: Aggregation = "mean"  # the paper's main form; min asks both encoders to agree
    recall: float = 0.95  # share of ID validation texts that `flag` lets pass, as in FPR95

    def __post_init__(self) -> None:
        choices = {"covariance": Covariance, "normalisation": Normalisation, "aggregation": Aggregation}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"{name} = {getattr(self, name)!r}", f"one of {', '.join(get_args(kind))}")
        if not 0.0 <= self.shrinkage <= 1.0:
            raise UserError(f"shrinkage = {self.shrinkage!r}", "a number from 0 to 1")
        if not 0.0 < self.recall < 1.0:
            raise UserError(f"recall = {self.recall!r}", "a number between 0 and 1")


class Scale(nn.Module):
    """A shift and a width that put a score on the scale of the ID validation set."""

    shift: Tensor
    width: Tensor

    def __init__(self, shift: Tensor, width: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)  # ()
        self.register_buffer("width", width)  # ()

    def forward(self, scores: Tensor) -> Tensor:
        return (scores - self.shift) / self.width


def fit_scale(validation_scores: Tensor, normalisation: Normalisation = "z") -> Scale:
    """The scale of one encoder's scores, from ID *validation* texts (paper, section 4).

    Training texts would do harm here: a fine-tuned encoder has memorised them and places them too well.
    """
    if normalisation == "none":
        return Scale(torch.zeros_like(validation_scores[0]), torch.ones_like(validation_scores[0]))
    if len(validation_scores) < 2:
        raise UserError(f"{len(validation_scores)} validation texts", "at least 2 in-distribution ones, better 100")
    if normalisation == "min_max":
        low, high = validation_scores.aminmax()
        shift, width = low, high - low
    else:
        shift, width = validation_scores.mean(), validation_scores.std(correction=0)
    if not float(width) > 0.0:
        raise UserError("all validation texts have the same score", "texts that differ", "check the validation set")
    return Scale(shift, width)


def aggregate(finetuned: Tensor, pretrained: Tensor, aggregation: Aggregation = "mean") -> Tensor:
    """G(x) from the two normalised scores of shape (N,); larger = more ID. For "svm" see `fit_one_class_svm`."""
    if aggregation == "min":
        return torch.minimum(finetuned, pretrained)
    return (finetuned + pretrained) / 2


def fit_one_class_svm(finetuned: Tensor, pretrained: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The ablation of the authors' code: a one-class SVM over pairs of normalised ID validation scores."""
    from sklearn.svm import OneClassSVM

    svm = OneClassSVM().fit(torch.stack((finetuned, pretrained), dim=1).cpu().numpy())

    def score(finetuned: Tensor, pretrained: Tensor) -> Tensor:
        pairs = torch.stack((finetuned, pretrained), dim=1)  # (N, 2)
        return torch.from_numpy(svm.decision_function(pairs.cpu().numpy())).to(pairs)

    return score


class GnomeScore(nn.Module):
    """The fitted score on features: two Gaussians, two scales, one threshold. Larger = more ID."""

    def __init__(
        self,
        train: tuple[Tensor, Tensor],
        labels: Tensor,
        validation: tuple[Tensor, Tensor],
        config: Config | None = None,
    ) -> None:
        """Fit on (fine-tuned, pre-trained) features of ID training texts and of ID validation texts."""
        super().__init__()
        self.config = config or Config()
        if len(validation[0]) != len(validation[1]):
            raise UserError(
                f"validation features of {len(validation[0])} and {len(validation[1])} texts",
                "the same texts through both encoders",
            )
        c = self.config
        self.gaussians = nn.ModuleList(fit_gaussian(z, labels, c.covariance, c.shrinkage) for z in train)
        raw = [g(v) for g, v in zip(self.gaussians, validation, strict=True)]
        self.scales = nn.ModuleList(fit_scale(scores, c.normalisation) for scores in raw)
        pair = [scale(scores) for scale, scores in zip(self.scales, raw, strict=True)]
        self._svm = fit_one_class_svm(*pair) if c.aggregation == "svm" else None
        self.threshold: Tensor
        self.register_buffer("threshold", recall_threshold(self._join(*pair), c.recall))

    def both(self, features: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The normalised scores of the fine-tuned and of the pre-trained encoder, each (N,)."""
        first, second = (s(g(z)) for s, g, z in zip(self.scales, self.gaussians, features, strict=True))
        return first, second

    def forward(self, features: tuple[Tensor, Tensor]) -> Tensor:
        return self._join(*self.both(features))

    def _join(self, finetuned: Tensor, pretrained: Tensor) -> Tensor:
        if self._svm is not None:
            return self._svm(finetuned, pretrained)
        return aggregate(finetuned, pretrained, self.config.aggregation)


def recall_threshold(validation_scores: Tensor, recall: float = 0.95) -> Tensor:
    """The score that at least a share `recall` of the ID validation texts reaches, shape ()."""
    return torch.quantile(validation_scores.float(), 1 - recall, interpolation="lower").to(validation_scores)


Batches = Iterable[tuple[Any, Tensor]]


class GNOME(FeaturesDetector):
    """GNOME as a pytorch-ood detector: outlier scores, higher = more foreign.

    On text files of your own (columns text and label), with a classifier and the encoder it was fine-tuned from:

    >>> from transfuse.hosts.text_classifier import load_classifier
    >>> from transfuse.hosts.encoder_features import text_encoders
    >>> from transfuse.methods.monitoring.gnome_text import batch_of
    >>> detector = GNOME(*text_encoders(*load_classifier("my-classifier"), pretrained="my-base"))
    >>> detector = detector.fit([batch_of("train.csv")], [batch_of("validation.csv")])
    >>> detector.predict(["is this still about films?"]).shape
    torch.Size([1])

    Args:
        finetuned: callable from a batch to features (batch, d), for example a `TextEncoder`.
        pretrained: the same for the encoder that `finetuned` was initialised from. Dimensions may differ only if
            features are passed as pairs.
        config: how scores are made and joined.
    """

    info = DetectorInfo(
        paper=Paper(
            title=CARD.title, venue=CARD.venue, year=CARD.year, url=CARD.url, code="https://github.com/lancopku/GNOME"
        ),
        tasks=frozenset({Task.CLASSIFICATION}),
    )
    requires_fit = True

    def __init__(
        self,
        finetuned: Callable[[Any], Tensor] | None = None,
        pretrained: Callable[[Any], Tensor] | None = None,
        config: Config | None = None,
    ) -> None:
        super().__init__()
        self.finetuned, self.pretrained = finetuned, pretrained
        self.config = config or Config()
        self.score: GnomeScore | None = None

    def fit(self, data_loader: Batches, validation_loader: Batches | None = None) -> GNOME:
        """Fit on loaders of (inputs, labels); rows with negative labels are foreign and left out, as in pytorch-ood.

        Raises:
            UserError: no validation loader. Training texts cannot stand in for it (see `fit_scale`).
        """
        if validation_loader is None:
            raise UserError(
                "GNOME.fit without validation texts",
                "in-distribution texts that the classifier was not trained on",
                "fit(train_loader, validation_loader)",
            )
        train, labels = self._extract(data_loader)
        validation, _ = self._extract(validation_loader)
        return self.fit_features(train, labels, validation)

    def fit_features(  # the method needs a second, unseen set
        self, z: Tensor | tuple[Tensor, Tensor], y: Tensor, validation: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> GNOME:
        """Fit on features: a pair (fine-tuned, pre-trained), or one tensor (N, 2d) that holds them side by side."""
        if validation is None:
            raise UserError("GNOME.fit_features without validation features", fix="fit_features(z, y, validation)")
        self.score = GnomeScore(_pair(z), y, _pair(validation), self.config)
        return self

    def predict(self, x: Any) -> Tensor:
        """Outlier scores (batch,) of inputs that both encoders take."""
        return self.predict_features(self._encode(x))

    @torch.no_grad()
    def predict_features(self, z: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Outlier scores (N,) of features in the form of `fit_features`."""
        if self.score is None:
            raise RequiresFittingException
        return -self.score(_pair(z))

    def flag(self, x: Any) -> Tensor:
        """True (batch,) where a text scores worse than all but 1 - `recall` of the ID validation texts."""
        scores = self.predict(x)
        assert self.score is not None  # predict has raised otherwise
        return scores > -self.score.threshold

    @torch.no_grad()
    def _encode(self, x: Any) -> tuple[Tensor, Tensor]:
        if self.finetuned is None or self.pretrained is None:
            raise UserError("GNOME without encoders", "two callables", "GNOME(finetuned, pretrained), or use features")
        if isinstance(x, Tensor) and self.device is not None:
            x = x.to(self.device)
        return self.finetuned(x), self.pretrained(x)

    def _extract(self, loader: Batches) -> tuple[tuple[Tensor, Tensor], Tensor]:
        first, second, labels = [], [], []
        for x, y in loader:
            known = y >= 0
            z_ft, z_pre = self._encode(x)
            first.append(z_ft[known.to(z_ft.device)])
            second.append(z_pre[known.to(z_pre.device)])
            labels.append(y[known])
        if not labels:
            raise UserError("a loader without batches", "in-distribution texts")
        return (torch.cat(first), torch.cat(second)), torch.cat(labels)


TrainFile = Annotated[Path, "labelled in-distribution training texts: CSV, TSV or JSONL with columns text and label"]
ValidationFile = Annotated[
    Path, "in-distribution texts that were not trained on, same form; labels are needed only without --classifier"
]
Classifier = Annotated[
    str | None, "folder or hub name of your fine-tuned classifier; without it the packaged MiniLM is fine-tuned here"
]
Pretrained = Annotated[str | None, "folder or hub name of the encoder before fine-tuning; found by itself where it can"]
Tokens = Annotated[Literal["avg", "cls"], "pooling: mean over tokens, or first token"]
Epochs = Annotated[int, "epochs of fine-tuning where no classifier is given"]


def audit(
    train: TrainFile,
    validation: ValidationFile,
    test: Annotated[Path, "held-out in-distribution texts: a line each, or a column text"],
    suspects: Annotated[Path, "texts that may be foreign: a line each, or a column text"],
    classifier: Classifier = None,
    pretrained: Pretrained = None,
    pooling: Tokens = "avg",
    epochs: Epochs = 3,
    seed: Annotated[int, "of fine-tuning and resampling"] = 0,
) -> AuditReport:
    """Do these texts come from elsewhere, is it a new domain or new classes, and did fine-tuning blind the encoder?

    The answer is calibrated on held-out texts of your own: their share of false alarms, and the AUROC that two of
    their halves reach against each other, are the thresholds.
    """
    from transfuse.methods.monitoring.gnome_text import Options, audit_files  # builds on this module

    return audit_files(train, validation, test, suspects, Options(classifier, pretrained, pooling, epochs, seed))


def apply(
    train: TrainFile,
    validation: ValidationFile,
    texts: Annotated[Path, "texts to score: a line each, or a column text"],
    out: Annotated[Path, "what is written: .csv or .jsonl, one row a text"],
    classifier: Classifier = None,
    pretrained: Pretrained = None,
    pooling: Tokens = "avg",
    epochs: Epochs = 3,
    seed: Annotated[int, "of fine-tuning"] = 0,
) -> Path:
    """Score texts one by one: outlier score (higher = more foreign), whether flagged, both parts, and the class.

    A text is flagged where it scores worse than all but 5 % of the validation texts.
    """
    from transfuse.data.text_files import read_texts, write_rows
    from transfuse.methods.monitoring.gnome_text import FileDetector, Options

    rows = read_texts(texts)
    detector = FileDetector(train, validation, Options(classifier, pretrained, pooling, epochs, seed))
    scored = detector.scored(rows)
    flagged = (scored.gnome < detector.score.threshold).tolist()
    parts = [(-part).tolist() for part in (scored.gnome, scored.finetuned, scored.pretrained)]
    columns = ("text", "score", "flagged", "finetuned", "pretrained", "predicted")
    write_rows(out, columns, list(zip(rows, parts[0], flagged, *parts[1:], detector.predicted(rows), strict=True)))
    return out


def _pair(z: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(z, Tensor):
        return z
    if z.ndim != 2 or z.shape[1] % 2:
        raise UserError(f"features of shape {tuple(z.shape)}", "(N, 2d): fine-tuned and pre-trained side by side")
    half = z.shape[1] // 2
    return z[:, :half], z[:, half:]
