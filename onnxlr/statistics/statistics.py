"""What is known of the layers of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onnxlr.errors import DataError
from onnxlr.statistics import storage
from onnxlr.statistics.moments import Moments

__all__ = ["LayerStatistics", "Statistics"]

_SCHEMA = 1


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What is known of one layer.

    Attributes
    ----------
    fit
        Moments of the inputs to fit factors to.
    holdout
        Moments of other inputs, to judge them by; None if there are none.
    """

    fit: Moments
    holdout: Moments | None = None


@dataclass(frozen=True, eq=False)
class Statistics:
    """What calibration saw of a model.

    Attributes
    ----------
    model_sha256
        Hash of the model's file.
    data
        Description of the calibration data: runs, samples, holdout, mask.
    layers
        Statistics by the layer's key (`onnxlr.layers.layer_keys`): the content hash of its weight.
    unobserved
        Names of layers of which nothing is known, with the reason.
    notes
        What to beware of: dead or constant inputs, fewer rows than inputs.
    """

    model_sha256: str
    data: str
    layers: Mapping[str, LayerStatistics]
    unobserved: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def of(self, layer_key: str) -> LayerStatistics | None:
        """Return a layer's statistics, None if it was not observed."""
        return self.layers.get(layer_key)

    def check(self, model: str, keys: Mapping[str, str]) -> None:
        """Check that every layer of a model has statistics, or a reason why not.

        Parameters
        ----------
        model
            What messages call it.
        keys
            Of its layers, by name.

        Raises
        ------
        DataError
            If one has another weight than the layers that were observed.
        """
        for name, key in keys.items():
            if key not in self.layers and name not in self.unobserved:
                raise DataError(
                    f"the statistics were made for another model: layer '{name}' of {model} "
                    "has another weight than the layers they were made of; calibrate again"
                )

    @cached_property
    def sha256(self) -> str:
        """Hash of all that was found: not of the file that holds it, nor of where the data lay."""
        contents = storage.describe(self._contents)
        del contents["data"]
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a `.npz` file, whole or not at all; the same statistics give the same bytes.

        Raises
        ------
        OutputError
            If the file cannot be written.
        """
        storage.save(path, self._contents)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a file that `save` wrote.

        Raises
        ------
        DataError
            If it cannot be read, or is something else.
        """
        return storage.load(path, cls._of)

    def _contents(self, put: Callable[[npt.NDArray[Any]], str]) -> dict[str, object]:
        """Return everything as JSON values, what `put` returns for an array."""
        layers = {key: _layer_contents(self.layers[key], put) for key in sorted(self.layers)}
        return {
            "schema": _SCHEMA,
            "model_sha256": self.model_sha256,
            "data": self.data,
            "layers": layers,
            "unobserved": dict(sorted(self.unobserved.items())),
            "notes": list(self.notes),
        }

    @classmethod
    def _of(cls, values: Mapping[str, Any], get: Callable[[str], npt.NDArray[Any]]) -> Statistics:
        """Return the statistics of such JSON values."""
        if values.get("schema") != _SCHEMA:
            raise ValueError(f"it has schema {values.get('schema')}, expected {_SCHEMA}")

        def moments(hashes: Mapping[str, str]) -> Moments:
            found = Moments(**{field: get(key) for field, key in hashes.items()})
            found.check()
            return found

        texts = (values["model_sha256"], values["data"], *values["notes"])
        unobserved = dict(values["unobserved"])
        if not all(isinstance(text, str) for text in (*texts, *unobserved.values())):
            raise ValueError("hashes, notes and reasons must be text")
        layers = {
            key: LayerStatistics(**{part: moments(hashes) for part, hashes in parts.items()})
            for key, parts in values["layers"].items()
        }
        return cls(
            values["model_sha256"],
            values["data"],
            layers,
            unobserved,
            tuple(values["notes"]),
        )


def _layer_contents(
    layer: LayerStatistics, put: Callable[[npt.NDArray[Any]], str]
) -> dict[str, dict[str, str]]:
    parts = {"fit": layer.fit, "holdout": layer.holdout}
    return {
        name: {field.name: put(getattr(moments, field.name)) for field in fields(Moments)}
        for name, moments in parts.items()
        if moments is not None
    }
