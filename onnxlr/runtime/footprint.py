"""What a model takes on disk, in memory, to load and to run: each by itself.

A weight that is recombined from few numbers is small in the file, and may still be as large as ever
in memory. So the original and the rewritten model are each loaded in a process of their own, after
a model of one node, which pays for what the runtime sets up once; and they are timed in turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
import onnx
from onnx import helper

from onnxlr.errors import RuntimeFailureError
from onnxlr.progress import Progress, silent
from onnxlr.runtime.jobs import run_task
from onnxlr.runtime.latency import Latency, Race, measure_latency
from onnxlr.runtime.memory import memory_now
from onnxlr.runtime.single_thread import OnThreads, clock_of
from onnxlr.runtime.storage import read_arrays, store_arrays
from onnxlr.scratch import scratch

__all__ = [
    "MOST_FEEDS",
    "Footprint",
    "Footprints",
    "Loading",
    "ModelFile",
    "load_and_run",
    "load_apart",
    "measure_footprints",
]

MOST_FEEDS = 4
"""Inputs that are enough: each is run some dozens of times."""

_LOADS = 3
"""Sessions whose median is the time to load."""

_TASK = "measuring memory and speed"
_NO_PROCESS = "memory was not measured: the models ran in this process, not in one of their own"
_NO_STATUS = "memory was not measured: this platform does not tell it of a process"


@dataclass(frozen=True)
class ModelFile:
    """A model to measure.

    Attributes
    ----------
    name
        What messages call it.
    file
        Its file.
    bytes
        Of the file and its external data.
    """

    name: str
    file: Path
    bytes: int


@dataclass(frozen=True)
class Footprint:
    """What a model takes; None is what could not be measured.

    Attributes
    ----------
    bytes
        On disk, external data included.
    load_seconds
        The time to make a session of a file that the system has read before, the thread's own if
        it is one: the median of three.
    memory
        Bytes by which the process has grown when the model is loaded, and nothing has run yet.
    peak
        The most by which it grows while it loads the model and runs it once on each input.
    latency
        Time of a run, the mean over the inputs, and what it is of the original's.
    problems
        Why something is None, a sentence each.
    """

    bytes: int
    load_seconds: float | None = None
    memory: int | None = None
    peak: int | None = None
    latency: Latency | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Footprints:
    """The footprints of a model before and after."""

    original: Footprint
    rewritten: Footprint


@dataclass(frozen=True)
class Loading:
    """A task: load a model, run it on each of some files of inputs, and load it again.

    Attributes
    ----------
    model
        Its file.
    feeds
        Files of inputs.
    memory
        Whether the process is the model's own, so that its memory tells something.
    threads
        Of the session.
    """

    model: str
    feeds: Sequence[str]
    memory: bool
    threads: int = 1
    function: ClassVar[str] = "onnxlr.runtime.footprint:load_and_run"


def measure_footprints(
    original: ModelFile,
    rewritten: ModelFile,
    feeds: Sequence[Mapping[str, npt.NDArray[Any]]],
    isolate: bool = True,
    progress: Progress = silent,
) -> Footprints:
    """Measure two models on the same inputs; where one fails, the result says why.

    Parameters
    ----------
    original, rewritten
        The models; the ratio of latencies is to the first.
    feeds
        Inputs of both by name, of which the first `MOST_FEEDS` are taken.
    isolate
        Whether to use child processes; without them memory is not measured.
    progress
        Called before each of the steps.

    Raises
    ------
    OSError
        If the inputs cannot be written to temporary files.
    """
    with scratch("onnxlr-footprint-") as folder:
        files = []
        for position, feed in enumerate(feeds[:MOST_FEEDS]):
            files.append(str(folder / f"{position}.npz"))
            store_arrays(Path(files[-1]), feed)
        found = []
        for step, model in enumerate((original, rewritten)):
            progress(_TASK, step, 3)
            found.append(_loaded(model, files, isolate))
        progress(_TASK, 2, 3)
        before, after = _timed((original, rewritten), found, files, isolate)
    progress(_TASK, 3, 3)
    return Footprints(before, after)


def _loaded(model: ModelFile, feeds: Sequence[str], isolate: bool) -> Footprint:
    """Return what can be said of a model alone, or why nothing can."""
    try:
        return load_apart(model, feeds, isolate)
    except RuntimeFailureError as error:
        return Footprint(model.bytes, problems=(str(error),))


def load_apart(
    model: ModelFile, feeds: Sequence[str], isolate: bool = True, threads: int = 1
) -> Footprint:
    """Load a model alone and run it once on each file of inputs; return all but its latency.

    Raises
    ------
    RuntimeFailureError
        If it cannot be loaded or run, or its process dies.
    """
    task = Loading(str(model.file), feeds, isolate, threads)
    values = run_task(task, model.name, isolate)
    missing = () if values["memory"] is not None else (_NO_STATUS if isolate else _NO_PROCESS,)
    return Footprint(model.bytes, **values, problems=missing)


def _timed(
    models: Sequence[ModelFile], found: Sequence[Footprint], feeds: Sequence[str], isolate: bool
) -> list[Footprint]:
    """Return footprints with the latencies of the models in turn, or why there are none."""
    broken = [footprint.load_seconds is None for footprint in found]
    if any(broken) or not feeds:
        name = models[broken.index(True)].name if any(broken) else ""
        problem = f"{name} has none to compare with" if name else "there are no inputs"
        answer: list[Latency] | str = problem
    else:
        race = Race([str(model.file) for model in models], feeds)
        try:
            (answer,) = measure_latency([race], models[-1].name, isolate)
        except RuntimeFailureError as error:
            answer = str(error)
    if isinstance(answer, str):
        problem = f"latency was not measured: {answer}"
        return [replace(one, problems=(*one.problems, problem)) for one in found]
    return [
        replace(one, latency=replace(latency, seconds=latency.seconds / len(feeds)))
        for one, latency in zip(found, answer, strict=True)
    ]


def load_and_run(
    model: str, feeds: Sequence[str], memory: bool, threads: int = 1
) -> dict[str, Any]:
    """Return `load_seconds`, `memory` and `peak` of `Footprint`, measured in this process.

    Raises
    ------
    ExecutionError
        If the model cannot be loaded or run.
    """
    inputs = [read_arrays(Path(file)) for file in feeds]
    _warm_up()
    start = memory_now(anew=True) if memory else None
    seconds, session = _open(model, threads)
    grown = memory_now() if memory else None
    for feed in inputs:
        session.run(feed)
    end = memory_now() if memory else None
    times = [seconds]
    while len(times) < _LOADS:
        del session  # two of them at once would share nothing, and one may be large
        seconds, session = _open(model, threads)
        times.append(seconds)
    return {
        "load_seconds": statistics.median(times),
        "memory": None if start is None or grown is None else max(grown.now - start.now, 0),
        "peak": None if start is None or end is None else end.above(start),
    }


def _open(model: str | bytes, threads: int = 1) -> tuple[float, OnThreads]:
    """Return a session, and the seconds that it took to make."""
    clock = clock_of(threads)
    start = clock()
    session = OnThreads(model, threads)
    return clock() - start, session


def _warm_up() -> None:
    """Load a model of one node: what the runtime makes once is no part of any model."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "one", [x], [y])
    opsets = [helper.make_opsetid("", 13)]
    _open(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
