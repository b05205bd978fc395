"""A weight to fit, in any form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.methods.atoms.estimate import Estimate
from onnxlr.methods.atoms.form import Form
from onnxlr.methods.atoms.rounds import Fitted, fit
from onnxlr.methods.atoms.tiles import Tiles
from onnxlr.metrics import Metric, unfold_inputs
from onnxlr.progress import Progress, silent

__all__ = ["Weight"]


@dataclass(frozen=True)
class Weight:
    """A weight and what its errors are measured in.

    Attributes
    ----------
    numbers
        A matrix `(inputs, outputs)` or kernel.
    metric
        What errors are measured in.
    groups
        Of a convolution; None for matrices.
    compute
        Float type that scales are kept in.
    seed
        Of what is drawn.
    """

    numbers: npt.NDArray[Any]
    metric: Metric
    groups: int | None
    compute: np.dtype[Any]
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs of an output, and outputs."""
        parts, inputs, outputs = unfold_inputs(self.numbers, self.groups).shape
        return inputs, parts * outputs

    def bytes(self, form: Form) -> int:
        """Return what the weight takes in a form."""
        return form.bytes(*self.shape, self.compute.itemsize)

    def fitted(self, form: Form, progress: Progress = silent) -> Fitted:
        """Return the weight in a form."""
        tiles = Tiles.of(self.numbers, self.metric, self.groups, form.tile, self.compute)
        return fit(tiles, form, self.seed, progress)

    def estimate(self) -> Estimate:
        """Return what predicts the errors of forms."""
        return self._estimate

    @cached_property
    def _estimate(self) -> Estimate:
        return Estimate(self.numbers, self.metric, self.groups, self.compute, self.seed)
