"""The inputs of layers, as they are when the model runs: what candidates are measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx

from onnxlr.calibration.observation import opened_file
from onnxlr.calibration.taps import Tap, expose, refuse_scope
from onnxlr.layers import Layer
from onnxlr.model import Model
from onnxlr.planning.data_shapes import Data
from onnxlr.planning.sensitivity import rows_that_count
from onnxlr.runtime import (
    LEVELS,
    ExecutionError,
    open_runner,
    read_arrays,
    run_model,
    run_task,
    store_arrays,
)

__all__ = ["LIMIT", "Capture", "Inputs", "capture", "look"]

LIMIT = 256 << 20
"""Most bytes of a tensor that is kept, over all runs."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Inputs:
    """What the first site of a layer takes.

    Attributes
    ----------
    files
        A file for each run in which it was seen, with the tensor under its own name. Layers that
        take the same tensor share them.
    data
        Shapes and type; None where nothing was seen.
    content
        Hash of what is in the files.
    missing
        Why nothing was seen; None where it was.
    """

    files: tuple[str, ...] = ()
    data: Data | None = None
    content: str = ""
    missing: str | None = None


@dataclass(frozen=True)
class Capture:
    """A task: run a model and store some of its tensors.

    Attributes
    ----------
    model
        The model's file.
    feeds
        Files of inputs.
    taps
        What to store.
    folder
        Where to: `<position of the tap>-<position of the feed>.npz`.
    limit
        Most bytes of a tensor, over all runs; larger ones are not stored.
    mask
        Input that is 0 where positions do not count; None for none.
    masked
        For each tap whether its tensor is rows, of which only those at positions that count are
        stored, where its first dimensions are the mask's; of the first of several runs all are.
    """

    model: str
    feeds: Sequence[str]
    taps: Sequence[Tap]
    folder: str
    limit: int
    mask: str | None = None
    masked: Sequence[bool] = ()
    function: ClassVar[str] = "onnxlr.planning.auto.inputs:look"


def capture(
    model: Model,
    layers: Sequence[Layer],
    feeds: Sequence[str],
    folder: Path,
    isolate: bool = True,
    limit: int = LIMIT,
    mask: str | None = None,
) -> dict[str, Inputs]:
    """Run a model once and store what the first site of each of its layers takes.

    Parameters
    ----------
    layers
        The layers meant; those that are skipped are left out.
    feeds
        Files of inputs, few: all that the layers take is kept.
    folder
        Where to store it.
    isolate
        Whether the model runs in a child process.
    limit
        Most bytes of a tensor that is kept, over all runs.
    mask
        Input that is 0 where positions do not count: rows there are left out of all runs but the
        first, which is what models are timed on.

    Returns
    -------
    dict
        By the names of the layers.

    Raises
    ------
    RuntimeFailureError
        If the model cannot be run.
    """
    found: dict[str, Inputs] = {}
    taps: dict[Tap, list[str]] = {}
    rows: dict[Tap, bool] = {}
    for layer in layers:
        if layer.skip is not None:
            continue
        reason = _refuse(model.proto, layer) if feeds else "there is no calibration data"
        if reason is not None:
            found[layer.name] = Inputs(missing=reason)
            continue
        site = layer.sites[0]
        kind = 0 if layer.is_table else site.operand.elem_type
        tap = Tap(site.scope, site.data, kind)
        taps.setdefault(tap, []).append(layer.name)
        rows[tap] = rows.get(tap, True) and not site.is_convolution
    if taps:
        task = Capture(
            str(opened_file(model, folder)),
            [*feeds],
            [*taps],
            str(folder.absolute()),
            limit,
            mask,
            [rows[tap] for tap in taps],
        )
        answers = run_task(task, model.name, isolate)["seen"]
        for names, answer in zip(taps.values(), answers, strict=True):
            found |= dict.fromkeys(names, _inputs(answer))
    return found


def _refuse(proto: onnx.ModelProto, layer: Layer) -> str | None:
    """Return why a layer's inputs cannot be seen; None if they can."""
    scope = layer.sites[0].scope
    if reason := refuse_scope(proto, scope):
        return reason
    if layer.is_table and scope != 0:
        return "its indices are in a branch, where their type is not known"
    return None


def _inputs(answer: Mapping[str, Any]) -> Inputs:
    if answer["missing"] is not None:
        return Inputs(missing=answer["missing"])
    shapes = tuple(tuple(shape) for shape in answer["shapes"])
    return Inputs(tuple(answer["files"]), Data(shapes, np.dtype(answer["dtype"])), answer["hash"])


def look(
    model: str,
    feeds: Sequence[str],
    taps: Sequence[Mapping[str, Any]],
    folder: str,
    limit: int,
    mask: str | None = None,
    masked: Sequence[bool] = (),
) -> dict[str, Any]:
    """Run a model as `Capture` says.

    Returns
    -------
    dict
        `seen`: for each tap `files`, `shapes`, `dtype` and `hash`, or why it is `missing`.

    Raises
    ------
    ExecutionError
        If the model cannot be loaded or run.
    """
    names: list[str] = []

    def edit(chosen: Sequence[Tap], proto: onnx.ModelProto) -> None:
        names.extend(expose(proto, chosen))

    runner = open_runner(model, LEVELS[0], partial(edit, [Tap(**tap) for tap in taps]))
    records = [_Record(str(tap["name"])) for tap in taps]
    for run, feed in enumerate(feeds):
        inputs = read_arrays(Path(feed))
        counted = None if mask is None else inputs.get(mask)
        for number, value in enumerate(run_model(runner, inputs, names)):
            if not isinstance(value, np.ndarray | np.generic):
                raise ExecutionError("a tapped value is no tensor")
            file = Path(folder, f"{number:06}-{run:06}.npz")
            kept = np.asarray(value)
            # The first run is what models are timed on, as whole ones are, padding included.
            if counted is not None and masked[number] and (run > 0 or len(feeds) == 1):
                kept = rows_that_count(kept, counted)
            records[number].add(kept, file, limit)
    return {"seen": [record.answer() for record in records]}


class _Record:
    """What was seen of one tensor."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._files: list[str] = []
        self._shapes: list[tuple[int, ...]] = []
        self._dtype = ""
        self._digest = sha256()
        self._size = 0
        self._missing: str | None = None

    def add(self, value: Array, file: Path, limit: int) -> None:
        """Take in one run; a branch that was not taken gives an empty tensor."""
        if not value.size or self._missing is not None:
            return
        self._size += value.nbytes
        if self._size > limit:
            self._missing = f"it takes {self._size:,} bytes of data and more, expected {limit:,}"
            for stored in self._files:
                Path(stored).unlink()
            return
        self._files.append(str(file))
        self._shapes.append(value.shape)
        self._dtype = value.dtype.name
        self._digest.update(f"{value.dtype.name} {value.shape}".encode())
        self._digest.update(np.ascontiguousarray(value).tobytes())
        store_arrays(file, {self._name: value})

    def answer(self) -> dict[str, Any]:
        """Return what `look` says of the tensor."""
        missing = self._missing
        if missing is None and not self._files:
            missing = "no run of the data reaches it"
        return {
            "files": self._files,
            "shapes": self._shapes,
            "dtype": self._dtype,
            "hash": self._digest.hexdigest(),
            "missing": missing,
        }
