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
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from onnxlr.errors import OnnxlrWarning, RuntimeFailureError, ScratchError
from onnxlr.runtime.child import NO_ROOM, perform
from onnxlr.runtime.execution import LEVELS, ExecutionError
from onnxlr.scratch import Scratch, temporary

__all__ = ["LEVELS", "Job", "Outcome", "Task", "run_job", "run_task", "run_tasks"]


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


Given = TypeVar("Given", bound=Task)


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
    ScratchError
        If the disk takes no more temporary files.
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
    ScratchError
        If the disk takes no more temporary files.
    """
    if isolate:
        return _run_in_child(task, name)
    try:
        return perform(task.function, asdict(task))
    except ExecutionError as error:
        raise RuntimeFailureError(f"{name}: {error}") from None


def run_tasks(
    tasks: Iterable[Given],
    name: str,
    jobs: int,
    isolate: bool = True,
    *,
    threads: int | None = None,
    memory: int | None = None,
    needs: Callable[[Given], int] = lambda _: 0,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Perform tasks side by side; yield the number of each that is done, with its answer.

    Parameters
    ----------
    tasks
        Asked for one after the other, as there is room for them.
    jobs
        Child processes at a time.
    isolate
        Whether to use child processes; without, one task is performed after the other.
    threads
        That each computes with; the processors are divided among them if not given.
    memory
        Bytes that all may take together; no end of it if not given. One task runs in any case.
    needs
        Returns the bytes that a task is expected to take.

    Raises
    ------
    RuntimeFailureError
        If a task fails, or its process dies; the others are ended then.
    ScratchError
        If the disk takes no more temporary files.
    """
    if not isolate:
        for number, task in enumerate(tasks):
            yield number, run_task(task, name, isolate=False)
        return
    if threads is None:
        threads = max((os.cpu_count() or 1) // max(jobs, 1), 1)
    crew = _Crew(enumerate(tasks), max(jobs, 1), threads, memory, needs)
    try:
        while crew.start():
            ended = [number for number, child in crew.running.items() if child.has_ended]
            for number in ended:
                yield number, crew.dismiss(number).answer(name)
            if not ended:
                time.sleep(_POLL)
    finally:
        for child in crew.running.values():
            child.end()


@dataclass
class _Crew(Generic[Given]):
    """Children that run side by side, and the tasks that wait for them."""

    waiting: Iterator[tuple[int, Given]]
    jobs: int
    threads: int
    memory: int | None
    needs: Callable[[Given], int]
    following: tuple[int, Given] | None = None
    running: dict[int, _Child] = field(default_factory=dict)
    taken: dict[int, int] = field(default_factory=dict)

    def start(self) -> bool:
        """Start as many tasks as there is room for; return whether any runs."""
        while len(self.running) < self.jobs:
            self.following = self.following or next(self.waiting, None)
            if self.following is None:
                break
            number, task = self.following
            size = self.needs(task)
            full = self.memory is not None and sum(self.taken.values()) + size > self.memory
            if self.running and full:
                break
            self.running[number], self.taken[number] = _Child(task, self.threads), size
            self.following = None
        return bool(self.running)

    def dismiss(self, number: int) -> _Child:
        """Return a child, which counts no longer."""
        del self.taken[number]
        return self.running.pop(number)


_POLL = 0.01
"""Seconds between two looks at children that run side by side."""


def _run_in_child(work: Task, name: str) -> dict[str, Any]:
    child = _Child(work)
    try:
        return child.answer(name)
    finally:
        child.end()


class _Child:
    """A process that performs a task, with its files.

    Parameters
    ----------
    work
        The task.
    threads
        Of libraries that compute; as many as they like if not given.
    """

    def __init__(self, work: Task, threads: int | None = None) -> None:
        self._files = Scratch("onnxlr-job-")
        folder = self._files.path
        task, self._answer = folder / "task.json", folder / "answer.json"
        content = {"function": work.function, "arguments": asdict(work)}
        with temporary():
            task.write_text(json.dumps(content), encoding="utf-8")
            self._said = (folder / "said").open("w+", encoding="utf-8", errors="replace")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        # What the tools of others leave behind in a process that is killed goes with the folder.
        environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
        if threads is not None:
            environment |= dict.fromkeys(_THREADS, str(threads))
        reading, self._alive = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(task), str(self._answer)],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                env=environment,
            )
        except BaseException:
            os.close(self._alive)
            raise
        finally:
            os.close(reading)

    @property
    def has_ended(self) -> bool:
        """Whether it is done, or dead."""
        return self._process.poll() is not None

    def answer(self, name: str) -> dict[str, Any]:
        """Wait for the answer, and warn of what the child would have warned of.

        Raises
        ------
        RuntimeFailureError
            If there is none.
        ScratchError
            If the disk takes no more temporary files.
        """
        self._process.wait()
        try:
            if not self._answer.exists():
                if self._process.returncode == NO_ROOM:
                    raise ScratchError("not even a few bytes")
                raise RuntimeFailureError(f"{name}: {self._cause_of_death()}")
            values: dict[str, Any] = json.loads(self._answer.read_text(encoding="utf-8"))
        finally:
            self.end()
        for text in values["warnings"]:
            warnings.warn(text, OnnxlrWarning, stacklevel=2)
        if "no_room" in values:
            raise ScratchError(values["no_room"])
        if "error" in values:
            raise RuntimeFailureError(f"{name}: {values['error']}")
        answer: dict[str, Any] = values["answer"]
        return answer

    def end(self) -> None:
        """End the process, if it still runs, and remove its files; may be called again."""
        try:
            self._clean_up()
        except KeyboardInterrupt:  # in the middle of it, after which nobody would remove the rest
            self._clean_up()
            raise

    def _clean_up(self) -> None:
        self._process.kill()
        self._process.wait()
        alive, self._alive = self._alive, -1
        if alive >= 0:
            os.close(alive)
        self._said.close()
        self._files.remove()

    def _cause_of_death(self) -> str:
        self._said.seek(0)
        last = (self._said.read().strip().splitlines() or ["no message"])[-1]
        code = self._process.returncode
        if code >= 0:
            return f"the process that runs it ended with code {code}: {last}"
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the process that runs it was ended by {name}{hint}: {last}"


_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that tell libraries how many threads to compute with."""
