"""The child process that performs a task, and how a task names its function."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxlr.runtime.execution import ExecutionError

__all__ = ["main", "perform"]


def perform(function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Call `module:function` and return its answer.

    Raises
    ------
    ExecutionError
        If it raises one: a model cannot be loaded or run.
    """
    module, _, name = function.partition(":")
    answer: dict[str, Any] = getattr(importlib.import_module(module), name)(**arguments)
    return answer


def main(task: str, answer: str) -> None:
    """Perform the task and write the answer whole: a missing answer means that the process died."""
    values: dict[str, Any]
    try:
        values = perform(**json.loads(Path(task).read_text(encoding="utf-8")))
    except ExecutionError as error:
        values = {"error": str(error)}
    partial = Path(f"{answer}.partial")
    partial.write_text(json.dumps(values), encoding="utf-8")
    partial.replace(answer)
