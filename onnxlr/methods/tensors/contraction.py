"""The order in which the cores of a network meet the features, as steps of a chain."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from onnxlr.methods.tensors.modes import Modes
from onnxlr.methods.tensors.steps import Steps
from onnxlr.stages import Chain

__all__ = ["Contraction"]

Matrix = npt.NDArray[np.float64]


class Contraction:
    """Takes cores one by one; knows which index of the network each mode of the features is.

    Attributes
    ----------
    features
        Indices of the modes of what the steps so far make; at first those of the inputs.
    """

    def __init__(self, modes: Modes, rows: Sequence[int]) -> None:
        """Take the modes of a weight, and the axes of its tensor that are inputs or window.

        They are the indices 0, 1, … of the network.
        """
        inputs = len(rows) - len(modes.window)
        self._modes = modes
        self._window = range(inputs, len(rows))
        self._steps = Steps(modes, rows[:inputs])
        self.features = tuple(range(inputs))

    def take(self, cores: Matrix, labels: Sequence[int], made: Sequence[int]) -> None:
        """Sum over the features that a core has an index of, and make others in their place.

        Parameters
        ----------
        cores
            Of all parts, `(parts, *sizes)`.
        labels
            The core's indices. Those of the features among them have to lie side by side.
        made
            The core's other indices but those of the window, in the order they are to have.
        """
        taken = [label for label in self.features if label in labels]
        begin = self.features.index(taken[0])
        end = begin + len(taken)
        if list(self.features[begin:end]) != taken:
            raise ValueError(f"features {taken} are not side by side in {self.features}")
        window = [label - self._window.start for label in labels if label in self._window]
        sizes = dict(zip(labels, cores.shape[1:], strict=True))
        inner = [*made, *taken, *(self._window[axis] for axis in window)]
        moved = cores.transpose(0, *(1 + list(labels).index(label) for label in inner))
        new = [sizes[label] for label in made]
        extent = [
            self._modes.window[axis] if axis in window else 1
            for axis in range(len(self._modes.window))
        ]
        channels = prod(sizes[label] for label in taken)
        kernels = moved.reshape(len(cores), prod(new), channels, *extent)
        if self._modes.groups is None:
            self._steps.multiply(begin, end, kernels.swapaxes(1, 2), new)
        else:
            self._steps.convolve(begin, end, kernels, window, new)
        self.features = (*self.features[:begin], *made, *self.features[end:])

    def arrange(self, order: Sequence[int]) -> None:
        """Put the features in another order; where only modes of size 1 move, no step is needed."""
        sizes = dict(zip(self.features, self._steps.dims, strict=True))
        wide = [label for label in self.features if sizes[label] > 1]
        if wide != [label for label in order if sizes[label] > 1]:
            self._steps.fold([self.features.index(label) for label in order])
        else:
            self._steps.see([sizes[label] for label in order])
        self.features = tuple(order)

    def chain(self) -> Chain:
        """Return the steps."""
        return self._steps.chain()
