"""Nested ranks: from one each to the largest, every step where it gains most for its cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.tensors.options import sizes_text

__all__ = ["nested_ranks", "ranks_asked", "spectrum_of"]

Matrix = npt.NDArray[np.float64]


def ranks_asked(
    asked: tuple[int, ...] | int, limits: Sequence[int], names: Sequence[str], steps: Sequence[int]
) -> tuple[int, ...]:
    """Return ranks that are asked for; one number is meant for all, as far as each goes.

    Parameters
    ----------
    limits
        The largest that make sense, the ranks of the unfoldings.
    names
        What messages call each of them.
    steps
        What each rank has to be a multiple of.

    Raises
    ------
    UsageError
        If they are too many or too few, one is above its limit, or no multiple of the step.
    """
    if isinstance(asked, int):
        sized = zip(limits, steps, strict=True)
        return tuple(min(max(asked // step * step, step), limit) for limit, step in sized)
    listed = ", ".join(f"{name} (at most {n})" for name, n in zip(names, limits, strict=True))
    if len(asked) != len(limits):
        raise UsageError(
            f"rank {sizes_text(asked)} has {len(asked)} numbers, expected {len(limits)}: {listed}"
        )
    for rank, limit, name, step in zip(asked, limits, names, steps, strict=True):
        low = max(rank // step, 1) * step
        if rank > limit:
            raise UsageError(
                f"rank {rank} of {name} is above that of the weight's unfolding, {limit}: the "
                f"largest are {listed}"
            )
        if rank % step:
            raise UsageError(
                f"rank {rank} of {name} is not a multiple of t = {step}: take {low} or another t"
            )
    return tuple(asked)


def spectrum_of(unfoldings: Sequence[Matrix]) -> Matrix:
    """Return the squared singular values of an unfolding, summed over all parts, descending."""
    found = []
    for matrix in unfoldings:
        small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        found.append(np.maximum(np.linalg.eigvalsh(small @ small.T)[::-1], 0.0))
    return np.asarray(np.sum(found, axis=0))


def nested_ranks(
    energies: Sequence[npt.NDArray[np.float64]],
    parameters: Callable[[tuple[int, ...]], int],
    allowed: Callable[[tuple[int, ...]], bool] = lambda ranks: True,  # noqa: ARG005
) -> list[tuple[int, ...]]:
    """Return ranks, each of the list at least those before it, up to the largest.

    They are found from the largest down: each step gives up the singular value whose energy is the
    least for the numbers that it saves. (Upwards from 1, a rank is raised while the others are low
    and it is cheap: worse at every size tried.)

    Parameters
    ----------
    energies
        For each rank, the squared singular values of the unfolding that it is the rank of,
        descending. What is cut off adds up to a bound of the squared error (De Lathauwer et al.
        2000 for Tucker, Oseledets 2011 for tensor trains).
    parameters
        Stored numbers at some ranks.
    allowed
        Whether ranks fit together; the largest and those of 1 do.
    """
    ranks = tuple(len(energy) for energy in energies)
    found = [ranks]
    while max(ranks) > 1:
        whole = parameters(ranks)
        steps = []
        for mode, energy in enumerate(energies):
            if ranks[mode] == 1:
                continue
            smaller = (*ranks[:mode], ranks[mode] - 1, *ranks[mode + 1 :])
            saved = max(whole - parameters(smaller), 1)
            steps.append(
                (not allowed(smaller), float(energy[ranks[mode] - 1]) / saved, mode, smaller)
            )
        ranks = min(steps)[-1]
        if allowed(ranks):
            found.append(ranks)
    return found[::-1]
