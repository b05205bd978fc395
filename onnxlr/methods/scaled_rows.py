"""A form of a weight as matrices to approximate, whose rows count alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.methods.matricisation import KernelForm, Matricisation
from onnxlr.methods.semidiscrete import Goal
from onnxlr.metrics import Metric
from onnxlr.numbers import Format

__all__ = ["ScaledRows", "smallest_kept"]

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScaledRows:
    """`D W` of each part of a form: of one group of a convolution, or one matrix of a stack.

    Attributes
    ----------
    goals
        The matrices in float32, divided by their units, with what their errors are measured in.
    scales
        `1/d` of each input or channel, `(inputs,)`; None where all are alike.
    factors
        `d` of each row of each part, `(parts, rows)`.
    units
        What each matrix was divided by, so that float32 holds it, `(parts,)`.
    """

    goals: Sequence[Goal]
    scales: Matrix | None
    factors: Matrix
    units: Matrix

    @classmethod
    def of(cls, form: Matricisation, metric: Metric, compute: np.dtype[Any]) -> ScaledRows:
        """Return a form's rows scaled by what a metric says of them; `compute` keeps the scales."""
        stack = form.matrices().astype(np.float64)
        stack = stack.reshape(-1, *stack.shape[-2:])
        covariances = _row_covariances(form, metric, len(stack))
        factors = np.ones(stack.shape[:2])
        scales = None
        if covariances is not None:
            scales, factors = _row_scales(form, covariances, compute)
            covariances = _relative(covariances / factors[:, :, None] / factors[:, None, :])
        stack = stack * factors[:, :, None]
        units = _units(stack)
        goals = [
            Goal(
                (matrix / unit).astype(np.float32),
                None if covariances is None else covariances[part].astype(np.float32),
            )
            for part, (matrix, unit) in enumerate(zip(stack, units, strict=True))
        ]
        return cls(goals, scales, factors, units)


def _row_covariances(form: Matricisation, metric: Metric, parts: int) -> Matrix | None:
    """Return what the metric says of the rows of each part, `(parts, rows, rows)`."""
    if metric.name == "frobenius":
        return None
    if metric.covariance is not None:
        found = form.first_covariance(metric.covariance)
        return np.asarray(np.broadcast_to(found, (parts, *found.shape[1:])))
    diagonals = [weighing.left for weighing in form.weighings(metric)]
    return np.stack([np.diag(np.square(np.asarray(diagonal))) for diagonal in diagonals])


def _row_scales(
    form: Matricisation, covariances: Matrix, compute: np.dtype[Any]
) -> tuple[Matrix, Matrix]:
    """Return the factors `1/d` of inputs or channels, and `d` of the rows of each part.

    `d² = max(diag C, ε)`, of a channel the mean over its places in the window; a stack has one
    input, so that its matrices share it. The factors are those that the float type holds, so that
    nothing is lost by keeping them; the root of its largest number leaves room for data.
    """
    diagonals = np.diagonal(covariances, axis1=1, axis2=2)
    if isinstance(form, KernelForm):
        channels = form.kernel.shape[1]
        squares = diagonals.reshape(len(diagonals), channels, -1).mean(axis=2)
        places = diagonals.shape[1] // channels
    else:
        squares, places = diagonals.mean(axis=0, keepdims=True), 1
    squares = np.maximum(squares, 1e-6 * float(squares.mean()))
    largest = sqrt(Format(compute.name).largest)
    factors = np.clip(1 / np.sqrt(squares), smallest_kept(compute), largest)
    factors = factors.astype(compute).astype(np.float64)
    rows = np.broadcast_to(np.repeat(1 / factors, places, axis=1), diagonals.shape)
    return factors.reshape(-1), np.asarray(rows)


def _relative(covariances: Matrix) -> Matrix:
    """Return covariances whose mean diagonal is 1, so that float32 holds them."""
    mean = np.trace(covariances, axis1=1, axis2=2).mean() / covariances.shape[-1]
    return np.asarray(covariances / mean)


def _units(stack: Matrix) -> Matrix:
    """Return the root mean square of each matrix, 1 of those of zeros."""
    largest = np.abs(stack).max(axis=(1, 2))
    largest = np.where(largest > 0, largest, 1.0)
    squares = np.square(stack / largest[:, None, None])
    roots = np.sqrt(squares.mean(axis=(1, 2)))
    return np.asarray(np.where(roots > 0, largest * roots, 1.0))


def smallest_kept(compute: np.dtype[Any]) -> float:
    """Return the smallest number that scales are kept as.

    The smallest normal one, but of float16, which runtimes compute in float32: strengths of small
    weights are below it.
    """
    if compute == np.float16:
        return float(np.finfo(np.float16).smallest_subnormal)
    return Format(compute.name).smallest
