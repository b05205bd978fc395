"""Runs files in ONNX Runtime on held-out batches, and compares them with torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from onnxlr.model import Model
from onnxlr.model.scopes import scopes
from onnxlr.model.tensors import type_name
from onnxlr.runtime import LEVELS, Job, read_arrays, run_job, store_arrays
from onnxlr.training.data import Arrays
from onnxlr.verification import Check, Comparison, Tolerance
from onnxlr.verification.comparison import compare
from onnxlr.verification.proof import EMISSION_LIMITS, NOISE_FACTOR, NOISE_LIMIT

__all__ = ["FileRuns", "agreement", "rounds_data"]

ROUNDED_LIMIT = 0.1
"""Relative L2 distance allowed where data is rounded on the way: a difference in the last bit of
what is rounded may take it to the next code."""

_COMPARED = 4
"""Batches that torch and the runtime are compared on."""

_ROUNDS = {
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulNBits",
    "TernaryMatMul",
    "TernaryConv",
    "Round",
    "Floor",
}


@dataclass(frozen=True)
class FileRuns:
    """Held-out batches to run files on.

    Attributes
    ----------
    folder
        An empty folder for what is stored meanwhile.
    held
        The batches.
    inputs
        Which of their arrays the models take.
    isolate
        Whether to run in child processes.
    """

    folder: Path
    held: Sequence[Arrays]
    inputs: Sequence[str]
    isolate: bool

    def outputs(
        self, file: Path, name: str, level: str = LEVELS[0], most: int | None = None
    ) -> list[dict[str, npt.NDArray[Any]]]:
        """Return a file's outputs by name for each batch, or for the first few.

        Parameters
        ----------
        file
            The model.
        name
            What messages call it.
        level
            Of graph optimisation.
        most
            Batches to run on; all if not given.

        Raises
        ------
        RuntimeFailureError
            If it cannot be run.
        """
        feeds = []
        for place, batch in enumerate(self.held[:most]):
            feed = self.folder / f"feed-{place:06}.npz"
            if not feed.exists():
                store_arrays(feed, {name: batch[name] for name in self.inputs})
            feeds.append(str(feed))
        results = self.folder / f"{len(list(self.folder.iterdir()))}"
        outcome = run_job(Job(str(file), feeds, str(results), (level,)), name, self.isolate)
        stored = (results / level / f"{place:06}.npz" for place in range(len(feeds)))
        return [_named(read_arrays(path), outcome.outputs) for path in stored]


def _named(
    arrays: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """Return stored outputs under their names; parts of sequences are left out."""
    return {outputs[int(key)]: array for key, array in arrays.items() if key.isdigit()}


def agreement(
    torch_outputs: Iterable[Mapping[str, npt.NDArray[Any]]],
    model: Model,
    file: Path,
    runs: FileRuns,
    outputs: Sequence[str],
) -> Check:
    """Check that a model computes in ONNX Runtime what it computes in torch.

    As in the emission proof, four times what the runtime differs from itself, with and without
    graph optimisation, is allowed where that is more than the limit of the float type.

    Parameters
    ----------
    torch_outputs
        Arrays by name for each held-out batch; the first few are compared.
    model
        The model as it was trained.
    file
        The file.
    runs
        What to run it on.
    outputs
        Names of the float outputs.
    """
    ours = [found for found, _ in zip(torch_outputs, range(_COMPARED), strict=False)]
    theirs = {level: runs.outputs(file, model.name, level, len(ours)) for level in LEVELS}
    limit = _limit(model)
    comparisons, failures = [], []
    for name in outputs:
        optimised, plain = ([one[name] for one in theirs[level]] for level in LEVELS)
        noise = compare(name, zip(optimised, plain, strict=True)).relative_l2
        compared = compare(name, zip(optimised, [one[name] for one in ours], strict=True))
        allowed = max(limit, min(NOISE_FACTOR * noise, NOISE_LIMIT))
        comparisons.append(compared)
        failures += _failures(compared, allowed)
    text = f"relative_l2<={limit:g}"
    return Check("torch", LEVELS[0], text, tuple(comparisons), tuple(failures))


def _failures(compared: Comparison, allowed: float) -> list[str]:
    if compared.fault:
        return [compared.fault]
    return Tolerance.parse(f"relative_l2<={allowed:.6g}").failures([compared])


def _limit(model: Model) -> float:
    if rounds_data(model.proto):
        return ROUNDED_LIMIT
    kinds = {type_name(tensor.data_type) for tensor in model.proto.graph.initializer}
    return max((EMISSION_LIMITS[kind] for kind in kinds & EMISSION_LIMITS.keys()), default=1e-4)


def rounds_data(proto: onnx.ModelProto) -> bool:
    """Return whether a model has nodes that may round data, not only weights."""
    return any(node.op_type in _ROUNDS for scope in scopes(proto) for node in scope.graph.node)
