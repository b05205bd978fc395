"""A step along one mode of the features, seen as a tensor."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers import Format
from onnxlr.stages.convolution import Convolution
from onnxlr.stages.cost import Cost
from onnxlr.stages.fold import identity_weight
from onnxlr.stages.linear import Linear

__all__ = ["ModeProduct", "along"]


@dataclass(frozen=True)
class ModeProduct:
    """`I_before ⊗ F ⊗ I_behind`: the features are a tensor `(before, inputs, behind)`.

    The step multiplies the mode in the middle (Kolda and Bader 2009, §2.5), and what is before and
    behind it stays. `F ⊗ I_t` is the semi-tensor product with a smaller factor. Of a convolution
    the channels are the tensor.

    Attributes
    ----------
    stage
        What the mode is multiplied by.
    before, behind
        Sizes of what stays.
    """

    stage: Linear | Convolution
    before: int = 1
    behind: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.stage, Linear) and len(self.stage.shape) > 2:
            raise ValueError("a stack of matrices is no factor of one mode")

    @property
    def axes(self) -> int | None:
        """Spatial axes of the data of a convolution; None for rows."""
        if isinstance(self.stage, Convolution):
            return len(self.stage.weight.shape) - 2
        return None

    @property
    def window(self) -> tuple[int, ...]:
        """Spatial axes whose stride, padding and dilation it takes."""
        return self.stage.window if isinstance(self.stage, Convolution) else ()

    @property
    def copies(self) -> int:
        """How often the factor is applied to one row, or at one place."""
        return self.before * self.behind

    @property
    def shape(self) -> tuple[int, ...]:
        """Features, `(inputs, outputs)`."""
        inputs, outputs = self.stage.shape
        return (inputs * self.copies, outputs * self.copies)

    @property
    def parameters(self) -> int:
        """Of the factor: it is stored once."""
        return self.stage.parameters

    @property
    def nbytes(self) -> int:
        """Of the factor."""
        return self.stage.nbytes

    @property
    def cost(self) -> Cost:
        """Numbers are stored once, and the arithmetic is that of all copies."""
        once = self.stage.cost
        counts = {field.name: getattr(once, field.name) for field in fields(once)}
        counts["additions"] *= self.copies
        counts["multiplications"] *= self.copies
        return Cost(**counts)

    def dense(self) -> npt.NDArray[np.float64]:
        """Return the whole matrix or kernel.

        Raises
        ------
        ValueError
            If the groups of a convolution are not the first of its channels' modes.
        """
        groups = self.stage.groups if isinstance(self.stage, Convolution) else 1
        if groups > 1 and self.before > 1:
            raise ValueError("channels of one group are apart: it is no convolution in groups")
        inputs, outputs = self.shape
        if self.axes is None and outputs < inputs:
            return self.preceding(np.eye(outputs))
        return self.after(identity_weight(inputs, self.axes, groups))

    def after(self, dense: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the weight of a step `dense` followed by this one."""
        if self.axes is None:
            return self.apply(dense)
        rest = dense.shape[1:]
        apart = dense.reshape(self.before, -1, self.behind, *rest).swapaxes(1, 2)
        parts = [self.stage.after(part) for part in apart.reshape(self.copies, -1, *rest)]
        kernel = np.stack(parts).reshape(self.before, self.behind, *parts[0].shape)
        return np.asarray(kernel.swapaxes(1, 2).reshape(-1, *parts[0].shape[1:]))

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the step's output for `x` in float64."""
        if self.axes is None:
            return self._multiplied(x, self.stage.dense())
        count, _, *places = x.shape
        apart = np.asarray(x, np.float64).reshape(count, self.before, -1, self.behind, *places)
        result = self.stage.apply(np.moveaxis(apart, 3, 2).reshape(-1, apart.shape[2], *places))
        whole = result.reshape(count, self.before, self.behind, *result.shape[1:])
        return np.asarray(np.moveaxis(whole, 2, 3).reshape(count, -1, *result.shape[2:]))

    def preceding(self, dense: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the matrix of this step followed by one of matrix `dense`."""
        return np.asarray(self._multiplied(dense.T, self.stage.dense().T).T)

    def _multiplied(
        self, x: npt.NDArray[Any], factor: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Return rows multiplied by a matrix along the mode, in one product."""
        *rows, _ = x.shape
        apart = np.asarray(x, np.float64).reshape(-1, len(factor), self.behind)
        flat = np.ascontiguousarray(apart.swapaxes(1, 2)).reshape(-1, len(factor))
        result = (flat @ factor).reshape(len(apart), self.behind, -1).swapaxes(1, 2)
        return np.asarray(result.reshape(*rows, self.before * factor.shape[1] * self.behind))

    def encoded(
        self,
        format: Format,
        compute: npt.DTypeLike,
        hessian: npt.NDArray[np.float64] | None = None,  # noqa: ARG002
    ) -> ModeProduct:
        """Return the same step with its factor kept in `format`, rounded to the nearest."""
        return ModeProduct(self.stage.encoded(format, compute), self.before, self.behind)


def along(
    stage: Linear | Convolution, before: int = 1, behind: int = 1
) -> Linear | Convolution | ModeProduct:
    """Return a step along one mode; the bare step where there is no other mode."""
    return stage if before == behind == 1 else ModeProduct(stage, before, behind)
