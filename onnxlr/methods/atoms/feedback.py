"""Coefficients of tiles one after the other: what one breaks, those that follow make up for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxlr.methods.atoms.closest import closest
from onnxlr.methods.atoms.codes import Codes, improve, pursue
from onnxlr.methods.atoms.form import Form
from onnxlr.methods.atoms.tiles import Part

__all__ = ["descend", "feed_forward"]

Single = npt.NDArray[np.float32]

_BLOCK = 96
"""Inputs whose errors are fed on tile by tile; later ones get them by one matrix product."""


def feed_forward(part: Part, scales: Single, atoms: Single, form: Form) -> Codes:
    """Return coefficients that keep the outputs, rather than the numbers.

    GPTQ (Frantar et al., ICLR 2023) with a tile of one output where it has one number: with `R` the
    upper Cholesky factor of the inverse Hessian, an error `e` of tile `t` costs `‖R_tt⁻ᵀ e‖²` when
    all tiles behind it have made up for it, which they do by `R_t,behindᵀ R_tt⁻ᵀ e`.

    Parameters
    ----------
    part
        The tiles.
    scales
        What coefficients are multiplied by, `(outputs,)`.
    atoms
        The dictionary `(atoms, width)`.
    form
        How many entries, and of which values.
    """
    count, width, outputs = part.numbers.shape
    left = part.flat / scales
    codes = _empty(form, count, outputs)
    each = max(_BLOCK // width, 1)
    for first in range(0, count, each):
        last = min(first + each, count)
        begin, end = first * width, last * width
        errors = np.empty((end - begin, outputs), np.float32)
        for tile in range(first, last):
            own = slice(tile * width, tile * width + width)
            wrong = left[own] - _coded(codes, tile, left[own], part, atoms, form)
            fed = part.solved[tile].T.astype(np.float32) @ wrong
            errors[own.start - begin : own.stop - begin] = fed
            if part.single_root is not None:
                left[own.stop : end] -= part.single_root[own, own.stop : end].T @ fed
        if part.single_root is not None:
            left[end:] -= part.single_root[begin:end, end:].T @ errors
    return codes


def _coded(
    codes: Codes, tile: int, target: Single, part: Part, atoms: Single, form: Form
) -> Single:
    """Set the coefficients of a tile and return what they stand for, `(width, outputs)`."""
    spread = part.left[tile].astype(np.float32) @ atoms.T
    values = None
    if form.takes_one:
        indices = closest(target.T, spread, _squares(atoms, spread))[:, None]
    else:
        gram = atoms @ spread
        indices, values = pursue(target.T @ spread, gram, form.nonzeros, form.largest)
    codes.indices[tile] = indices
    if codes.values is not None:
        codes.values[tile] = values
    return np.asarray(Codes(form.atoms, indices, values).combine(atoms).T)


def descend(part: Part, scales: Single, atoms: Single, form: Form, codes: Codes) -> None:
    """Choose the coefficients of each tile anew while all others stay; in place, once for each.

    Coordinate descent on the squared error over tiles: with the gradient `G = H (W − Ŵ)`, the best
    numbers of tile `t` are `Ŵ_t + H_tt⁻¹ G_t`, and what differs from them costs `H_tt`. There is
    nothing to gain where the Hessian is a diagonal.
    """
    count, width, _ = part.numbers.shape
    kept = np.ascontiguousarray(codes.combine(atoms).swapaxes(1, 2))
    gradient = part.cost(part.flat / scales - kept.reshape(part.flat.shape))
    each = max(_BLOCK // width, 1)
    for first in range(0, count, each):
        last = min(first + each, count)
        begin, end = first * width, last * width
        rows = part.single_hessian[begin:end]
        near = rows[:, begin:end]
        own_gradient = gradient[begin:end].copy()
        changes = np.zeros_like(own_gradient)
        for tile in range(first, last):
            own = slice(tile * width - begin, tile * width - begin + width)
            cost = near[own, own]
            spread = cost @ atoms.T
            values = None if codes.values is None else codes.values[tile]
            if form.takes_one:
                target = (kept[tile] + np.linalg.solve(cost, own_gradient[own])).T
                codes.indices[tile, :, 0] = closest(target, spread, _squares(atoms, spread))
            else:
                seen = kept[tile].T @ spread + own_gradient[own].T @ atoms.T
                improve(seen, atoms @ spread, codes.indices[tile], values, form.largest)
            new = Codes(form.atoms, codes.indices[tile], values).combine(atoms).T
            changes[own] = new - kept[tile]
            own_gradient -= near[:, own] @ changes[own]
        gradient -= rows.T @ changes


def _squares(atoms: Single, spread: Single) -> Single:
    """Return the squared lengths of atoms in a metric."""
    return np.asarray(np.einsum("kd,dk->k", atoms, spread))


def _empty(form: Form, count: int, outputs: int) -> Codes:
    shape = (count, outputs, form.nonzeros)
    values = np.zeros(shape, np.float32) if form.value_bits else None
    return Codes(form.atoms, np.zeros(shape, np.int64), values)
