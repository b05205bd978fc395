"""Which weights Fisher information is found of, and where their nodes' tensors can be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxlr.calibration.survey import observable
from onnxlr.layers import Layer, Site

__all__ = ["Choice", "Subject", "choose"]


@dataclass(frozen=True)
class Subject:
    """A stored weight.

    Attributes
    ----------
    weight
        Its name.
    layers
        The layers that it is the weight of; several where nodes use it in different arrangements.
    sites
        Nodes whose data and results are seen; none if the Kronecker factors cannot be had.
    why
        Why they cannot; None if they can.
    """

    weight: str
    layers: tuple[Layer, ...]
    sites: tuple[Site, ...]
    why: str | None = None

    @property
    def layer(self) -> Layer:
        """The first of the layers."""
        return self.layers[0]


@dataclass(frozen=True)
class Choice:
    """What is looked at, and why the rest is not, by the layer's name."""

    subjects: tuple[Subject, ...]
    left: Mapping[str, str]


def choose(proto: onnx.ModelProto, layers: Sequence[Layer], meant: Mapping[str, str]) -> Choice:
    """Return the weights to look at.

    Parameters
    ----------
    proto
        The model.
    layers
        All its layers.
    meant
        Why layers are not asked for, by name.
    """
    left: dict[str, str] = {}
    owners: dict[str, list[Layer]] = {}
    for layer in layers:
        reason = layer.skip or meant.get(layer.name) or _refuse(layer)
        if reason is not None or layer.weight is None:
            left[layer.name] = reason or "it has no constant weight"
        else:
            owners.setdefault(layer.weight.name, []).append(layer)
    subjects = []
    for name, own in owners.items():
        if len({layer.weight.scope for layer in own if layer.weight is not None}) > 1:
            left |= dict.fromkeys((layer.name for layer in own), f"several weights are '{name}'")
        else:
            subjects.append(_subject(proto, name, own))
    return Choice(tuple(subjects), left)


def _refuse(layer: Layer) -> str | None:
    if layer.is_table:
        return "a table of rows is only rounded, whatever the importance of its entries"
    if layer.in_function:
        return "its weight is a constant of a function"
    return None


def _subject(proto: onnx.ModelProto, name: str, layers: Sequence[Layer]) -> Subject:
    found = observable(proto, layers[0])
    if len(layers) > 1:
        return Subject(name, tuple(layers), (), "nodes use its weight in different arrangements")
    if isinstance(found, str):
        return Subject(name, tuple(layers), (), found)
    sites = tuple(found.layer.sites[index] for index in found.sites)
    sites = tuple(site for site in sites if site.scope == 0)
    why = None if sites else "it is in a branch, whose tensors are not handed out"
    return Subject(name, tuple(layers), sites, why)
