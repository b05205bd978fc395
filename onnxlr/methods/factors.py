"""From two real factors to a chain in a format, in the metric they were fitted in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxlr.methods.matricisation import Matricisation
from onnxlr.methods.method import Setting
from onnxlr.methods.weighted import fit_weighted
from onnxlr.metrics import Fisher, Metric
from onnxlr.stages import Chain

__all__ = ["encode_factors", "fit_elements"]

Matrix = npt.NDArray[np.float64]


def encode_factors(form: Matricisation, left: Matrix, right: Matrix, setting: Setting) -> Chain:
    """Return the chain of two factors, kept in the setting's format.

    Where the covariance of the inputs is known and the format is one of few bits, the second factor
    is solved anew behind the first one as it was rounded, so that it makes up for that, and each is
    rounded by the covariance of what it sees.
    """
    chain = form.chain(left, right)
    covariance = setting.metric.covariance
    if setting.format.is_float or covariance is None:
        return chain.encoded(setting.format, setting.compute)
    first = chain.stages[0].encoded(
        setting.format, setting.compute, form.first_covariance(covariance)
    )
    left = form.left_of(first)
    right = form.solve_second(left, covariance)
    second = form.chain(left, right).stages[1]
    seen = form.second_covariance(left, covariance)
    return Chain((first, second.encoded(setting.format, setting.compute, seen)))


def fit_elements(
    form: Matricisation, left: Matrix, right: Matrix, metric: Metric
) -> tuple[Matrix, Matrix]:
    """Return factors of least error weighted entry by entry, starting from given ones."""
    if not isinstance(metric, Fisher) or metric.importance is None:
        raise TypeError(f"metric {metric.name} weights no entries")
    weights = form.matrices()
    importance = form.like(metric.importance).matrices()
    *batch, rows, columns = weights.shape
    rank = left.shape[-1]
    fits = [
        fit_weighted(*parts, solver=metric.solver)
        for parts in zip(
            weights.astype(np.float64).reshape(-1, rows, columns),
            importance.reshape(-1, rows, columns),
            left.reshape(-1, rows, rank),
            right.reshape(-1, rank, columns),
            strict=True,
        )
    ]
    return (
        np.stack([fit.left for fit in fits]).reshape(*batch, rows, rank),
        np.stack([fit.right for fit in fits]).reshape(*batch, rank, columns),
    )
