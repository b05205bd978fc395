"""Fisher information as it is handed out, and its file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.model.saving import staging

__all__ = ["FisherInformation", "LayerFisher"]

Array = npt.NDArray[Any]

_DATE = (1980, 1, 1, 0, 0, 0)
"""The date of every entry of a file, so that the same content is the same bytes."""


@dataclass(frozen=True)
class LayerFisher:
    """What was found of one weight.

    Attributes
    ----------
    layer
        Name of the (first) layer that it is the weight of.
    weight
        Its own name.
    shape
        As it is stored.
    mean
        Mean squared gradient of its entries.
    variance
        How unevenly the information is spread inside it, see `fisher_variance`: where this is
        large, singular values alone fail.
    rows
        Rows of gradients that the output factor is made of; 0 if there is none.
    why
        Why there are no Kronecker factors; None if there are, or none were asked for.
    """

    layer: str
    weight: str
    shape: tuple[int, ...]
    mean: float
    variance: float
    rows: int = 0
    why: str | None = None


@dataclass(frozen=True)
class FisherInformation:
    """Fisher information of a model's weights.

    Attributes
    ----------
    arrays
        What `importance` of `rewrite` takes: under each weight's name its mean squared gradients,
        in the shape it is stored in, and its factors under `<name>/input_covariance` and
        `<name>/output_covariance`; float32.
    layers
        What was found, without the arrays.
    left
        Why there is nothing of other layers, by name.
    data, samples, uncut
        Where the samples come from, how many there are, and how many of them are runs that may
        hold several.
    loss, draws, seed
        As they were asked for.
    notes
        What to beware of.
    """

    arrays: Mapping[str, Array]
    layers: tuple[LayerFisher, ...]
    left: Mapping[str, str]
    data: str
    samples: int
    uncut: int
    loss: str
    draws: int
    seed: int
    notes: tuple[str, ...]

    def save(self, path: str | Path) -> None:
        """Write the arrays as `.npz`, whole or not at all; raises OutputError."""
        output = Path(path)
        with staging(output) as folder, zipfile.ZipFile(folder / output.name, "w") as archive:
            for name, array in self.arrays.items():  # np.savez takes no array called "file"
                entry = zipfile.ZipInfo(f"{name}.npy", _DATE)
                with archive.open(entry, "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, array, allow_pickle=False)
