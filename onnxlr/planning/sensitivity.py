"""How much a model's outputs suffer when single weights are replaced, measured by running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from onnxlr.runtime import ExecutionError, read_arrays

__all__ = ["Sensitivity", "measure"]

_FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")

_WORST = 1e6
"""Damage of outputs that overflow: no number that damages could be weighed against."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sensitivity:
    """A task: run a model whose weights are inputs, with one of them replaced at a time.

    Attributes
    ----------
    model
        File of the model; the weights in question are inputs of its graph.
    weights
        `.npz` file with the original under the name of each such input.
    trials
        `.npz` files, in order, each with one replacement under the name of its input.
    feeds
        Files of inputs.
    """

    model: str
    weights: str
    trials: Sequence[str]
    feeds: Sequence[str]
    function: ClassVar[str] = "onnxlr.planning.sensitivity:measure"


def measure(
    model: str, weights: str, trials: Sequence[str], feeds: Sequence[str]
) -> dict[str, Any]:
    """Return for each trial the squared relative distance of the float outputs.

    `Σ ‖y − ŷ‖² / ‖y‖²` over the outputs, with the norms over all feeds.

    Raises
    ------
    ExecutionError
        If the model cannot be run.
    """
    try:
        session = _open(model)
        originals = {n: _value(a) for n, a in read_arrays(Path(weights)).items()}
        inputs = [read_arrays(Path(feed)) for feed in feeds]
        expected = [_run(session, originals, feed) for feed in inputs]
        damages = []
        for trial in trials:
            changed = {n: _value(a) for n, a in read_arrays(Path(trial)).items()}
            found = [_run(session, {**originals, **changed}, feed) for feed in inputs]
            damages.append(_damage(expected, found))
    except Exception as error:
        text = " ".join(str(error).split())
        raise ExecutionError(f"its sensitivity cannot be measured: {text}") from error
    return {"damages": damages}


def _open(model: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _value(array: Array) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _run(
    session: ort.InferenceSession, weights: Mapping[str, Any], feed: Mapping[str, Array]
) -> list[Array]:
    values = {**weights, **{name: _value(array) for name, array in feed.items()}}
    names = [output.name for output in session.get_outputs() if output.type in _FLOATS]
    return [value.numpy() for value in session.run_with_ort_values(names, values)]


def _damage(expected: Sequence[Sequence[Array]], found: Sequence[Sequence[Array]]) -> float:
    total = 0.0
    for output in range(len(expected[0])):
        wrong = norm = 0.0
        for one, other in zip(expected, found, strict=True):
            counts = np.isfinite(one[output])  # masks make logits infinite
            reference = np.asarray(one[output], np.float64)[counts]
            difference = np.asarray(other[output], np.float64)[counts] - reference
            wrong += float(np.nan_to_num(np.square(difference), nan=np.inf, posinf=np.inf).sum())
            norm += float(np.square(reference).sum())
        total += min(wrong / norm, _WORST) if norm > 0 else 0.0
    return total
