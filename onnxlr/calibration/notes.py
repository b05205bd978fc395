"""What to beware of in the inputs of a layer."""

from __future__ import annotations

import numpy as np

from onnxlr.statistics import Moments

__all__ = ["layer_notes"]

_SAME = 1e-12
"""Variance of equal rows relative to their square: what float64 loses in sums."""


def layer_notes(name: str, fit: Moments) -> list[str]:
    """Return one sentence for each weakness of what a layer saw."""
    notes = []
    inputs = fit.covariance.shape[-1]
    squares = np.diagonal(fit.covariance, axis1=1, axis2=2)
    dead = int(np.count_nonzero(squares == 0))
    if dead:
        notes.append(f"layer '{name}': {dead:,} of {squares.size:,} inputs are always 0")
    spread = squares - fit.mean**2
    if dead < squares.size and bool(np.all(spread <= _SAME * squares)):
        notes.append(f"layer '{name}': all its {fit.count:,} rows are the same")
    if fit.count < inputs:
        notes.append(
            f"layer '{name}' saw {fit.count:,} row{'s' if fit.count != 1 else ''} for {inputs:,} "
            "inputs: its covariance is singular"
        )
    return notes
