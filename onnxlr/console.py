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
from pathlib import Path
from typing import Any

from cyclopts import CycloptsError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from onnxlr.errors import ExitCode, OnnxlrError, OnnxlrWarning, VerificationError
from onnxlr.model.saving import write_text
from onnxlr.progress import Progress as ProgressCallback
from onnxlr.progress import silent
from onnxlr.reporting import Stream, error_document, shown

__all__ = [
    "err",
    "explain",
    "heed_signals",
    "out",
    "print_json",
    "progress_bars",
    "publish",
    "show_warning",
]

out = Stream()
err = Stream(stderr=True)


def print_json(document: dict[str, Any]) -> None:
    """Print a document to standard output."""
    out.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def publish(document: dict[str, Any], report: Path | None, as_json: bool) -> None:
    """Write a document to a file if there is one, and to standard output if asked for."""
    if report is not None:
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        # A path whose bytes are no UTF-8 is written as JSON's own escapes.
        write_text(report, text.encode("utf-8", "backslashreplace").decode())
    if as_json:
        print_json(document)


@contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """Draw a bar for each task while a terminal looks on; it goes away when the task is done.

    What follows a semicolon in a task's name may change while it goes on.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    if not err.is_terminal:
        yield silent
        return
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(task: str, done: int, total: int) -> None:
            name = task.partition(";")[0]
            if name not in tasks:
                tasks[name] = bars.add_task(task, total=total)
            bars.update(tasks[name], description=task, completed=done, total=total)

        yield update


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
    elif isinstance(error, CycloptsError):
        kind, message, code = "UsageError", str(error), ExitCode.USAGE
    elif isinstance(error, KeyboardInterrupt):
        kind, code = "Interrupted", ExitCode.INTERRUPTED
        message = "interrupted; no file was left half written"
    else:
        kind, message, code = "Defect", _defect(error), ExitCode.DEFECT
        if os.environ.get("ONNXLR_DEBUG"):
            err.write("".join(traceback.format_exception(error)))
    message = " ".join(line.strip() for line in message.splitlines() if line.strip())
    if as_json and not isinstance(error, VerificationError):  # whose document is out already
        print_json(error_document(kind, message, code))
    err.print(f"[bold red]error:[/] {shown(message)}", soft_wrap=True, highlight=False)
    return code


def show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Say our own warnings in one line; those of libraries are not for users."""
    if issubclass(category, OnnxlrWarning):
        err.print(f"[yellow]warning:[/] {shown(str(message))}", soft_wrap=True, highlight=False)


def _defect(error: BaseException) -> str:
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"this is a defect of onnxlr ({what}); no file was left half written. Please report it "
        "with the command, and with what it prints when ONNXLR_DEBUG=1 is set"
    )
