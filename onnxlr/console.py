"""The process at its terminal: streams, progress bars, signals, and how an error is said."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

from onnxlr.errors import ExitCode, OnnxlrError, OnnxlrWarning
from onnxlr.model.saving import write_text
from onnxlr.progress import Progress as ProgressCallback
from onnxlr.progress import silent
from onnxlr.reporting import Stream, error_document, shown
from onnxlr.reporting.page import Origin, is_page, page_with_spectra
from onnxlr.runtime import with_threads

__all__ = [
    "at_work",
    "err",
    "explain",
    "heed_signals",
    "out",
    "print_json",
    "publish",
    "show_warning",
]

out = Stream()
err = Stream(stderr=True)


def print_json(document: dict[str, Any]) -> None:
    """Print a document to standard output, of which it is all."""
    out.documents += 1
    out.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def publish(
    document: dict[str, Any], report: Path | None, as_json: bool, origin: Origin | None = None
) -> None:
    """Write a document to a file if there is one, and to standard output if asked for.

    The file may be a page where the document's origin is told.
    """
    if report is not None:
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        if origin is not None and is_page(report):
            with at_work(out.quiet) as progress:
                text = page_with_spectra(document, origin, progress)
        # A path whose bytes are no UTF-8 is written as JSON's own escapes.
        write_text(report, text.encode("utf-8", "backslashreplace").decode())
    if as_json:
        print_json(document)


@contextmanager
def at_work(quiet: bool = False, threads: int | None = None) -> Iterator[ProgressCallback]:
    """Run models on so many threads, and draw a bar for what is done while a terminal looks on.

    What follows a semicolon in a task's name may change while it goes on. A bar goes away when the
    next task begins.

    Parameters
    ----------
    quiet
        Draw nothing, and print nothing to standard output, from now on; JSON and errors are said.
    threads
        Of sessions; as many as the environment says, or ONNX Runtime likes, if not given.

    Raises
    ------
    UsageError
        If the number of threads is none.
    """
    out.quiet = quiet
    with with_threads(threads):
        if quiet or not err.is_terminal:
            yield silent
            return
        columns = (
            TextColumn("{task.description}", table_column=Column(overflow="ellipsis", ratio=1)),
            BarColumn(bar_width=20),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _TimeLeft(table_column=Column(no_wrap=True, min_width=12)),
        )
        with Progress(*columns, console=err, transient=True, expand=True) as bars:
            yield _Bars(bars).update


_FIRST = "reading the model"
"""What is done until something says what it does."""


class _Bars:
    """The bars of a command, of which the one that moved last is seen."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {_FIRST: bars.add_task(_FIRST, total=None)}
        self._seen = _FIRST

    def update(self, task: str, done: int, total: int) -> None:
        """Show a task, as `Progress` says; one that is done and begins anew counts from there."""
        name = task.partition(";")[0]
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(escape(task), total=total)
        elif self._bars.tasks[self._tasks[name]].finished and done < total:
            self._bars.reset(self._tasks[name], total=total)
        if name != self._seen:
            self._bars.update(self._tasks[self._seen], visible=False)
        self._seen = name
        self._bars.update(
            self._tasks[name],
            description=escape(task),
            completed=done,
            total=total,
            visible=True,
        )


class _TimeLeft(ProgressColumn):
    """The time that is left, by the time it took so far; the latter where nothing is known yet."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Return `0:01:02 left`, or `0:00:05 so far`."""
        left, passed = task.time_remaining, task.elapsed or 0.0
        if task.finished or left is None:
            return Text(f"{_clock(passed)} so far", style="progress.elapsed")
        return Text(f"{_clock(left)} left", style="progress.remaining")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


IMPATIENCE = 1.0
"""Seconds in which interrupts after the first one count as the same."""


def heed_signals() -> None:
    """Clean up when asked to end, as if interrupted; what is ignored (nohup) stays ignored.

    Who presses Ctrl-C twice means it once: the second does not break what the first cleans up.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        heard = -math.inf

        def interrupt(*_: object) -> None:
            nonlocal heard
            if time.monotonic() - heard > IMPATIENCE:
                heard = time.monotonic()
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, _: sys.exit(128 + received))


def explain(error: BaseException, as_json: bool) -> ExitCode:
    """Say on one line of standard error what is wrong; return the exit code.

    Nothing interrupts it: it is the last that a process does.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if isinstance(error, OnnxlrError):
        kind, message, code = type(error).__name__, str(error), error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        kind, code = "Interrupted", ExitCode.INTERRUPTED
        message = "interrupted; no file was left half written"
    elif isinstance(error, MemoryError):
        kind, message, code = "OutOfMemory", _shortage(error), ExitCode.MODEL
    else:
        kind, message, code = "Defect", _defect(error), ExitCode.DEFECT
        if os.environ.get("ONNXLR_DEBUG"):
            err.write("".join(traceback.format_exception(error)))
    message = _cut(" ".join(line.strip() for line in message.splitlines() if line.strip()))
    if as_json and not out.documents:
        print_json(error_document(kind, message, code))
    err.print(f"[bold red]error:[/] {shown(message)}", soft_wrap=True, highlight=False)
    return code


def show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Say our own warnings in one line; those of libraries are not for users."""
    if issubclass(category, OnnxlrWarning):
        err.print(
            f"[yellow]warning:[/] {shown(_cut(str(message)))}", soft_wrap=True, highlight=False
        )


_LONGEST = 4000
"""Characters of a message; names in a model can have a million."""


def _cut(message: str) -> str:
    """Return a message without its middle if it is longer than anybody reads."""
    if len(message) <= _LONGEST:
        return message
    return f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"


def _shortage(error: MemoryError) -> str:
    what = " ".join(str(error).split())
    return (
        f"memory does not suffice{f' ({what})' if what else ''}; no file was left half written. "
        "Models of huge layers, and many layers side by side (--jobs), take more than there is"
    )


def _defect(error: BaseException) -> str:
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"this is a defect of onnxlr ({what}); no file was left half written. Please report it "
        "with the command, and with what it prints when ONNXLR_DEBUG=1 is set"
    )
