"""Singular values of the weights that were rewritten, for the page: those of the originals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnxlr.errors import OnnxlrError
from onnxlr.layers import Layer, find_layers, read_weight
from onnxlr.methods.matricisation import FORMS, matricisations
from onnxlr.model import Model, open_model
from onnxlr.progress import Progress, silent

__all__ = ["FLOOR", "Spectra", "WeightSpectrum", "singular_values", "spectra_of"]

FLOOR = 1e-6
"""Least singular value that is told, of the largest: below it the squares are rounding errors."""

_MOST = 48
"""Most weights, the largest first: more would be a wall of pictures."""

_LARGEST = 4096**2
"""Entries of the largest weight that is decomposed."""

_WORK = 1.5e11
"""Multiplications that all weights may take together: about a minute on one slow processor."""


@dataclass(frozen=True)
class WeightSpectrum:
    """Singular values of a weight.

    Attributes
    ----------
    layer
        Its name.
    form
        How a kernel is seen as a matrix, as in `matricisations`; None for matrices.
    values
        Descending, of the largest; of a stack of matrices the root of their summed squares.
    rank
        What the layer's factors have; None where its method has no such rank.
    """

    layer: str
    form: str | None
    values: tuple[float, ...]
    rank: int | None

    @property
    def energies(self) -> tuple[float, ...]:
        """The share `Σ s²` of the first 1, 2, … values."""
        squares = np.cumsum(np.square(self.values))
        total = squares[-1]
        return tuple(float(part / total) if total > 0 else 1.0 for part in squares)


@dataclass(frozen=True)
class Spectra:
    """The spectra of some weights, in graph order, and a sentence on each reason for no more."""

    found: tuple[WeightSpectrum, ...] = ()
    notes: tuple[str, ...] = ()


def spectra_of(
    model: Path, choices: Mapping[str, Mapping[str, Any]], progress: Progress = silent
) -> Spectra:
    """Read the weights of rewritten layers from the original, and decompose the largest of them.

    Parameters
    ----------
    model
        The original.
    choices
        A plan's entries, by the layers' names; those that keep theirs are left out.
    progress
        Called before each weight.
    """
    meant = {name: entry for name, entry in choices.items() if entry["method"] != "keep"}
    if not meant:
        return Spectra()
    try:
        opened = open_model(model, check=False)
        layers = [layer for layer in find_layers(opened) if layer.name in meant]
    except OnnxlrError as error:
        return Spectra(notes=(f"the spectra could not be computed: {error}",))
    matrices = [layer for layer in layers if layer.skip is None and not layer.is_table]
    chosen, notes = _affordable(matrices)
    found: list[WeightSpectrum] = []
    for number, layer in enumerate(chosen):
        progress("spectra", number, len(chosen))
        try:
            found.append(_spectrum(opened, layer, meant[layer.name]))
        except (OnnxlrError, linalg.LinAlgError) as error:
            notes.append(f"layer '{layer.name}' has no spectrum here: {error}")
    progress("spectra", len(chosen), len(chosen))
    return Spectra(tuple(found), tuple(notes))


def _affordable(layers: Sequence[Layer]) -> tuple[list[Layer], list[str]]:
    """Return the layers to decompose, in graph order, and what is left out and why."""
    small = [layer for layer in layers if _entries(layer) <= _LARGEST]
    notes = []
    if len(small) < len(layers):
        notes.append(
            f"{_many(len(layers) - len(small))} of more than {_LARGEST:,} entries left out: "
            "decomposing them takes too long"
        )
    chosen: set[str] = set()
    spent = 0.0
    for layer in sorted(small, key=_entries, reverse=True):
        work = _entries(layer) ** 1.5  # the smaller side is at most the root
        if len(chosen) < _MOST and spent + work <= _WORK:
            chosen.add(layer.name)
            spent += work
    if len(chosen) < len(small):
        notes.append(f"{_many(len(small) - len(chosen))} left out; those shown are the largest")
    return [layer for layer in small if layer.name in chosen], notes


def _many(count: int) -> str:
    return f"{count} weights are" if count > 1 else "one weight is"


def _entries(layer: Layer) -> int:
    return prod(layer.shape or ())


def _spectrum(model: Model, layer: Layer, entry: Mapping[str, Any]) -> WeightSpectrum:
    options = entry.get("options", {})
    form = None
    if layer.groups is not None:
        form = options.get("form") if options.get("form") in FORMS else FORMS[0]
    seen = matricisations(read_weight(model, layer), layer.groups, form)[0]
    values = singular_values(seen.matrices())
    rank = options.get("rank")
    known = rank if isinstance(rank, int) and 0 < rank <= len(values) else None
    return WeightSpectrum(layer.name, form, tuple(values.tolist()), known)


def singular_values(stack: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the singular values of `(*batch, rows, columns)`, descending, divided by the largest.

    Those of a stack are the roots of the summed squares. They are roots of the eigenvalues of the
    smaller Gram matrix in float64, which takes a quarter of the time of a decomposition and knows
    values above 1e-6 of the largest to three digits or more; smaller ones are 0.
    """
    matrices = stack.reshape(-1, *stack.shape[-2:])
    squares = np.zeros(min(matrices.shape[1:]))
    for matrix in matrices:
        squares += _squares(matrix)
    values = np.sqrt(squares)
    if values[0] > 0:
        values /= values[0]
    values[values < FLOOR] = 0.0
    return values


def _squares(matrix: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    exact = matrix.astype(np.float64)
    rows, columns = exact.shape
    gram = exact @ exact.T if rows <= columns else exact.T @ exact
    found = np.asarray(linalg.eigvalsh(gram, overwrite_a=True, check_finite=False))
    return np.asarray(np.maximum(found[::-1], 0.0))
