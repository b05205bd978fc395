"""Which form of several loses least."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from onnxlr.methods.atoms.form import Form
from onnxlr.methods.atoms.rounds import Fitted
from onnxlr.methods.atoms.weight import Weight
from onnxlr.progress import Progress, silent

__all__ = ["promising", "search"]

_FITTED = 2
_CLOSE = 1.05
"""How many forms are fitted, and up to which part of the least squared error expected."""

_SAME = 1.01
"""Up to which part of a squared error a form that takes fewer bytes is as good."""


def search(weight: Weight, forms: Sequence[Form], progress: Progress = silent) -> Fitted:
    """Return the fit of least error among the few forms that promise most."""
    tried = [form for form, _ in promising(weight, forms)]
    return min((weight.fitted(form, progress) for form in tried), key=lambda one: one.error)


def promising(weight: Weight, forms: Sequence[Form]) -> list[tuple[Form, float]]:
    """Return the forms that are worth a fit, with the squared errors expected, the best first."""
    estimate = weight.estimate()
    errors: dict[Form, float] = {}
    for form in sorted(forms, key=estimate.is_whole):  # tiles first: the others seldom lose less
        errors[form] = estimate.error(form, _CLOSE * min(errors.values(), default=inf))
    found: list[tuple[Form, float]] = []
    left = list(forms)
    while left and len(found) < _FITTED:
        least = min(errors[form] for form in left)
        if found and least > _CLOSE * found[0][1]:
            break
        same = [form for form in left if errors[form] <= _SAME * least]
        best = min(same, key=weight.bytes)
        found.append((best, errors[best]))
        # another format of the dictionary alone is no other form
        left = [form for form in left if (form.tile, form.nonzeros) != (best.tile, best.nonzeros)]
    return found
