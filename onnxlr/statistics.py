"""What calibration saw of each layer's inputs, in memory and in a file."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import DataError
from onnxlr.layers import Layer, layer_keys
from onnxlr.model import Model
from onnxlr.model.saving import check_output, staging

__all__ = ["LayerStatistics", "Moments", "PairMoments", "Statistics"]

_SCHEMA = 1
_CONTENTS = "statistics.json"
_TRIANGLE = ".triangle.npy"
"""End of the names of arrays of which only the upper triangles are kept."""

_DATE = (1980, 1, 1, 0, 0, 0)
"""The date of every entry of a file, so that the same content is the same bytes."""


@dataclass(frozen=True, eq=False)
class Moments:
    """What was seen of a layer's inputs: rows of a matrix layer, im2col patches of a convolution.

    A patch is the row-major `(inputs/groups, *kernel)` window of one group's channels, so that a
    convolution is `patch @ kernel.reshape(outputs, -1).T`. The sites are the layer's, in its order;
    a site that was not observed has count 0, means 0 and ranges NaN.

    Attributes
    ----------
    counts
        `(sites,)` int64: rows seen at each site.
    means
        `(sites, groups, inputs)` float64: mean of each site's rows.
    covariance
        `(groups, inputs, inputs)` float64: uncentred `E[x xᵀ]` over the rows of all sites.
    low, high
        `(sites,)` float64: smallest and largest entry of the data.
    output_low, output_high
        `(sites,)` float64: the same of the node's output.
    """

    counts: npt.NDArray[np.int64]
    means: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    output_low: npt.NDArray[np.float64]
    output_high: npt.NDArray[np.float64]

    @property
    def count(self) -> int:
        """Rows seen at all sites together."""
        return int(self.counts.sum())

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """`(groups, inputs)`: mean over the rows of all sites."""
        mean: npt.NDArray[np.float64] = np.tensordot(self._shares, self.means, 1)
        return mean

    @property
    def centred(self) -> npt.NDArray[np.float64]:
        """`(groups, inputs, inputs)`: the covariance left when every site corrects its own bias.

        `covariance − Σ_s (n_s/N) μ_s μ_sᵀ`.
        """
        outer = np.einsum("s,sgi,sgj->gij", self._shares, self.means, self.means, optimize=True)
        centred: npt.NDArray[np.float64] = self.covariance - outer
        return centred

    @property
    def _shares(self) -> npt.NDArray[np.float64]:
        return self.counts / max(self.count, 1)

    def __post_init__(self) -> None:
        sites = self.counts.shape
        vectors = (self.low, self.high, self.output_low, self.output_high)
        agree = len(sites) == 1 and self.means.ndim == 3 and self.means.shape[:1] == sites
        if not agree or any(vector.shape != sites for vector in vectors):
            raise ValueError("counts, means and ranges must have one entry for each site")
        groups, inputs = self.means.shape[1:]
        if self.covariance.shape != (groups, inputs, inputs):
            raise ValueError(
                f"covariance has shape {self.covariance.shape}, expected {(groups, inputs, inputs)}"
            )


@dataclass(frozen=True, eq=False)
class PairMoments:
    """Moments of a layer's inputs x̂ in a rewritten model, and of x in the original.

    Rows as in `Moments`, over all sites together.

    Attributes
    ----------
    count
        Rows seen.
    covariance
        `(groups, inputs, inputs)`: `E[x̂ x̂ᵀ]`.
    cross
        `(groups, inputs, inputs)`: `E[x̂ xᵀ]`.
    target
        `(groups, inputs, inputs)`: `E[x xᵀ]`.
    mean, original_mean
        `(groups, inputs)`: of x̂ and of x.
    """

    count: int
    covariance: npt.NDArray[np.float64]
    cross: npt.NDArray[np.float64]
    target: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    original_mean: npt.NDArray[np.float64]

    @property
    def centred(self) -> npt.NDArray[np.float64]:
        """`(groups, inputs, inputs)`: the covariance of x̂ without its mean."""
        outer = np.einsum("gi,gj->gij", self.mean, self.mean)
        centred: npt.NDArray[np.float64] = self.covariance - outer
        return centred


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What is known of one layer.

    Attributes
    ----------
    fit
        Moments of the inputs to fit factors to.
    holdout
        Moments of other inputs, to judge them by; None if there are none.
    importance
        Importance of each entry of the weight, in its canonical shape (empirical Fisher
        information); None if not measured.
    output_covariance
        `(outputs, outputs)`: `E[g gᵀ]` of the output's gradients; None if not measured.
    """

    fit: Moments
    holdout: Moments | None = None
    importance: npt.NDArray[Any] | None = None
    output_covariance: npt.NDArray[Any] | None = None


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

    def check(self, model: Model, layers: Sequence[Layer]) -> None:
        """Check that every layer that can be rewritten has statistics, or a reason why not.

        Raises
        ------
        DataError
            If one has another weight than the layers that were observed.
        ModelError
            If a weight cannot be read.
        """
        for name, key in layer_keys(model, layers).items():
            if key not in self.layers and name not in self.unobserved:
                raise DataError(
                    f"the statistics were made for another model: layer '{name}' of {model.name} "
                    "has another weight than the layers they were made of; calibrate again"
                )

    @cached_property
    def sha256(self) -> str:
        """Hash of all that was found: not of the file that holds it, nor of where the data lay."""
        contents = self._contents(_keep_nothing)
        del contents["data"]
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a `.npz` file, whole or not at all; the same statistics give the same bytes.

        Raises
        ------
        OutputError
            If the file cannot be written.
        """
        output = Path(path)
        check_output(output)
        with staging(output) as folder, zipfile.ZipFile(folder / output.name, "w") as archive:
            stored = set[str]()

            def store(key: str, array: npt.NDArray[Any]) -> None:
                if key not in stored:  # layers that share their data share the array
                    stored.add(key)
                    name = f"{key}.npy"
                    if _is_symmetric(array):
                        name, array = f"{key}{_TRIANGLE}", _triangle(array)
                    with archive.open(_entry(name), "w", force_zip64=True) as stream:
                        np.lib.format.write_array(stream, array, allow_pickle=False)

            contents = self._contents(store)
            archive.writestr(_entry(_CONTENTS), json.dumps(contents, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a file that `save` wrote.

        Raises
        ------
        DataError
            If it cannot be read, or is something else.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                if _CONTENTS not in archive.namelist():
                    raise DataError(f"{path}: is not a statistics file (it has no {_CONTENTS})")
                return _read(archive)
        except FileNotFoundError:
            raise DataError(f"{path}: no such statistics file") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
        except zipfile.BadZipFile as error:
            raise DataError(f"{path}: is not a statistics file, or damaged ({error})") from None
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001  (numpy and zlib raise what the bytes lead to)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{path}: is a damaged statistics file: {reason}") from None

    def _contents(self, store: Callable[[str, npt.NDArray[Any]], None]) -> dict[str, object]:
        """Return everything as JSON values, the hash for an array; hand each array to `store`."""
        seen: dict[int, str] = {}

        def put(array: npt.NDArray[Any]) -> str:
            if id(array) not in seen:
                seen[id(array)] = _hash(array)
                store(seen[id(array)], array)
            return seen[id(array)]

        layers = {key: _layer_contents(self.layers[key], put) for key in sorted(self.layers)}
        return {
            "schema": _SCHEMA,
            "model_sha256": self.model_sha256,
            "data": self.data,
            "layers": layers,
            "unobserved": dict(sorted(self.unobserved.items())),
            "notes": list(self.notes),
        }


def _keep_nothing(_key: str, _array: npt.NDArray[Any]) -> None:
    """Store no array: the hashes are enough."""


def _is_symmetric(array: npt.NDArray[Any]) -> bool:
    square = array.ndim == 3 and array.shape[1] == array.shape[2] > 1
    return square and np.array_equal(array, array.swapaxes(1, 2))


def _triangle(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the upper triangles of symmetric matrices, `(groups, n (n + 1) / 2)`."""
    return np.stack([matrix[np.triu_indices(len(matrix))] for matrix in array])


def _from_triangle(halves: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the symmetric matrices of upper triangles."""
    size = int((np.sqrt(8 * halves.shape[1] + 1) - 1) / 2)
    whole = np.empty((len(halves), size, size), halves.dtype)
    rows, columns = np.triu_indices(size)
    whole[:, rows, columns] = halves
    whole[:, columns, rows] = halves
    return whole


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, _DATE)


def _hash(array: npt.NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _parts(layer: LayerStatistics) -> Iterator[tuple[str, object]]:
    for field in fields(LayerStatistics):
        value = getattr(layer, field.name)
        if value is not None:
            yield field.name, value


def _layer_contents(
    layer: LayerStatistics, put: Callable[[npt.NDArray[Any]], str]
) -> dict[str, object]:
    contents: dict[str, object] = {}
    for name, value in _parts(layer):
        if isinstance(value, Moments):
            contents[name] = {f.name: put(getattr(value, f.name)) for f in fields(Moments)}
        elif isinstance(value, np.ndarray):
            contents[name] = put(value)
    return contents


def _read(archive: zipfile.ZipFile) -> Statistics:
    values = json.loads(archive.read(_CONTENTS))
    if values.get("schema") != _SCHEMA:
        raise ValueError(f"it has schema {values.get('schema')}, expected {_SCHEMA}")
    known: dict[str, npt.NDArray[Any]] = {}
    names = set(archive.namelist())

    def get(key: str) -> npt.NDArray[Any]:
        if key not in known:
            is_half = f"{key}{_TRIANGLE}" in names
            stream = io.BytesIO(archive.read(f"{key}{_TRIANGLE if is_half else '.npy'}"))
            array = np.lib.format.read_array(stream, allow_pickle=False)
            known[key] = _from_triangle(array) if is_half else array
            if _hash(known[key]) != key:
                raise ValueError(f"array {key[:12]}… has other numbers than when it was written")
        return known[key]

    def layer(contents: Mapping[str, Any]) -> LayerStatistics:
        parts: dict[str, Any] = {
            name: Moments(**{field: get(key) for field, key in value.items()})
            if isinstance(value, dict)
            else get(value)
            for name, value in contents.items()
        }
        return LayerStatistics(**parts)

    return Statistics(
        values["model_sha256"],
        values["data"],
        {key: layer(contents) for key, contents in values["layers"].items()},
        values["unobserved"],
        tuple(values["notes"]),
    )
