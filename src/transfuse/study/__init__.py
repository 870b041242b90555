"""How evidence is made: studies, claims, cells, verdicts."""

from transfuse.study.claims import AtLeast, AtMost, Beats, Trend, Within
from transfuse.study.design import Measurement, Metric, Study

__all__ = ["AtLeast", "AtMost", "Beats", "Measurement", "Metric", "Study", "Trend", "Within"]
