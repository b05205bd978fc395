"""Sums of chosen numbers made small, by branch and bound (HiGHS)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

__all__ = ["solve_binary"]

Array = npt.NDArray[np.float64]


def solve_binary(costs: Array, constraints: Sequence[LinearConstraint], nodes: int) -> Array | None:
    """Return the 0s and 1s of the least sum of costs, None if none meet the constraints.

    Parameters
    ----------
    costs
        Of each 1.
    constraints
        What must hold, which HiGHS checks to 1e-6; results are whole numbers to 1e-6 as well.
    nodes
        Nodes after which the best found is taken, if something was found.

    Raises
    ------
    RuntimeError
        If HiGHS fails.
    """
    options: dict[str, Any] = {"mip_rel_gap": 0.0, "node_limit": nodes}
    for changed in ({}, {"node_limit": 2**31 - 1}, {"presolve": False}):
        options |= changed
        with _silent():
            result = milp(
                costs,
                integrality=np.ones(len(costs)),
                bounds=Bounds(0, 1),
                constraints=constraints,
                options=options,
            )
        if result.x is not None:
            return np.asarray(result.x, float)
        if result.status == 2:
            return None
    raise RuntimeError(f"HiGHS fails: {result.message}")


@contextmanager
def _silent() -> Iterator[None]:
    """Keep HiGHS from writing to standard output: some versions leave messages of debugging there.

    They come from C, past Python's own stream, where a reader may expect a plan.
    """
    flush: Any = lambda _: None  # noqa: E731
    with suppress(OSError, TypeError, AttributeError):
        flush = ctypes.CDLL(None if os.name == "posix" else "ucrtbase").fflush
    try:
        saved = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    try:
        flush(None)
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        flush(None)
        os.dup2(saved, 1)
        os.close(saved)
