"""Kronecker factors: covariances of the rows that layers see, and of the gradients they get back.

The Fisher information of a layer is near `C ⊗ G`, with `C = E[x xᵀ]` of its inputs and
`G = E[g gᵀ]` of the gradients at its outputs (Martens and Grosse, ICML 2015), where rows are
positions of sequences or images too (Grosse and Martens, ICML 2016).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.calibration.accumulation import NotFiniteError, Recipe, Source, Sums
from onnxlr.calibration.geometry import Geometry
from onnxlr.errors import DataError
from onnxlr.layers import Site
from onnxlr.training.fisher.subjects import Subject
from onnxlr.training.torch_import import torch

__all__ = ["Factors"]

Array = npt.NDArray[Any]
Tensor = Any
_Sight = tuple[tuple[str, Geometry], ...]
"""Tensors, each with how rows are made of it."""


class Factors:
    """Sums of products of rows, in float64.

    Layers that see the same data share its covariance.

    Parameters
    ----------
    subjects
        Weights with the sites to look at.
    """

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self._subjects = [subject for subject in subjects if subject.sites]
        self._inputs: dict[_Sight, Sums] = {}
        self._gradients: dict[str, Sums] = {}
        self.fits: dict[str, bool] = {}
        """Whether the mask fits the rows of each weight."""
        for subject in self._subjects:
            layer, sight = subject.layer, _sight(subject)
            shape = layer.shape or ()
            outputs = shape[0] if layer.groups is not None else shape[-1]
            inputs = shape[-2] if layer.groups is None else prod(shape[1:])
            if sight not in self._inputs:
                geometries = [geometry for _, geometry in sight]
                self._inputs[sight] = _sums(geometries, layer.groups or 1, inputs)
            own = [_of_results(site) for site in subject.sites]
            self._gradients[subject.weight] = _sums(own, 1, outputs)

    @property
    def data(self) -> tuple[str, ...]:
        """Tensors that the nodes take."""
        return tuple(dict.fromkeys(name for sight in self._inputs for name, _ in sight))

    @property
    def results(self) -> tuple[str, ...]:
        """Tensors that they make."""
        return tuple(dict.fromkeys(s.output for each in self._subjects for s in each.sites))

    def add_inputs(self, values: Mapping[str, Tensor], mask: Array | None) -> None:
        """Take in the data of one sample; raises DataError if it is NaN or infinite."""
        arrays = {name: _array(values[name]) for name in self.data}
        for sight, sums in self._inputs.items():
            _add(sums, [arrays[name] for name, _ in sight], mask, f"data '{sight[0][0]}'")

    def add_gradients(self, gradients: Mapping[str, Tensor], mask: Array | None) -> None:
        """Take in gradients of one sample by results' names; None where there are none."""
        for subject in self._subjects:
            arrays = []
            for site in subject.sites:
                found = gradients.get(site.output)
                turned = None if found is None else _array(found)
                if turned is not None and site.is_convolution:
                    turned = np.moveaxis(turned, 1, -1)
                arrays.append(np.zeros(0) if turned is None else turned)
            by_rows = subject.layer.groups is None
            what = f"gradient of layer '{subject.layer.name}'"
            fits = _add(self._gradients[subject.weight], arrays, mask if by_rows else None, what)
            self.fits[subject.weight] = fits and by_rows

    def of(self, subject: Subject) -> tuple[dict[str, Array], int]:
        """Return a weight's covariances, and how many rows of gradients were seen.

        Returns
        -------
        tuple
            `input_covariance` `(inputs, inputs)`, with an axis of groups before for a convolution
            of several, and `output_covariance` `(outputs, outputs)`, float32; nothing if no rows
            were seen or all are zero. Rows count once for each draw.
        """
        if subject.weight not in self._gradients:
            return {}, 0
        inputs, _ = _mean(self._inputs[_sight(subject)])
        gradients, rows = _mean(self._gradients[subject.weight])
        if not inputs.any() or not gradients.any():
            return {}, 0
        found = {
            "input_covariance": inputs if len(inputs) > 1 else inputs[0],
            "output_covariance": gradients[0],
        }
        return found, rows


def _sight(subject: Subject) -> _Sight:
    return tuple((site.data, Geometry.of_data(site)) for site in subject.sites)


def _of_results(site: Site) -> Geometry:
    """Return how rows are made of results whose channels, if any, lie last."""
    return Geometry() if site.is_convolution else Geometry.of_output(site)


def _sums(geometries: Sequence[Geometry], groups: int, size: int) -> Sums:
    sources = tuple(Source(place, geometry) for place, geometry in enumerate(geometries))
    return Sums(Recipe(sources, groups, size))


def _add(sums: Sums, arrays: Sequence[Array], mask: Array | None, what: str) -> bool:
    try:
        fits = [sums.add(place, arrays, mask) for place in range(len(arrays))]
    except NotFiniteError as error:
        raise DataError(
            f"{what} has {error.bad:,} entries that are NaN or infinite of {error.size:,}; "
            "expected finite numbers"
        ) from None
    return all(fits)


def _mean(sums: Sums) -> tuple[npt.NDArray[np.float32], int]:
    found = sums.arrays("")
    count = int(found["counts"].sum())
    return (found["products"] / max(count, 1)).astype(np.float32), count


def _array(tensor: Tensor) -> Array:
    kept = tensor.detach()
    if kept.dtype in (torch.float16, torch.bfloat16):
        kept = kept.float()
    found: Array = kept.cpu().numpy()
    return found
