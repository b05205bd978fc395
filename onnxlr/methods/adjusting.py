"""What comes with a chain at each site: bias corrections, and ranges of what flows through it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxlr.stages import Adjustment, Chain, Linear, Range
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
    between: list[Range] = []
    mean = moments.means[site, 0]
    # That of all sites: at this one, squares are at most as large as if the others' were zero.
    covariance = moments.covariance[0] * (moments.count / moments.counts[site])
    for stage in chain.stages[:-1]:
        if not isinstance(stage, Linear) or len(stage.shape) > 2:
            return None
        matrix = stage.dense()
        mean, covariance = mean @ matrix, matrix.T @ covariance @ matrix
        spread = _DEVIATIONS * np.sqrt(np.maximum(np.diag(covariance) - np.square(mean), 0.0))
        between.append((float((mean - spread).min()), float((mean + spread).max())))
    low, high, output_low, output_high = map(float, ends)
    return ((low, high), *between, (output_low, output_high))
