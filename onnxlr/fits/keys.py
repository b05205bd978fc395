"""What a fit depends on, as a hash."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
import tensorly

from onnxlr.evidence import Evidence
from onnxlr.fits.flat import digest
from onnxlr.fits.orders import Wish
from onnxlr.version import VERSION

__all__ = ["fit_key"]

_LAYOUT = 1
"""Of the store's entries: those of another one are under other keys."""

_SETTING = ("format", "compute", "seed", "groups", "is_table", "stored", "whole_window")
"""What a setting says beside the metric, which the recipe names, and the progress."""


def fit_key(weight: npt.NDArray[Any], evidence: Evidence, wish: Wish) -> str:
    """Return a hash of all that a fit depends on.

    That is the weight, what is asked, what is known of the layer's inputs and entries, and the
    versions of all that computes.
    """
    if wish.setting.metric.name != "frobenius":
        raise ValueError("the metric is for the recipe to name")
    setting = (getattr(wish.setting, name) for name in _SETTING)
    asked = (wish.method, wish.options, wish.recipe, wish.is_told, *setting)
    versions = (VERSION, _LAYOUT, np.__version__, scipy.__version__, tensorly.__version__)
    return hashlib.sha256(
        f"{digest(weight)} {digest((versions, asked, evidence))}".encode()
    ).hexdigest()
