"""What comes with a chain at each site: bias corrections, and ranges of what flows through it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxlr.methods.matricisation import KernelForm
from onnxlr.stages import Adjustment, Chain, Convolution, Linear, Range, Scale, Stage
from onnxlr.statistics import Moments

__all__ = ["adjustments"]

Matrix = npt.NDArray[np.float64]

_DEVIATIONS = 6.0
"""Standard deviations to which the range of a tensor between two stages reaches: it is not
observed, but its mean and variance follow from those of the inputs."""


def adjustments(
    chain: Chain, sites: int, corrections: Matrix | None, moments: Moments | None
) -> tuple[Adjustment, ...]:
    """Return an adjustment for each site.

    Parameters
    ----------
    corrections
        Bias corrections `(sites, outputs)`, or `(1, outputs)` for all sites; None for none.
    moments
        Of the inputs, where ranges are wanted; None otherwise.
    """
    if corrections is not None:
        corrections = np.broadcast_to(corrections, (sites, corrections.shape[1]))
    return tuple(
        Adjustment(
            None if corrections is None else corrections[site],
            None if moments is None else _ranges(chain, moments, site),
        )
        for site in range(sites)
    )


def _ranges(chain: Chain, moments: Moments, site: int) -> tuple[Range, ...] | None:
    """Return the ranges at a site, None if not all of them are known."""
    ends = [
        moments.low[site],
        moments.high[site],
        moments.output_low[site],
        moments.output_high[site],
    ]
    if not np.isfinite(ends).all():
        return None
    mean = moments.means[site]
    # That of all sites: at this one, squares are at most as large as if the others' were zero.
    covariance = moments.covariance * (moments.count / moments.counts[site])
    low, high, output_low, output_high = map(float, ends)
    between: list[Range] = []
    stages, first = chain.stages, chain.stages[0]
    if isinstance(first, Scale) and len(stages) > 1:
        mean, covariance, scaled = _behind_scale(first, mean, covariance, (low, high))
        stages = stages[1:]
        between.append(scaled)
    for position, stage in enumerate(stages[:-1]):
        matrices = stage.dense()[None] if isinstance(stage, Linear) else None
        if isinstance(stage, Convolution) and position == 0 and len(stages) == 2:
            form = _form(stage, stages[1])
            mean, covariance = form.seen_by_first(mean, covariance)
            matrices = form.left_of(stage)
        if matrices is None or matrices.ndim > 3:
            return None
        mean = np.einsum("gi,gir->gr", mean, matrices)
        covariance = matrices.swapaxes(1, 2) @ covariance @ matrices
        spread = _spread(mean, covariance)
        between.append((float((mean - spread).min()), float((mean + spread).max())))
    return ((low, high), *between, (output_low, output_high))


def _spread(mean: Matrix, covariance: Matrix) -> Matrix:
    squares = np.diagonal(covariance, axis1=1, axis2=2)
    return np.asarray(_DEVIATIONS * np.sqrt(np.maximum(squares - np.square(mean), 0.0)))


def _behind_scale(
    stage: Scale, mean: Matrix, covariance: Matrix, seen: Range
) -> tuple[Matrix, Matrix, Range]:
    """Return the moments of scaled inputs and their range, never beyond what was seen times factor.

    A convolution's inputs are patches, channel by channel; each channel has a factor.
    """
    factors = stage.factors.astype(np.float64).reshape(len(mean), -1)
    factors = np.repeat(factors, mean.shape[1] // factors.shape[1], axis=1)
    mean, covariance = mean * factors, covariance * factors[:, :, None] * factors[:, None, :]
    spread = _spread(mean, covariance)
    ends = np.sort(np.multiply.outer(seen, factors), axis=0)
    low, high = np.maximum(mean - spread, ends[0]), np.minimum(mean + spread, ends[1])
    return mean, covariance, (float(low.min()), float(high.max()))


def _form(first: Convolution, second: Stage) -> KernelForm:
    """Return the form of the kernel that two convolutions are together."""
    kernels = first.dense(), second.dense()
    extent = np.broadcast_shapes(*(kernel.shape[2:] for kernel in kernels))
    shape = (kernels[1].shape[0], kernels[0].shape[1], *extent)
    return KernelForm(np.broadcast_to(0.0, shape), first.groups, "two", first.window)
