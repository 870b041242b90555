"""GNOME as a scikit-learn outlier detector on two feature matrices.

>>> import numpy as np
>>> from transfuse.methods.monitoring.gnome_sklearn import GnomeEstimator
>>> rng = np.random.default_rng(0)
>>> X_ft, X_pre, y = rng.normal(size=(200, 3)), rng.normal(size=(200, 5)), np.arange(200) % 4
>>> validation = rng.normal(size=(100, 3)), rng.normal(size=(100, 5))
>>> detector = GnomeEstimator().fit(X_ft, X_pre, y, validation=validation)
>>> detector.predict(np.full((1, 3), 9.0), np.full((1, 5), 9.0))  # -1 = foreign, 1 = in distribution
array([-1])
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from transfuse.methods.monitoring.gnome_ood import Aggregation, Config, Covariance, GnomeScore, Normalisation


class GnomeEstimator(OutlierMixin, BaseEstimator):
    """GNOME on features of the fine-tuned encoder (`X_ft`) and of the pre-trained one (`X_pre`), row by row alike.

    Unlike most outlier detectors it takes two matrices, ID labels and ID validation features. Scores follow
    scikit-learn: larger = more normal. Parameters are those of `gnome_ood.Config`.
    """

    def __init__(
        self,
        covariance: Covariance = Config.covariance,
        shrinkage: float = Config.shrinkage,
        normalisation: Normalisation = Config.normalisation,
        aggregation: Aggregation = Config.aggregation,
        recall: float = Config.recall,
    ) -> None:
        self.covariance = covariance
        self.shrinkage = shrinkage
        self.normalisation = normalisation
        self.aggregation = aggregation
        self.recall = recall

    def fit(
        self, X_ft: ArrayLike, X_pre: ArrayLike, y: ArrayLike, *, validation: tuple[ArrayLike, ArrayLike]
    ) -> GnomeEstimator:
        """Fit on ID training features, their labels, and ID validation features through both encoders."""
        config = Config(self.covariance, self.shrinkage, self.normalisation, self.aggregation, self.recall)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        self.score_ = GnomeScore(
            (_tensor(X_ft), _tensor(X_pre)),
            torch.from_numpy(codes),
            (_tensor(validation[0]), _tensor(validation[1])),
            config,
        )
        self.n_features_in_ = self.score_.gaussians[0].centre.numel()  # type: ignore[operator]
        self.offset_ = float(self.score_.threshold)
        return self

    def score_samples(self, X_ft: ArrayLike, X_pre: ArrayLike) -> np.ndarray:
        """G(x), shape (N,); larger = more in-distribution."""
        check_is_fitted(self)
        with torch.no_grad():
            return self.score_((_tensor(X_ft), _tensor(X_pre))).numpy()

    def decision_function(self, X_ft: ArrayLike, X_pre: ArrayLike) -> np.ndarray:
        """`score_samples` less the threshold: negative = foreign."""
        return self.score_samples(X_ft, X_pre) - self.offset_

    def predict(self, X_ft: ArrayLike, X_pre: ArrayLike) -> np.ndarray:
        """1 for in-distribution, -1 for foreign, at the threshold that `recall` of the validation texts pass."""
        return np.where(self.decision_function(X_ft, X_pre) < 0, -1, 1)

    def fit_predict(  # scikit-learn's takes one matrix
        self, X_ft: ArrayLike, X_pre: ArrayLike, y: ArrayLike, *, validation: tuple[ArrayLike, ArrayLike]
    ) -> np.ndarray:
        """`fit`, then `predict` on the training features, which a fine-tuned encoder has memorised."""
        return self.fit(X_ft, X_pre, y, validation=validation).predict(X_ft, X_pre)


def _tensor(X: ArrayLike) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(X, dtype=np.float64))
