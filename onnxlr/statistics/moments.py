"""Counts, means, covariances and ranges of a layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Moments", "PairMoments"]


@dataclass(frozen=True, eq=False)
class Moments:
    """What was seen of a layer's inputs: rows of a matrix layer, im2col patches of a convolution.

    A patch is the row-major `(inputs/groups, *kernel)` window of one group's channels, so that a
    convolution is `patch @ kernel.reshape(outputs, -1).T`. The sites are the layer's, in its order;
    a site that was not observed has count 0, means 0 and ranges NaN.

    Attributes
    ----------
    counts
        `(sites,)` int64: rows seen at each site.
    means
        `(sites, groups, inputs)` float64: mean of each site's rows.
    covariance
        `(groups, inputs, inputs)` float64: uncentred `E[x xᵀ]` over the rows of all sites.
    low, high
        `(sites,)` float64: smallest and largest entry of the data.
    output_low, output_high
        `(sites,)` float64: the same of the node's output.
    """

    counts: npt.NDArray[np.int64]
    means: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    output_low: npt.NDArray[np.float64]
    output_high: npt.NDArray[np.float64]

    @property
    def count(self) -> int:
        """Rows seen at all sites together."""
        return int(self.counts.sum())

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """`(groups, inputs)`: mean over the rows of all sites."""
        mean: npt.NDArray[np.float64] = np.tensordot(self._shares, self.means, 1)
        return mean

    @property
    def centred(self) -> npt.NDArray[np.float64]:
        """`(groups, inputs, inputs)`: the covariance left when every site corrects its own bias.

        `covariance − Σ_s (n_s/N) μ_s μ_sᵀ`.
        """
        outer = np.einsum("s,sgi,sgj->gij", self._shares, self.means, self.means, optimize=True)
        centred: npt.NDArray[np.float64] = self.covariance - outer
        return centred

    @property
    def _shares(self) -> npt.NDArray[np.float64]:
        return self.counts / max(self.count, 1)

    def __post_init__(self) -> None:
        sites = self.counts.shape
        vectors = (self.low, self.high, self.output_low, self.output_high)
        agree = len(sites) == 1 and self.means.ndim == 3 and self.means.shape[:1] == sites
        if not agree or any(vector.shape != sites for vector in vectors):
            raise ValueError("counts, means and ranges must have one entry for each site")
        groups, inputs = self.means.shape[1:]
        if self.covariance.shape != (groups, inputs, inputs):
            raise ValueError(
                f"covariance has shape {self.covariance.shape}, expected {(groups, inputs, inputs)}"
            )


@dataclass(frozen=True, eq=False)
class PairMoments:
    """Moments of a layer's inputs x̂ in a rewritten model, and of x in the original.

    Rows as in `Moments`, over all sites together.

    Attributes
    ----------
    count
        Rows seen.
    covariance
        `(groups, inputs, inputs)`: `E[x̂ x̂ᵀ]`.
    cross
        `(groups, inputs, inputs)`: `E[x̂ xᵀ]`.
    target
        `(groups, inputs, inputs)`: `E[x xᵀ]`.
    mean, original_mean
        `(groups, inputs)`: of x̂ and of x.
    """

    count: int
    covariance: npt.NDArray[np.float64]
    cross: npt.NDArray[np.float64]
    target: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    original_mean: npt.NDArray[np.float64]

    @property
    def centred(self) -> npt.NDArray[np.float64]:
        """`(groups, inputs, inputs)`: the covariance of x̂ without its mean."""
        outer = np.einsum("gi,gj->gij", self.mean, self.mean)
        centred: npt.NDArray[np.float64] = self.covariance - outer
        return centred
