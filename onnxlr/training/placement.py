"""Where each entry of a weight's matrices lies in the tensor that a model stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.layers import Layer
from onnxlr.methods.matricisation import KernelForm, matricisations

__all__ = ["Placement"]

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Placement:
    """How the stored tensor of a layer's weight is a stack of matrices.

    Attributes
    ----------
    form
        What a plan calls it; None for matrices, of which there is one way.
    shape
        Of the stack, `(batch, rows, columns)`.
    order
        For each entry of the stored tensor its place in the stack, int64.
    dims
        Shape of the stored tensor.
    window
        Spatial axes of a convolution that the first factor takes.
    """

    form: str | None
    shape: tuple[int, int, int]
    order: npt.NDArray[np.int64]
    dims: tuple[int, ...]
    window: tuple[int, ...] = ()

    @classmethod
    def of(cls, layer: Layer, form: str | None) -> Placement:
        """Return how a layer's weight is one, a convolution's in a form of `FORMS`.

        A convolution that has not got the form (1×1 kernels have no spatial one) takes the form
        `channel`, which all have.
        """
        if layer.weight is None or not layer.sites:
            raise ValueError(f"layer '{layer.name}' has no weight")
        site = layer.sites[0]
        positions = site.canonical(site.operand.positions())
        whole_window = any(one.states_output for one in layer.sites)
        known = {
            found.name: found
            for found in matricisations(positions, layer.groups, None, whole_window)
        }
        found = known[None] if layer.groups is None else known.get(form, known["channel"])
        stack = found.matrices()
        *_, rows, columns = stack.shape
        dims = tuple(int(size) for size in layer.weight.tensor.dims)
        window = found.first if isinstance(found, KernelForm) else ()
        order = np.empty(stack.size, np.int64)
        order[stack.reshape(-1)] = np.arange(stack.size)
        return cls(found.name, (stack.size // (rows * columns), rows, columns), order, dims, window)

    @property
    def full_rank(self) -> int:
        """The smaller side."""
        return min(self.shape[1:])

    def matrices(self, stored: npt.NDArray[Any]) -> Matrix:
        """Return the stack of a stored tensor's values, in float64."""
        stack = np.empty(stored.size)
        stack[self.order] = stored.reshape(-1)
        return stack.reshape(self.shape)

    def stored(self, stack: Matrix) -> Matrix:
        """Return the stored tensor of a stack."""
        return np.asarray(stack.reshape(-1)[self.order].reshape(self.dims))
