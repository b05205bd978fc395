"""Runs a model file in ONNX Runtime, or in ONNX's reference evaluator where kernels are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxlr.runtime.sessions import offer_kernels, open_session
from onnxlr.runtime.storage import read_arrays, store_arrays
from onnxlr.runtime.threads import session_threads

__all__ = [
    "LEVELS",
    "Edit",
    "ExecutionError",
    "Runner",
    "execute",
    "in_one_line",
    "open_runner",
    "run_model",
    "store_runs",
]

LEVELS = ("all", "none")
"""Graph optimisation as ONNX Runtime does it by default, and none."""

_ORT_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class ExecutionError(Exception):
    """The model cannot be loaded or run; the message is one sentence."""


Edit = Callable[[onnx.ModelProto], None]
"""Changes a model, in memory, before it is loaded; external data keeps its place."""


class Runner(Protocol):
    """A loaded model: the runtime's name, the outputs' names, and `run`.

    `no_kernels` says why onnxlr's operators run as functions, None where they run in kernels.
    """

    name: str
    outputs: list[str]
    no_kernels: str | None

    def run(self, feeds: dict[str, npt.NDArray[Any]], names: Sequence[str] | None) -> list[Any]:
        """Return the outputs of those names, all of them for None."""


def execute(
    model: str,
    feeds: Sequence[str],
    results: str,
    levels: Sequence[str],
    taps: Sequence[str],
    kernels: bool,
) -> dict[str, Any]:
    """Run a model as `Job` says; return what `Outcome` has.

    Raises
    ------
    ExecutionError
        If it cannot be loaded or run.
    """
    runner: Runner | None = None
    for level in levels:
        edit = partial(_add_outputs, taps=taps) if taps else None
        runner = open_runner(model, level, edit, kernels)
        store_runs(runner, feeds, Path(results, level))
    if runner is None:
        raise ExecutionError("no level of optimisation was asked for")
    return {"runtime": runner.name, "outputs": runner.outputs, "no_kernels": runner.no_kernels}


def store_runs(runner: Runner, feeds: Sequence[str], folder: Path) -> None:
    """Run a loaded model on files of inputs and store its outputs, `<position of the feed>.npz`.

    Raises
    ------
    ExecutionError
        If the model cannot be run on one of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for position, file in enumerate(feeds):
        outputs = run_model(runner, read_arrays(Path(file)))
        store_arrays(folder / f"{position:06}.npz", _as_arrays(outputs))


def open_runner(model: str, level: str, edit: Edit | None = None, kernels: bool = True) -> Runner:
    """Load a model file in ONNX Runtime, or the reference evaluator where kernels are missing.

    `kernels` is False to leave the op library out, so that onnxlr's operators run as functions.

    Raises
    ------
    ExecutionError
        If it cannot be loaded.
    """
    try:
        return _OrtRunner(model, level, edit, kernels)
    except Exception as error:  # noqa: BLE001  (its exceptions share no base class)
        if not _lacks_kernel(error):
            raise ExecutionError(
                f"ONNX Runtime {ort.__version__} cannot load it: {in_one_line(error)}"
            ) from None
        try:
            return _ReferenceRunner(model, edit)
        except Exception as other:  # noqa: BLE001
            raise ExecutionError(
                f"neither ONNX Runtime ({in_one_line(error)}) nor ONNX's reference evaluator "
                f"({in_one_line(other)}) can load it"
            ) from None


def run_model(
    runner: Runner, inputs: dict[str, npt.NDArray[Any]], names: Sequence[str] | None = None
) -> list[Any]:
    """Return the outputs of those names, all of them for None.

    Raises
    ------
    ExecutionError
        If the model cannot be run on these inputs.
    """
    try:
        return runner.run(inputs, names)
    except Exception as error:  # noqa: BLE001
        raise ExecutionError(
            f"{runner.name} cannot run it on these inputs: {in_one_line(error)}"
        ) from None


def _lacks_kernel(error: Exception) -> bool:
    return "NOT_IMPLEMENTED" in str(error) or type(error).__name__ == "NotImplemented"


def in_one_line(error: Exception) -> str:
    """Return what an error says, at most some 400 characters of it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:400] + "…"


class _OrtRunner:
    def __init__(self, model: str, level: str, edit: Edit | None, kernels: bool) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = _ORT_LEVELS[level]
        options.intra_op_num_threads = session_threads()
        options.log_severity_level = 4
        source: str | bytes = model
        if edit:
            folder = str(Path(model).absolute().parent)
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", folder
            )
            proto = onnx.load(model, load_external_data=False)
            edit(proto)
            source = proto.SerializeToString()
        place = Path(model).absolute().parent if edit else None
        problem = offer_kernels(options, kernels)
        self.no_kernels = None if problem is None else str(problem)
        self._session = open_session(
            source, options, problem, place, providers=["CPUExecutionProvider"]
        )
        values = (*self._session.get_inputs(), *self._session.get_outputs())
        if any("bfloat16" in value.type for value in values):
            raise NotImplementedError("NOT_IMPLEMENTED: it passes no bfloat16 to or from Python")
        self.outputs = [value.name for value in self._session.get_outputs()]
        self.name = f"ONNX Runtime {ort.__version__}"

    def run(self, feeds: dict[str, npt.NDArray[Any]], names: Sequence[str] | None) -> list[Any]:
        results: list[Any] = self._session.run(names, feeds)
        return results


class _ReferenceRunner:
    def __init__(self, model: str, edit: Edit | None) -> None:
        proto = onnx.load(model)
        if edit:
            edit(proto)
        self._evaluator = ReferenceEvaluator(proto)
        self._types = {
            value.name: value.type.tensor_type.elem_type
            for value in proto.graph.input
            if value.type.HasField("tensor_type")
        }
        self.outputs = list(self._evaluator.output_names)
        self.name = f"ONNX's reference evaluator {onnx.__version__}"
        self.no_kernels: str | None = f"{self.name} has none of them"

    def run(self, feeds: dict[str, npt.NDArray[Any]], names: Sequence[str] | None) -> list[Any]:
        typed = {name: self._typed(name, array) for name, array in feeds.items()}
        return list(self._evaluator.run(None if names is None else list(names), typed))

    def _typed(self, name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an input in its type: bfloat16 and the like come out of a file as bare bytes."""
        if array.dtype.kind != "V":
            return array
        return array.view(helper.tensor_dtype_to_np_dtype(self._types[name]))


def _add_outputs(proto: onnx.ModelProto, taps: Sequence[str]) -> None:
    present = {value.name for value in proto.graph.output}
    for name in dict.fromkeys(taps):
        if name not in present:
            proto.graph.output.add(name=name)


def _as_arrays(outputs: Iterable[Any]) -> dict[str, npt.NDArray[Any]]:
    """Flatten outputs to arrays: a sequence or map becomes several, named `position.part`."""
    arrays = {}
    for position, output in enumerate(outputs):
        for part, value in _parts(output):
            array = np.asarray(value)
            if array.dtype == object:  # strings
                array = array.astype(str)
            elif array.dtype.kind == "V":  # bfloat16 and the like, which files cannot hold
                array = array.astype(np.float32)
            arrays[f"{position}{part}"] = array
    return arrays


def _parts(output: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(output, dict):
        for key in sorted(output):
            yield f".{key}", output[key]
    elif isinstance(output, list | tuple):
        for index, value in enumerate(output):
            for part, leaf in _parts(value):
                yield f".{index}{part}", leaf
    elif output is not None:
        yield "", output
