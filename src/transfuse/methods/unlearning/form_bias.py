"""How evenly forgetting reaches the forms in which a fact can be asked (the ORT benchmark's question, as numbers).

>>> found = form_bias({"qa": 0.9, "cloze": 0.8}, {"qa": 0.09, "cloze": 0.4}, trained="qa")
>>> [round(found.reduction[form], 3) for form in ("qa", "cloze")], round(found.spread, 3), round(found.transfer, 3)
([0.9, 0.5], 0.4, 0.556)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transfuse.errors import UserError


@dataclass(frozen=True)
class FormBias:
    """Reductions of one unlearned model.

    Attributes:
        reduction: form -> 1 - p(after) / p(before); 1 is all forgotten, 0 nothing, below 0 better known than before.
        mean: over the forms.
        spread: largest minus smallest reduction; 0 is forgetting that does not depend on the form.
        transfer: mean reduction of the forms that were not trained over that of the trained one; None without a trained
            form, or where that was not reduced.
    """

    reduction: Mapping[str, float]
    mean: float
    spread: float
    transfer: float | None


def form_bias(before: Mapping[str, float], after: Mapping[str, float], trained: str | None = None) -> FormBias:
    """Reduction of the probability of the right answer in each form, and how it differs between them.

    Args:
        before: form -> mean probability of the right answers before unlearning.
        after: the same after it.
        trained: the form that was unlearned in.

    Raises:
        UserError: the forms differ, there is none, or a probability before is not positive.
    """
    if not before or before.keys() != after.keys():
        raise UserError(f"forms {sorted(before)} before and {sorted(after)} after", "the same forms, at least one")
    if trained is not None and trained not in before:
        raise UserError(f"trained form {trained!r}", f"one of {', '.join(sorted(before))}")
    if wrong := next((form for form, value in before.items() if not value > 0), None):
        raise UserError(f"probability {before[wrong]:g} of form {wrong!r} before", "more than 0: it was never known")
    reduction = {form: 1 - after[form] / before[form] for form in before}
    values = list(reduction.values())
    others = [value for form, value in reduction.items() if form != trained]
    transfer = None
    if trained is not None and others and reduction[trained] > 0:
        transfer = sum(others) / len(others) / reduction[trained]
    return FormBias(reduction, sum(values) / len(values), max(values) - min(values), transfer)
