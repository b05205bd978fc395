"""What is asked of SVD training, and what became of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError, check_known
from onnxlr.methods.matricisation import FORMS
from onnxlr.planning import Selection
from onnxlr.training.svd.ranks import COUNTS, LayerWork, ranks_of_energy, ranks_within
from onnxlr.training.svd.trainee import Penalties

__all__ = ["ENERGY_LOSS", "Cut", "SvdLayer", "SvdRequest"]

ENERGY_LOSS = 0.01
"""Share of the energy that a layer may lose where no budget is given."""


@dataclass(frozen=True)
class Cut:
    """How far the rank of each layer is cut.

    Attributes
    ----------
    energy_loss
        Share of the squared singular values that each layer may lose, 0 ≤ e < 1.
    ratio
        What the chosen layers together may cost, as a fraction of what they cost dense; the loss of
        energy, the same for all, is found.
    count
        What is counted, one of `COUNTS`: a layer whose rank does not cost less stays dense.
    """

    energy_loss: float | None = None
    ratio: float | None = None
    count: str = "multiply-adds"

    def __post_init__(self) -> None:
        if self.energy_loss is not None and self.ratio is not None:
            raise UsageError("energy_loss and ratio are both given, expected one of them")
        if self.energy_loss is not None and not 0 <= self.energy_loss < 1:
            raise UsageError(f"energy_loss {self.energy_loss:g} is not at least 0 and below 1")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise UsageError(f"ratio {self.ratio:g} is not above 0 and at most 1")
        check_known("count", self.count, COUNTS)

    def ranks(
        self, energies: Mapping[str, npt.NDArray[np.float64]], works: Mapping[str, LayerWork]
    ) -> tuple[dict[str, int | None], float]:
        """Return the rank of each layer, None where it stays dense, and the loss of energy."""
        if self.ratio is not None:
            return ranks_within(energies, works, self.ratio, self.count)
        loss = ENERGY_LOSS if self.energy_loss is None else self.energy_loss
        return ranks_of_energy(energies, works, loss, self.count), loss


@dataclass(frozen=True)
class SvdRequest:
    """What is asked of SVD training.

    Attributes
    ----------
    form
        That convolutions are factored in, one of `FORMS`.
    penalties
        Of the first stage.
    cut
        How far ranks are cut.
    selection
        The layers meant.
    """

    form: str = "channel"
    penalties: Penalties = field(default_factory=lambda: Penalties(1.0, 0.03, "hoyer"))
    cut: Cut = field(default_factory=Cut)
    selection: Selection = field(default_factory=Selection)

    def __post_init__(self) -> None:
        check_known("form", self.form, FORMS)


@dataclass(frozen=True)
class SvdLayer:
    """What became of one layer.

    Attributes
    ----------
    name, operator
        As in `Layer`.
    form
        Of a convolution; None for matrices and layers that are left alone.
    full_rank, rank
        The smaller side of its matrices, and what was kept of it; None where it stays dense.
    energy
        Share of the squared singular values that the rank held when it was cut.
    parameters, multiply_adds
        Before and after; multiply-adds with unknown dimensions as 1.
    reason
        Why it stays dense; None where it does not.
    """

    name: str
    operator: str
    form: str | None = None
    full_rank: int | None = None
    rank: int | None = None
    energy: float | None = None
    parameters: tuple[int, int] = (0, 0)
    multiply_adds: tuple[int, int] = (0, 0)
    reason: str | None = None
