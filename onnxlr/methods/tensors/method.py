"""What all tensor decompositions do: find ranks for a budget, fit in a metric, make a chain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.method import Options, Setting
from onnxlr.methods.tensors.network import Network
from onnxlr.methods.tensors.options import TensorOptions, sizes_text
from onnxlr.methods.tensors.refining import curvature, refine
from onnxlr.methods.tensors.weighing import AxisWeighings
from onnxlr.metrics import relative_error, unfold_inputs
from onnxlr.stages import Chain

__all__ = ["NetworkChain", "Structure", "TensorMethod", "Tensors"]

Matrix = npt.NDArray[np.float64]

_SWEEPS = 3
"""Rounds over the cores of a network in a metric that is not the one it was decomposed in."""


@dataclass(frozen=True)
class NetworkChain(Chain):
    """The steps of a network.

    Attributes
    ----------
    ranks
        Those of the network, which make it again.
    """

    ranks: tuple[int, ...] = ()


class Structure(Protocol):
    """A family of networks for the tensors of one weight, one network for each rank.

    Axes of the inputs and the window have the order of `unfold_inputs`; they may be finer than the
    modes.
    """

    @property
    def rows(self) -> tuple[int, ...]:
        """Sizes of the axes of inputs and window."""

    @property
    def columns(self) -> tuple[int, ...]:
        """Sizes of the axes of outputs."""

    @property
    def polishing(self) -> int:
        """Rounds of alternating least squares behind the decomposition; 0 where it does that."""

    def levels(self, tensors: Sequence[Matrix]) -> Sequence[tuple[int, ...]]:
        """Return ranks, each of them at least those before it, up to the largest that make sense.

        `tensors` has one of shape `(*rows, *columns)` for each part.
        """

    def closest(self, ranks: tuple[int, ...] | int) -> tuple[int, ...]:
        """Return ranks that are asked for; one number is meant for all, where they go so far.

        Raises
        ------
        UsageError
            If there are too many or too few, or one is above that of its unfolding.
        """

    def decompose(self, tensor: Matrix, ranks: tuple[int, ...], seed: int) -> Network:
        """Return a network for one part's tensor, of least Frobenius error as far as is known.

        The open indices are the tensor's axes; each is an axis of one core.
        """

    def empty(self, ranks: tuple[int, ...]) -> Network:
        """Return a network of zeros."""

    def parameters(self, ranks: tuple[int, ...]) -> int:
        """Return the numbers that a network of one part stores."""

    def chain(self, networks: Sequence[Network]) -> Chain:
        """Return the steps that multiply by the networks of all parts."""


@dataclass(frozen=True)
class Tensors:
    """A weight's tensors, and how its metric weighs them."""

    structure: Structure
    weight: npt.NDArray[Any]
    setting: Setting

    @property
    def parts(self) -> Matrix:
        """The matrices of all parts, `(parts, inputs, outputs)`."""
        return unfold_inputs(self.weight, self.setting.groups)

    def weighings(self) -> list[AxisWeighings]:
        """Return how each part's axes are weighed."""
        rows, columns = self.structure.rows, self.structure.columns
        metric, groups = self.setting.metric, self.setting.groups
        count = len(self.parts)
        return [AxisWeighings.of(metric, part, groups, rows, columns) for part in range(count)]

    def weighed(self) -> list[Matrix]:
        """Return each part's tensor, weighed."""
        shape = (*self.structure.rows, *self.structure.columns)
        return [
            weighing.weigh(part.reshape(shape))
            for part, weighing in zip(self.parts, self.weighings(), strict=True)
        ]

    def fitted(self, ranks: tuple[int, ...]) -> list[Network]:
        """Return a network for each part."""
        found = []
        parts = zip(self.parts, self.weighed(), self.weighings(), strict=True)
        for number, (part, tensor, weighing) in enumerate(parts):
            network = self.structure.decompose(tensor, ranks, self.setting.seed)
            network = weighing.restore(network)
            weigh = curvature(self.setting.metric, number, self.setting.groups)
            sweeps = self.structure.polishing if weigh is None else _SWEEPS
            found.append(refine(network, part, weigh, sweeps, weighing.roots).balanced())
        return found

    def chain(self, ranks: tuple[int, ...]) -> NetworkChain:
        """Return the chain of some ranks, kept in the setting's format."""
        chain = self.structure.chain(self.fitted(ranks))
        stages = chain.encoded(self.setting.format, self.setting.compute).stages
        return NetworkChain(stages, ranks)

    def bytes(self, ranks: tuple[int, ...]) -> int:
        """Return the bytes of a chain of some ranks."""
        networks = [self.structure.empty(ranks)] * len(self.parts)
        chain = self.structure.chain(networks)
        return chain.encoded(self.setting.format, self.setting.compute).cost.bytes

    def error(self, chain: Chain) -> float:
        """Return the chain's relative error in the metric."""
        exact = self.weight.astype(np.float64)
        return relative_error(self.setting.metric, exact, chain.reconstruct(), self.setting.groups)


class TensorMethod(ABC):
    """A method whose chains are networks of cores."""

    name: str
    options: type[Options] = TensorOptions
    default_format: str | None = None
    is_slow = True

    @abstractmethod
    def structure(self, weight: npt.NDArray[Any], options: Any, setting: Setting) -> Structure:
        """Return the family of networks for a weight.

        Raises
        ------
        UsageError
            If the weight has not got the modes that the method or the options need.
        """

    def factorize(self, weight: npt.NDArray[Any], options: Any, setting: Setting) -> Chain:
        """Return the steps of the network.

        Raises
        ------
        UsageError
            If the budget cannot be met, the ranks are not the weight's, or it has not got the modes
            asked for.
        """
        if setting.is_table:
            raise UsageError(
                "a table of rows has no product to factorize; method quantize changes its format"
            )
        tensors = Tensors(self.structure(weight, options, setting), weight, setting)
        asked = options.ranks or options.rank
        if asked is not None:
            return tensors.chain(tensors.structure.closest(asked))
        levels = _affordable(tensors, options)
        if options.limits_bytes:
            return tensors.chain(levels[-1])
        return _within_error(tensors, levels, options)

    def settle(self, options: Any, chain: Chain) -> Options:
        """Return the options with the ranks that the chain has instead of a budget."""
        if not isinstance(chain, NetworkChain):
            raise TypeError(f"a chain that {self.name} did not make has no ranks")
        budget: dict[str, None] = dict.fromkeys(options.budgets)
        settled: Options = replace(options, **{**budget, "rank": sizes_text(chain.ranks)})
        return settled

    def heeds_metric(self, options: Any, setting: Setting) -> bool:  # noqa: ARG002
        """Return that it does."""
        return True


def _affordable(tensors: Tensors, options: TensorOptions) -> Sequence[tuple[int, ...]]:
    """Return the levels that a size allows; of other budgets those smaller than the weight."""
    structure, parts = tensors.structure, len(tensors.parts)
    levels = _ascending(structure.levels(tensors.weighed()), structure)
    size = tensors.weight.size
    if options.bits is not None:
        limit = options.bits * size / 8
        count = _first(levels, lambda ranks: tensors.bytes(ranks) > limit)
    else:
        limit = (1.0 if options.ratio is None else options.ratio) * size
        count = _first(levels, lambda ranks: parts * structure.parameters(ranks) > limit)
    if count == 0:
        least = parts * structure.parameters(levels[0]) / size
        raise UsageError(
            f"{options} is less than the smallest form of this weight takes: ranks of "
            f"{sizes_text(levels[0])} have {least:.3g} of its parameters"
        )
    return levels[:count]


def _ascending(
    levels: Sequence[tuple[int, ...]], structure: Structure
) -> Sequence[tuple[int, ...]]:
    """Return the levels without those that store no less than one of higher ranks."""
    found: list[tuple[int, ...]] = []
    least: float = inf
    for ranks in reversed(levels):
        size = structure.parameters(ranks)
        if size < least:
            found.append(ranks)
            least = size
    return found[::-1]


def _within_error(
    tensors: Tensors, levels: Sequence[tuple[int, ...]], options: TensorOptions
) -> Chain:
    """Return the chain of the smallest level whose error is within what is asked."""
    limit = options.error_limit if options.energy is None else sqrt(1 - options.energy)
    best: dict[int, Chain] = {}

    def reaches(position: int) -> bool:
        chain = tensors.chain(levels[position])
        if tensors.error(chain) > limit:
            return False
        best.clear()
        best[position] = chain
        return True

    low, high = -1, len(levels) - 1
    if not reaches(high):
        raise UsageError(
            f"{options} is not reached with fewer numbers than the weight has: allow a larger error"
        )
    while high - low > 1:
        middle = (low + high) // 2
        if reaches(middle):
            high = middle
        else:
            low = middle
    return best[high]


def _first(levels: Sequence[tuple[int, ...]], exceeds: Callable[[tuple[int, ...]], bool]) -> int:
    """Return the position of the first level that is too large; sizes ascend."""
    low, high = 0, len(levels)
    while low < high:
        middle = (low + high) // 2
        if exceeds(levels[middle]):
            high = middle
        else:
            low = middle + 1
    return low
