"""A model whose weights are inputs, so that one session runs it with any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxlr.layers import Layer, Layout, Site
from onnxlr.lowering import released_by
from onnxlr.model import Model, Splice, splice

__all__ = ["OpenedWeight", "open_weights"]


@dataclass(frozen=True)
class OpenedWeight:
    """The inputs that a layer's weight has become.

    Attributes
    ----------
    sites
        By the name of the input, a site that takes its weight that way round.
    dtype
        Float type of the sites.
    """

    sites: Mapping[str, Site]
    dtype: np.dtype[Any]

    def arranged(self, weight: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return canonical values as each input takes them."""
        return {
            name: np.ascontiguousarray(site.arranged(weight), dtype=self.dtype)
            for name, site in self.sites.items()
        }


def open_weights(model: Model, layers: Sequence[Layer]) -> tuple[Model, dict[str, OpenedWeight]]:
    """Make inputs of the weights of layers; those in functions stay as they are.

    Returns
    -------
    Model, dict
        The changed model, and what became of each layer's weight by its name.
    """
    change, opened = Splice(), {}
    for layer in layers:
        if layer.in_function:
            continue
        opened[layer.name] = _open(model, layer, change)
    splice(model, change)
    graph = model.proto.graph
    for weight in opened.values():
        kind = onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
        for name, site in weight.sites.items():
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, site.operand.dims))
    return model, opened


def _open(model: Model, layer: Layer, change: Splice) -> OpenedWeight:
    names: dict[tuple[object, ...], str] = {}
    sites: dict[str, Site] = {}
    for site in layer.sites:
        key = (site.layout, site.swapped, site.transposed, site.operand.dims)
        if key not in names:
            names[key] = model.names.new(f"{layer.name}.opened")
            sites[names[key]] = site
        node = onnx.NodeProto()
        node.CopyFrom(site.node)
        node.input[0 if site.layout in (Layout.SECOND_LAST, Layout.ROWS) else 1] = names[key]
        change.nodes[(site.scope, site.index)] = [node]
    change.released += released_by(layer)
    return OpenedWeight(sites, layer.dtype)
