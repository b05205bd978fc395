"""Which rank each layer keeps: by energy, or by a budget for all of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.layers import Layer, Layout, Site
from onnxlr.training.placement import Placement

__all__ = ["COUNTS", "LayerWork", "ranks_of_energy", "ranks_within", "work_of"]

Energies = npt.NDArray[np.float64]

COUNTS = ("multiply-adds", "parameters")
"""What a budget counts."""

_SLACK = 1e-12
"""Of energies, which are sums in float64."""


@dataclass(frozen=True)
class LayerWork:
    """What a layer costs, dense and for each unit of rank.

    Attributes
    ----------
    parameters, multiply_adds
        Of the weight as it is. Multiply-adds are those of all sites; unknown dimensions count as 1.
    parameters_per_rank, multiply_adds_per_rank
        Of both factors of rank 1.
    """

    parameters: int
    parameters_per_rank: int
    multiply_adds: int
    multiply_adds_per_rank: float

    def of(self, rank: int | None, count: str) -> float:
        """Return the cost of a rank, None for the weight as it is, in one of `COUNTS`."""
        if count == "parameters":
            return self.parameters if rank is None else rank * self.parameters_per_rank
        return self.multiply_adds if rank is None else rank * self.multiply_adds_per_rank

    def pays(self, rank: int, count: str) -> bool:
        """Return whether the factors of a rank cost less than the weight."""
        return self.of(rank, count) < self.of(None, count)


def work_of(layer: Layer, placement: Placement) -> LayerWork:
    """Return what a layer costs.

    In the forms that split the window between two convolutions the first has the whole extent of
    the data along the axes that the second strides over, so that its multiply-adds are counted at
    more places than the output has. Where no shape is known, each factor is counted at one place.
    """
    batch, rows, columns = placement.shape
    entries = batch * rows * columns
    found = layer.multiply_adds()
    dense = found[0] if found is not None else entries
    shares = [_places(site, placement.window) for site in layer.sites]
    first, second = (sum(parts) / len(shares) for parts in zip(*shares, strict=True))
    each = dense / entries * batch * (rows * first + columns * second)
    return LayerWork(entries, batch * (rows + columns), dense, each)


def _places(site: Site, window: tuple[int, ...]) -> tuple[float, float]:
    """Return the places of both factors, relative to those that the dense kernel is counted at."""
    if not site.is_convolution:
        return 1.0, 1.0
    ratios = _strides(site)  # data to output
    if site.layout is Layout.TRANSPOSED_CONVOLUTION:
        return 1.0, prod(1 / ratio for axis, ratio in enumerate(ratios) if axis in window)
    return prod(ratio for axis, ratio in enumerate(ratios) if axis not in window), 1.0


def _strides(site: Site) -> list[float]:
    """Return how many times longer the data is than the output along each spatial axis."""
    axes = len(site.operand.dims) - 2
    found = next((list(a.ints) for a in site.node.attribute if a.name == "strides"), [1] * axes)
    is_transposed = site.layout is Layout.TRANSPOSED_CONVOLUTION
    ratios = [1 / stride if is_transposed else float(stride) for stride in found]
    if site.data_dims is None or site.output_dims is None:
        return ratios
    for axis, (data, output) in enumerate(
        zip(site.data_dims[2:], site.output_dims[2:], strict=True)
    ):
        if isinstance(data, int) and isinstance(output, int):
            ratios[axis] = data / output
    return ratios


def ranks_of_energy(
    energies: Mapping[str, Energies], works: Mapping[str, LayerWork], loss: float, count: str
) -> dict[str, int | None]:
    """Return the least rank of each layer that keeps all but a share of its energy.

    Parameters
    ----------
    energies
        Of each layer, the share of the squared singular values in the first 1, 2, … of them.
    works
        What layers cost; None is returned for those whose rank costs as much as the weight.
    loss
        Share of the energy that may be lost, at least 0 and below 1.
    count
        One of `COUNTS`.
    """
    found: dict[str, int | None] = {}
    for name, own in energies.items():
        rank = int(np.searchsorted(own, 1 - loss - _SLACK) + 1)
        rank = min(rank, len(own))
        found[name] = rank if works[name].pays(rank, count) else None
    return found


def ranks_within(
    energies: Mapping[str, Energies], works: Mapping[str, LayerWork], ratio: float, count: str
) -> tuple[dict[str, int | None], float]:
    """Return the ranks of the least loss of energy, the same for all layers, within a budget.

    Parameters
    ----------
    ratio
        What all layers together may cost, as a fraction of what they cost dense.
    energies, works, count
        As `ranks_of_energy` takes them.

    Returns
    -------
    dict, float
        The ranks, and the share of the energy that each layer may lose.

    Raises
    ------
    UsageError
        If rank 1 of every layer costs more.
    """
    limit = ratio * _total(works, dict.fromkeys(works), count)
    losses = _steps(energies)

    def ranks(place: int) -> dict[str, int | None]:
        return ranks_of_energy(energies, works, losses[place], count)

    low, high = -1, len(losses) - 1
    if _total(works, ranks(high), count) > limit:
        raise UsageError(
            f"ratio {ratio:g} cannot be reached: rank 1 of every layer has "
            f"{_total(works, ranks(high), count) / _total(works, dict.fromkeys(works), count):.3g} "
            f"of the {count}"
        )
    while high - low > 1:  # costs fall as more energy may be lost
        middle = (low + high) // 2
        if _total(works, ranks(middle), count) <= limit:
            high = middle
        else:
            low = middle
    return ranks(high), losses[high]


def _steps(energies: Mapping[str, Energies]) -> Sequence[float]:
    """Return every loss of energy at which the rank of some layer falls, ascending."""
    found = np.concatenate([1 - own for own in energies.values()])
    return [float(loss) for loss in np.unique(np.clip(found, 0.0, 1.0))]


def _total(works: Mapping[str, LayerWork], ranks: Mapping[str, int | None], count: str) -> float:
    return sum(works[name].of(rank, count) for name, rank in ranks.items())
