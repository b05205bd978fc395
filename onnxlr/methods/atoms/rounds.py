"""Fits a weight in one form: coefficients, scales and dictionary in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.methods.atoms.codes import Codes
from onnxlr.methods.atoms.feedback import descend, feed_forward
from onnxlr.methods.atoms.form import Form
from onnxlr.methods.atoms.least_squares import solve_dictionary
from onnxlr.methods.atoms.start import dictionary, steps
from onnxlr.methods.atoms.tiles import Part, Tiles, kept_scales
from onnxlr.methods.scaled_rows import smallest_kept
from onnxlr.numbers import Encoded, Format, encode
from onnxlr.numbers.atom_storage import entry_type
from onnxlr.numbers.atoms import Coefficients
from onnxlr.progress import Progress, silent

__all__ = ["Fitted", "fit"]

Matrix = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]

_ROUNDS = 3
"""Rounds of coefficients; the dictionary is solved anew between them."""

_FREE_ROUNDS = 10
_SETTLED = 2e-4
"""Rounds of coefficients that no grid binds, which gain for longer: as many at most, and until the
error falls by less than this part of it."""

_NEXT_TO_NOTHING = 2.0**12
"""Times the smallest number that a float type has without loss: where the largest weight of an
output is below, many of its weights would be subnormal."""


@dataclass(frozen=True)
class Fitted:
    """A weight in a form.

    Attributes
    ----------
    form
        The form.
    dictionary
        The atoms as they are kept.
    coefficients
        Tiles in the order of the inputs, outputs of all parts one after the other.
    scales
        One for each output, as the model's float type holds them.
    error
        Relative error in the metric, with the weight's outputs over their scales in float32.
    """

    form: Form
    dictionary: Encoded
    coefficients: Coefficients
    scales: Matrix
    error: float


@dataclass(frozen=True)
class _State:
    """A fit in the making; scales are relative to the tiles' units, one array for each part."""

    dictionary: Encoded
    scales: Sequence[Single]
    codes: Sequence[Codes]
    error: float


def fit(tiles: Tiles, form: Form, seed: int = 0, progress: Progress = silent) -> Fitted:
    """Return a weight in a form: the best of a few rounds.

    Each round chooses coefficients tile by tile with error feedback, improves them tile by tile,
    and solves for the scales, unless coefficients are floats, which have them in them; between
    rounds the dictionary is solved for and rounded.
    """
    kept = _kept(dictionary(tiles, form, seed), form, tiles)
    apart = [steps(part, _single(kept), form) for part in tiles.parts]
    scales: Sequence[Single] = _held(tiles, apart)
    rounds = _FREE_ROUNDS if form.takes_floats else _ROUNDS
    progress("fitting", 0, rounds)
    best = state = _round(tiles, form, kept, scales)
    for turn in range(1, rounds):
        progress("fitting", turn, rounds)
        if not form.is_identity:
            atoms = solve_dictionary(tiles, state.scales, state.codes, _single(state.dictionary))
            kept = _kept(atoms, form, tiles)
        state = _round(tiles, form, kept, state.scales)
        gained = best.error - state.error
        if gained > 0:
            best = state
        if form.takes_floats and gained <= _SETTLED * best.error:
            break
    progress("fitting", rounds, rounds)
    return _finished(tiles, form, best)


def _round(tiles: Tiles, form: Form, kept: Encoded, scales: Sequence[Single]) -> _State:
    atoms = _single(kept)
    codes = []
    for part, own in zip(tiles.parts, scales, strict=True):
        code = feed_forward(part, own, atoms, form)
        if part.root is not None:
            descend(part, own, atoms, form, code)
        codes.append(code)
    if form.takes_floats:
        return _State(kept, scales, codes, _error(tiles, scales, codes, atoms))
    solved = [
        _solved_scales(part, own, atoms, code)
        for part, own, code in zip(tiles.parts, scales, codes, strict=True)
    ]
    solved = _held(tiles, solved)
    return _State(kept, solved, codes, _error(tiles, solved, codes, atoms))


def _solved_scales(part: Part, scales: Single, atoms: Single, codes: Codes) -> Single:
    """Return the scale of least error for each output; as it was where nothing is taken."""
    made = _made(part, codes, atoms)
    seen = part.cost(made)
    above = np.einsum("io,io->o", seen, part.flat)
    below = np.einsum("io,io->o", seen, made)
    fits = (above > 0) & (below > 0)
    return np.where(fits, above / np.where(fits, below, 1), scales).astype(np.float32)


def _held(tiles: Tiles, scales: Sequence[Single]) -> list[Single]:
    """Return relative scales that are exact in the type that scales are kept in."""
    units = tiles.units.reshape(len(scales), -1)
    return [
        (kept_scales(own * unit, tiles.compute) / unit).astype(np.float32)
        for own, unit in zip(scales, units, strict=True)
    ]


def _error(tiles: Tiles, scales: Sequence[Single], codes: Sequence[Codes], atoms: Single) -> float:
    total = wrong = 0.0
    for part, shares, own, code in zip(tiles.parts, tiles.shares, scales, codes, strict=True):
        lost = part.flat - _made(part, code, atoms) * own
        wrong += float(np.einsum("io,io,o->", part.cost(lost), lost, shares))
        total += float(np.einsum("io,io,o->", part.cost(part.flat), part.flat, shares))
    return float(np.sqrt(max(wrong, 0.0) / total)) if total > 0 else 0.0


def _made(part: Part, codes: Codes, atoms: Single) -> Single:
    """Return what coefficients stand for, before scales, `(tiles · width, outputs)`."""
    made = codes.combine(atoms).swapaxes(1, 2)
    return np.ascontiguousarray(made).reshape(part.flat.shape)


def _kept(atoms: Single, form: Form, tiles: Tiles) -> Encoded:
    """Return the dictionary as it is kept."""
    if form.is_identity:
        ones = np.ones((1, form.tile), tiles.compute)
        return Encoded(Format("int8"), np.eye(form.tile, dtype=np.int8), ones)
    return encode(atoms, form.format, tiles.compute)


def _single(kept: Encoded) -> Single:
    return kept.decode().astype(np.float32)


def _finished(tiles: Tiles, form: Form, state: _State) -> Fitted:
    indices, values = [], []
    for part, codes in zip(tiles.parts, state.codes, strict=True):
        back = np.argsort(part.order)
        indices.append(codes.indices[back])
        if codes.values is not None:
            values.append(codes.values[back])
    taken = np.concatenate(indices, axis=1)
    amounts = np.concatenate(values, axis=1).astype(entry_type(form.value_bits)) if values else None
    held = None if form.is_dense else taken
    coefficients = Coefficients(form.atoms, held, amounts, form.value_bits)
    units = tiles.units * np.concatenate(state.scales).astype(np.float64)
    units = _without_subnormal(units, state.dictionary, tiles.compute)
    return Fitted(form, state.dictionary, coefficients, units, state.error)


def _without_subnormal(scales: Matrix, dictionary: Encoded, compute: np.dtype[Any]) -> Matrix:
    """Return scales, 0 where atoms times the scale are next to nothing.

    Weights that are subnormal make products several times as slow on x86. Those of float16 are
    computed in float32, where they are normal.
    """
    if compute == np.float16:
        return scales
    largest = float(np.abs(dictionary.decode()).max(initial=0.0))
    return np.where(scales * largest < _NEXT_TO_NOTHING * smallest_kept(compute), 0.0, scales)
