"""What a model's layers are, and how low their rank is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import ModelError
from onnxlr.layers import Layer, read_weight
from onnxlr.methods.matricisation import Matricisation, matricisations
from onnxlr.methods.spectrum import energies
from onnxlr.model import Model
from onnxlr.model.model import tensors_of
from onnxlr.model.tensors import stored_bytes, type_name
from onnxlr.progress import Progress, silent

__all__ = ["Inspection", "LayerSummary", "inspect_layers"]


@dataclass(frozen=True)
class LayerSummary:
    """One line of an inspection.

    Attributes
    ----------
    name, operator, nodes
        As in `Layer`.
    weight
        Name of the weight; None where a node has none.
    dtype, shape
        Of the weight; canonical `(*batch, inputs, outputs)` unless the layer is skipped.
    sites
        Number of nodes that use it.
    parameters, bytes, share
        Size of the weight; `share` is of the bytes of all tensors in the model.
    multiply_adds
        Of all sites; unknown dimensions count as 1. None where a shape is not known.
    per
        The symbolic dimensions to multiply `multiply_adds` by.
    rank90, rank99
        Singular values that hold 90 % and 99 % of the energy `Σ s²`; of a kernel in the channel
        form; None for tables.
    break_even
        Largest rank whose factors have fewer parameters than the weight.
    skip
        Why the layer is left alone, None if it can be rewritten.
    """

    name: str
    operator: str
    nodes: tuple[str, ...]
    weight: str | None
    dtype: str | None
    shape: tuple[int, ...] | None
    sites: int
    parameters: int
    bytes: int
    share: float
    multiply_adds: int | None
    per: tuple[str, ...]
    rank90: int | None
    rank99: int | None
    break_even: int | None
    skip: str | None


@dataclass(frozen=True)
class Inspection:
    """A model and its layers.

    Attributes
    ----------
    model
        Its file or name.
    sha256
        Hash of the file and the external data behind it.
    opset, ir_version
        Versions of the operators and of the file format.
    bytes
        Bytes of all tensors.
    layers
        In graph order.
    """

    model: str
    sha256: str
    opset: int
    ir_version: int
    bytes: int
    layers: tuple[LayerSummary, ...]


def inspect_layers(
    model: Model, layers: Sequence[Layer], progress: Progress = silent
) -> Inspection:
    """Summarise every layer; each weight is read and decomposed in turn.

    A weight that cannot be read or is not finite is reported as skipped for that reason.
    """
    total = sum(stored_bytes(tensor) for tensor in tensors_of(model.proto))
    summaries = []
    for position, layer in enumerate(layers):
        progress("inspecting", position, len(layers))
        summaries.append(_summarise(model, layer, total))
    progress("inspecting", len(layers), len(layers))
    return Inspection(
        model.name, model.sha256, model.opset, model.ir_version, total, tuple(summaries)
    )


def _summarise(model: Model, layer: Layer, total: int) -> LayerSummary:
    skip = layer.skip
    ranks: tuple[int, int] | tuple[None, None] = (None, None)
    if skip is None and not layer.is_table:
        try:
            ranks = _energy_ranks(model, layer)
        except ModelError as error:
            skip = str(error)
    weight, work = layer.weight, layer.multiply_adds() if skip is None else None
    size = weight.nbytes if weight else 0
    return LayerSummary(
        name=layer.name,
        operator=layer.operator,
        nodes=layer.nodes,
        weight=weight.name if weight else None,
        dtype=type_name(weight.tensor.data_type) if weight else None,
        shape=layer.shape,
        sites=max(len(layer.sites), 1),
        parameters=weight.parameters if weight else 0,
        bytes=size,
        share=size / total if total else 0.0,
        multiply_adds=work[0] if work else None,
        per=work[1] if work else (),
        rank90=ranks[0],
        rank99=ranks[1],
        break_even=_break_even(layer) if skip is None else None,
        skip=skip,
    )


def _energy_ranks(model: Model, layer: Layer) -> tuple[int, int]:
    """Return the ranks that hold 90 % and 99 % of the energy, of a kernel in the channel form."""
    form = _channel_form(read_weight(model, layer), layer)
    shares = energies(form.matrices())
    first, second = (int(np.searchsorted(shares, share)) + 1 for share in (0.9, 0.99))
    return min(first, len(shares)), min(second, len(shares))


def _channel_form(weight: npt.NDArray[Any], layer: Layer) -> Matricisation:
    form = None if layer.groups is None else "channel"
    return matricisations(weight, layer.groups, form)[0]


def _break_even(layer: Layer) -> int | None:
    """Return the largest rank r with r (rows + columns) < rows · columns."""
    if layer.shape is None or layer.is_table:
        return None
    if layer.groups is not None:
        outputs, inputs, *sizes = layer.shape
        rows, columns = inputs * prod(sizes), outputs // layer.groups
    else:
        rows, columns = layer.shape[-2:]
    return (rows * columns - 1) // (rows + columns)
