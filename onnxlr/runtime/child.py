"""The child process that performs a task, and how a task names its function."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxlr.errors import OnnxlrWarning, ScratchError
from onnxlr.runtime.execution import ExecutionError
from onnxlr.scratch import is_full

__all__ = ["NO_ROOM", "main", "perform"]

NO_ROOM = 74
"""Exit code of a child that cannot even say that the disk is full: EX_IOERR of sysexits.h."""


def perform(function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Call `module:function` and return its answer.

    Raises
    ------
    ExecutionError
        If it raises one: a model cannot be loaded or run.
    ScratchError
        If it meets a full disk: all that a task writes are temporary files.
    """
    module, _, name = function.partition(":")
    try:
        answer: dict[str, Any] = getattr(importlib.import_module(module), name)(**arguments)
    except OSError as error:
        if is_full(error):
            raise ScratchError(error.strerror or str(error)) from error
        raise
    return answer


def main(task: str, answer: str) -> None:
    """Perform the task and write the answer whole: a missing answer means that the process died.

    It holds the task's own `answer`, or an `error`, or why the disk takes `no_room`; and `warnings`
    for the user, whom a child does not speak to.
    """
    values: dict[str, Any]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", OnnxlrWarning)
        try:
            values = {"answer": perform(**json.loads(Path(task).read_text(encoding="utf-8")))}
        except ExecutionError as error:
            values = {"error": str(error)}
        except ScratchError as error:
            values = {"no_room": error.reason}
    own = (str(each.message) for each in heard if issubclass(each.category, OnnxlrWarning))
    values["warnings"] = list(dict.fromkeys(own))
    partial = Path(f"{answer}.partial")
    try:
        partial.write_text(json.dumps(values), encoding="utf-8")
        partial.replace(answer)
    except OSError:
        sys.exit(NO_ROOM)
