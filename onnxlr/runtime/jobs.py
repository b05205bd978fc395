"""Tasks in child processes, and the usual one: run a model on stored inputs, store its outputs.

Tasks run in child processes, one after the other: a model's memory is given back before the next
one loads, and a crash of the runtime is an error message instead of the end of onnxlr.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from onnxlr.errors import RuntimeFailureError
from onnxlr.runtime.child import perform
from onnxlr.runtime.execution import LEVELS, ExecutionError

__all__ = ["LEVELS", "Job", "Outcome", "Task", "run_job", "run_task"]


_WATCH = """
import os, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
"""
"""Ends the child when the other end of its standard input is closed, however the parent ended."""

_PROGRAM = f"""
import sys
sys.path[:] = filter(None, sys.path)
{_WATCH}
from onnxlr.runtime.child import main
main(*sys.argv[1:])
"""
"""Not `-m`, which lets a file `onnx.py` in the current folder stand in for the library."""


class Task(Protocol):
    """A dataclass of JSON values, the arguments of the function that performs it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    function: ClassVar[str]
    """`module:function`; it returns JSON values, or raises ExecutionError."""


@dataclass(frozen=True)
class Job:
    """A model to run.

    Attributes
    ----------
    model
        The model's file.
    feeds
        Files of inputs, one `.npz` each, run in order.
    results
        Folder that outputs go to: `<results>/<level>/<position of the feed>.npz`.
    levels
        Levels of graph optimisation to run at, among `LEVELS`.
    taps
        Names of further tensors of the main graph to store, behind the outputs.
    kernels
        Whether onnxlr's operators run in the op library's kernels, where there is one; False for
        the model's own functions.
    """

    model: str
    feeds: Sequence[str]
    results: str
    levels: Sequence[str] = LEVELS
    taps: Sequence[str] = ()
    kernels: bool = True
    function: ClassVar[str] = "onnxlr.runtime.execution:execute"


@dataclass(frozen=True)
class Outcome:
    """What ran.

    Attributes
    ----------
    runtime
        The runtime and its version.
    outputs
        Names of the stored tensors in order.
    no_kernels
        Why onnxlr's operators, if the model has some, ran as functions; None where they ran in the
        op library's kernels.
    """

    runtime: str
    outputs: tuple[str, ...]
    no_kernels: str | None = None


def run_job(job: Job, name: str, isolate: bool = True) -> Outcome:
    """Run a job; `name` is what messages call the model.

    Parameters
    ----------
    isolate
        Whether to use a child process.

    Raises
    ------
    RuntimeFailureError
        If the runtime cannot load or run the model, or dies.
    """
    values = run_task(job, name, isolate)
    return Outcome(values["runtime"], tuple(values["outputs"]), values.get("no_kernels"))


def run_task(task: Task, name: str, isolate: bool = True) -> dict[str, Any]:
    """Perform a task and return its answer; `name` is what messages call the model.

    Parameters
    ----------
    isolate
        Whether to use a child process.

    Raises
    ------
    RuntimeFailureError
        If the runtime cannot load or run the model, or dies.
    """
    if isolate:
        return _run_in_child(task, name)
    try:
        return perform(task.function, asdict(task))
    except ExecutionError as error:
        raise RuntimeFailureError(f"{name}: {error}") from None


def _run_in_child(work: Task, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="onnxlr-job-") as folder:
        task, answer = Path(folder, "task.json"), Path(folder, "answer.json")
        content = {"function": work.function, "arguments": asdict(work)}
        task.write_text(json.dumps(content), encoding="utf-8")
        command = [sys.executable, "-c", _PROGRAM, str(task), str(answer)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        reading, writing = os.pipe()
        try:
            done = subprocess.run(
                command,
                stdin=reading,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                env=environment,
            )
        finally:
            os.close(reading)
            os.close(writing)
        if not answer.exists():
            raise RuntimeFailureError(f"{name}: {_cause_of_death(done)}")
        values: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in values:
        raise RuntimeFailureError(f"{name}: {values['error']}")
    return values


def _cause_of_death(done: subprocess.CompletedProcess[str]) -> str:
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode >= 0:
        return f"the process that runs it ended with code {done.returncode}: {last}"
    name = signal.Signals(-done.returncode).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"the process that runs it was ended by {name}{hint}: {last}"
