"""A model whose weights are inputs, so that one session runs it with any of them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxlr.layers import Layer, Layout, Site
from onnxlr.lowering import released_by
from onnxlr.model import Model, Splice, splice
from onnxlr.stages import Adjustment

__all__ = ["OpenedWeight", "open_weights"]

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class OpenedWeight:
    """The inputs that a layer's weight has become.

    Attributes
    ----------
    sites
        By the name of the input, a site that takes its weight that way round.
    dtype
        Float type of the sites.
    corrections
        By the name of a further input, what is added to the output of a site: the number of the
        site among those of the layer, and zeros in the input's shape.
    """

    sites: Mapping[str, Site]
    dtype: np.dtype[Any]
    corrections: Mapping[str, tuple[int, npt.NDArray[Any]]] = field(default_factory=dict)

    def arranged(self, weight: npt.NDArray[Any]) -> Arrays:
        """Return canonical values as each input takes them."""
        return {
            name: np.ascontiguousarray(site.arranged(weight), dtype=self.dtype)
            for name, site in self.sites.items()
        }

    def corrected(self, adjustments: Sequence[Adjustment] = ()) -> Arrays:
        """Return the bias corrections as the further inputs take them, zeros where there are none.

        Parameters
        ----------
        adjustments
            One for each site of the layer; none for no correction at all.
        """
        found: Arrays = {}
        for name, (number, nothing) in self.corrections.items():
            own = adjustments[number].correction if adjustments else None
            values = nothing if own is None else np.asarray(own).reshape(nothing.shape)
            found[name] = values.astype(self.dtype)
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each input."""
        weights = {name: site.operand.dims for name, site in self.sites.items()}
        return weights | {name: zeros.shape for name, (_, zeros) in self.corrections.items()}


def open_weights(
    model: Model, layers: Sequence[Layer], corrected: Container[str] = ()
) -> tuple[Model, dict[str, OpenedWeight]]:
    """Make inputs of the weights of layers; those in functions stay as they are.

    Parameters
    ----------
    corrected
        Names of the layers whose bias corrections are to be inputs as well.

    Returns
    -------
    Model, dict
        The changed model, and what became of each layer's weight by its name.
    """
    change, opened = Splice(), {}
    for layer in layers:
        if layer.in_function:
            continue
        opened[layer.name] = _open(model, layer, layer.name in corrected, change)
    splice(model, change)
    graph = model.proto.graph
    for weight in opened.values():
        kind = onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
        for name, shape in weight.shapes().items():
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    return model, opened


def _open(model: Model, layer: Layer, is_corrected: bool, change: Splice) -> OpenedWeight:
    names: dict[tuple[object, ...], str] = {}
    sites: dict[str, Site] = {}
    corrections: dict[str, tuple[int, npt.NDArray[Any]]] = {}
    for number, site in enumerate(layer.sites):
        key = (site.layout, site.swapped, site.transposed, site.operand.dims)
        if key not in names:
            names[key] = model.names.new(f"{layer.name}.opened")
            sites[names[key]] = site
        node = onnx.NodeProto()
        node.CopyFrom(site.node)
        node.input[0 if site.layout in (Layout.SECOND_LAST, Layout.ROWS) else 1] = names[key]
        change.nodes[(site.scope, site.index)] = [node]
        nothing = _no_correction(layer, site) if is_corrected else None
        if nothing is not None:
            name = model.names.new(f"{layer.name}.correction")
            corrections[name] = (number, nothing)
            before = model.names.new(f"{layer.name}.uncorrected")
            change.nodes[(site.scope, site.index)].append(
                onnx.helper.make_node("Add", [before, name], [site.output])
            )
            node.output[0] = before
    change.released += released_by(layer)
    return OpenedWeight(sites, layer.dtype, corrections)


def _no_correction(layer: Layer, site: Site) -> npt.NDArray[Any] | None:
    """Return zeros to add to a site's output; None where bias corrections there are none."""
    shape = layer.shape
    if shape is None or layer.is_table or site.transposed:
        return None
    if not site.is_convolution and len(shape) != 2:
        return None
    outputs = shape[0] if site.is_convolution else shape[-1]
    return site.along_features(np.zeros(outputs, layer.dtype))
