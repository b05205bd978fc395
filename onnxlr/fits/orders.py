"""Fits of layers in child processes, several layers side by side.

A process gets what is known of a layer's inputs, and the weight or where it lies, nothing else of
the model. Orders and fits pass between processes as pickles in a folder of this process alone.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
import onnx

from onnxlr.errors import ModelError, UsageError
from onnxlr.evidence import Evidence
from onnxlr.fits.store import FitStore
from onnxlr.layers import Layer, read_weight
from onnxlr.methods import Fit, Options, Recipe, Setting, find_method, fit_as_told, fit_best
from onnxlr.model import Model
from onnxlr.runtime import run_tasks
from onnxlr.scratch import temporary

__all__ = [
    "Fitting",
    "Order",
    "StoredWeight",
    "Wish",
    "fit_or_reason",
    "fit_side_by_side",
    "needs",
    "read_pickle",
    "write_pickle",
]


@dataclass(frozen=True)
class Wish:
    """What is asked of one layer's weight.

    Attributes
    ----------
    method, options, setting, recipe
        As `fit_best` takes them, the method by its name.
    is_told
        Whether the recipe is followed as it is, as a plan says, and nothing else is tried.
    """

    method: str
    options: Options
    setting: Setting
    recipe: Recipe
    is_told: bool = False


@dataclass(frozen=True)
class StoredWeight:
    """A weight in the model's file, to be read where it is needed.

    Attributes
    ----------
    layer
        The layer, with no more of its model than reading takes.
    path
        The model's file, which external data lies beside; None where there is none.
    name
        What messages call the model.
    """

    layer: Layer
    path: Path | None
    name: str

    @classmethod
    def of(cls, layer: Layer, model: Model) -> StoredWeight:
        """Return where a layer's weight lies."""
        first = layer.sites[0]
        if layer.weight is None:
            raise ValueError(f"layer '{layer.name}' has no weight")
        bare = replace(first, operand=replace(first.operand, weight=layer.weight))
        return cls(replace(layer, sites=(bare,)), model.path, model.proto.graph.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Canonical shape."""
        return self.layer.shape or ()

    def read(self) -> npt.NDArray[Any]:
        """Return the weight; raises ModelError as `read_weight` does."""
        proto = onnx.ModelProto()
        proto.graph.name = self.name
        return read_weight(Model(proto, self.path), self.layer)


@dataclass(frozen=True)
class Order:
    """One layer's work.

    Attributes
    ----------
    weight, evidence
        Of the layer.
    wishes
        What is asked.
    store, keys
        Where fits are kept as soon as they are made, and the key of each wish; None for nowhere.
    """

    weight: npt.NDArray[Any] | StoredWeight
    evidence: Evidence
    wishes: Sequence[Wish]
    store: FitStore | None = None
    keys: Sequence[str] = ()

    def values(self) -> npt.NDArray[Any]:
        """Return the weight; raises ModelError where it cannot be read."""
        return self.weight.read() if isinstance(self.weight, StoredWeight) else self.weight

    def carry_out(self) -> list[Fit | str]:
        """Return the fits, or why there is none; raises ModelError where it cannot be read."""
        weight, found = self.values(), list[Fit | str]()
        for number, wish in enumerate(self.wishes):
            fit = fit_or_reason(weight, wish, self.evidence)
            if self.store is not None and isinstance(fit, Fit):
                self.store.put(self.keys[number], fit)
            found.append(fit)
        return found


@dataclass(frozen=True)
class Fitting:
    """A task: fit the weights of some layers.

    Attributes
    ----------
    file
        File of the orders; the results take its place.
    """

    file: str
    function: ClassVar[str] = "onnxlr.fits.orders:perform"


def fit_or_reason(weight: npt.NDArray[Any], wish: Wish, evidence: Evidence) -> Fit | str:
    """Return the fit that is asked for, or why there can be none."""
    method = find_method(wish.method)
    fit = fit_as_told if wish.is_told else fit_best
    try:
        return fit(method, weight, wish.options, wish.setting, evidence, wish.recipe)
    except UsageError as error:
        return str(error)


def perform(file: str) -> dict[str, Any]:
    """Do what orders ask, as `Fitting` says."""
    path = Path(file)
    orders: list[Order] = read_pickle(path)
    found: list[list[Fit | str]] | ModelError
    try:
        found = [order.carry_out() for order in orders]
    except ModelError as error:
        found = error
    write_pickle(path, found)
    return {}


def fit_side_by_side(
    orders: Iterable[Order],
    folder: Path,
    name: str,
    jobs: int,
    isolate: bool,
    memory: int | None = None,
    together: int = 0,
) -> Iterator[tuple[int, list[Fit | str]]]:
    """Yield the number of each order that is done, with a fit, or why there is none, for each wish.

    A process computes with one thread, so that fits are the same however many there are.

    Parameters
    ----------
    orders
        Asked for one after the other, as processes are free for them.
    folder
        Of the files.
    name
        What messages call the model.
    jobs
        Processes at a time.
    isolate
        Whether to use child processes at all.
    memory
        Bytes that all processes may take together, as far as can be foreseen; one runs in any case.
    together
        Entries of weights up to which consecutive orders are for one process: it takes a second to
        begin.

    Raises
    ------
    RuntimeFailureError
        If a process dies.
    ModelError
        If a weight cannot be read.
    """
    sizes: dict[str, int] = {}
    numbers: list[list[int]] = []

    def tasks() -> Iterator[Fitting]:
        for group in _grouped(enumerate(orders), together):
            file = folder / f"orders-{len(numbers):06}.pickle"
            write_pickle(file, [order for _, order in group])
            sizes[str(file)] = max(needs(order) for _, order in group)
            numbers.append([number for number, _ in group])
            yield Fitting(str(file))

    done = run_tasks(
        tasks(),
        name,
        jobs,
        isolate,
        threads=1,
        memory=memory,
        needs=lambda task: sizes[task.file],
    )
    for place, _ in done:
        file = folder / f"orders-{place:06}.pickle"
        found: list[list[Fit | str]] | ModelError = read_pickle(file)
        file.unlink()
        if isinstance(found, ModelError):
            raise found
        yield from zip(numbers[place], found, strict=True)


def _grouped(
    orders: Iterator[tuple[int, Order]], together: int
) -> Iterator[list[tuple[int, Order]]]:
    """Yield orders in groups of no more entries than are to be together, one order at least."""
    group: list[tuple[int, Order]] = []
    entries = 0
    for number, order in orders:
        size = prod(order.weight.shape)
        if group and entries + size > together:
            yield group
            group, entries = [], 0
        group.append((number, order))
        entries += size
    if group:
        yield group


_PROCESS = 150 << 20
"""Bytes of a process that has imported what it needs."""

_COPIES = 3
"""Matrices of a weight's size in float64 that a fit has at a time: the Gram matrix, its
eigenvectors, their product with the weight."""


def needs(order: Order) -> int:
    """Return about how many bytes a process takes for an order."""
    inputs = order.evidence.fit
    known = 0 if inputs is None else 6 * inputs.covariance.nbytes  # both kinds, and their roots
    return _PROCESS + 8 * _COPIES * prod(order.weight.shape) + known


def read_pickle(path: Path) -> Any:
    """Return what a process of ours wrote into a folder that nobody else writes to."""
    with path.open("rb") as stream:
        return pickle.load(stream)  # noqa: S301


def write_pickle(path: Path, value: object) -> None:
    """Write a pickle in place of a temporary file, whole; raises ScratchError where it cannot."""
    partial = path.with_suffix(".partial")
    with temporary():
        with partial.open("wb") as stream:
            pickle.dump(value, stream, pickle.HIGHEST_PROTOCOL)
        partial.replace(path)
