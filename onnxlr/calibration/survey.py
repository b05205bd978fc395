"""Which tensors show what the inputs of layers are, and what is to be summed up of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import onnx

from onnxlr.calibration.accumulation import Recipe, Source
from onnxlr.calibration.geometry import Geometry
from onnxlr.calibration.taps import Tap, refuse_scope
from onnxlr.layers import Layer, Layout, Site

__all__ = ["Subject", "Survey", "batches", "observable"]


@dataclass(frozen=True)
class Subject:
    """A layer to observe.

    Attributes
    ----------
    layer
        The layer.
    sites
        Positions of its sites whose inputs can be seen.
    rewritten
        Names of those sites' data in a rewritten model that runs beside the original; None for
        no such model.
    """

    layer: Layer
    sites: tuple[int, ...]
    rewritten: tuple[str, ...] | None = None

    @property
    def groups(self) -> int:
        """Groups of a convolution, 1 for matrices."""
        return self.layer.groups or 1

    @property
    def inputs(self) -> int:
        """Inputs of one group: entries of a row, or of a patch."""
        site = self.layer.sites[0]
        if site.is_convolution:
            return prod(site.operand.dims[1:])
        return site.operand.dims[-1 if site.swapped else -2]


def observable(
    proto: onnx.ModelProto, layer: Layer, rewritten: Sequence[str] | None = None
) -> Subject | str:
    """Return which sites of a layer can be observed, or why none can.

    Parameters
    ----------
    rewritten
        Names of the data of all sites in a rewritten model.
    """
    reasons = [_refuse(proto, site) for site in layer.sites]
    sites = tuple(index for index, reason in enumerate(reasons) if reason is None)
    if not sites:
        return next(reason for reason in reasons if reason)
    names = None if rewritten is None else tuple(rewritten[index] for index in sites)
    return Subject(layer, sites, names)


def _refuse(proto: onnx.ModelProto, site: Site) -> str | None:
    if site.layout is Layout.ROWS:
        return "a table of rows has no inputs to measure"
    if site.layout is Layout.TRANSPOSED_CONVOLUTION:
        return "a transposed convolution has no patches to measure: they overlap in its output"
    if site.transposed:
        return "its nodes use the weight transposed, so that their data are not its inputs"
    return refuse_scope(proto, site.scope)


class Survey:
    """Taps, recipes and outputs of some layers; layers that see the same data share a recipe."""

    def __init__(self, subjects: Sequence[Subject], mask: str | None) -> None:
        self.subjects = subjects
        self._taps: dict[Tap, int] = {}
        self._recipes: dict[_Key, int] = {}
        self._outputs: list[Source] = []
        self.recipe_of: list[int] = []
        self.outputs_of: list[list[int]] = []
        self.mask = None if mask is None else self._tap(Tap(0, mask))
        for subject in subjects:
            self._add(subject)

    @property
    def taps(self) -> list[Tap]:
        """Tensors to hand out."""
        return list(self._taps)

    @property
    def recipes(self) -> list[Recipe]:
        """What to accumulate."""
        return [Recipe(*key) for key in self._recipes]

    @property
    def outputs(self) -> list[Source]:
        """The sites' outputs."""
        return self._outputs

    def culprit(self, tap: int) -> tuple[Layer, str]:
        """Return the first layer that a tensor belongs to, and what it is there."""
        for index, recipe in enumerate(self.recipes):
            if any(tap in (source.tap, source.original) for source in recipe.sources):
                layer = self.subjects[self.recipe_of.index(index)].layer
                return layer, f"data '{self.taps[tap].name}'"
        for subject, outputs in zip(self.subjects, self.outputs_of, strict=True):
            if any(self._outputs[output].tap == tap for output in outputs):
                return subject.layer, f"output '{self.taps[tap].name}'"
        raise ValueError(f"tap {tap} belongs to no layer")

    def _add(self, subject: Subject) -> None:
        sources, outputs = [], []
        for position, index in enumerate(subject.sites):
            site = subject.layer.sites[index]
            kind = site.operand.elem_type
            data = self._tap(Tap(site.scope, site.data, kind))
            geometry = Geometry.of_data(site)
            if subject.rewritten is None:
                sources.append(Source(data, geometry))
                outputs.append(len(self._outputs))
                output = self._tap(Tap(site.scope, site.output, kind))
                self._outputs.append(Source(output, Geometry.of_output(site)))
            else:
                name = subject.rewritten[position]
                sources.append(Source(self._tap(Tap(site.scope, name, kind, 1)), geometry, data))
        key: _Key = (tuple(sources), subject.groups, subject.inputs)
        self.recipe_of.append(self._recipes.setdefault(key, len(self._recipes)))
        self.outputs_of.append(outputs)

    def _tap(self, tap: Tap) -> int:
        return self._taps.setdefault(tap, len(self._taps))


_Key = tuple[tuple[Source, ...], int, int]


def batches(
    subjects: Sequence[Subject], mask: str | None, memory: int, splits: int
) -> Iterator[Survey]:
    """Cut layers into surveys whose accumulators fit into memory, or are of one layer."""
    chosen: list[Subject] = []
    for subject in subjects:
        survey = Survey([*chosen, subject], mask)
        if chosen and splits * sum(recipe.nbytes for recipe in survey.recipes) > memory:
            yield Survey(chosen, mask)
            chosen = []
        chosen.append(subject)
    if chosen:
        yield Survey(chosen, mask)
