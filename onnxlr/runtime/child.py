"""The child process that runs a job."""

from __future__ import annotations

import json
from pathlib import Path

from onnxlr.runtime.execution import ExecutionError, execute


def main(task: str, answer: str) -> None:
    """Run the task and write the answer whole: a missing answer means that the process died."""
    try:
        runtime, outputs = execute(**json.loads(Path(task).read_text(encoding="utf-8")))
        values: dict[str, object] = {"runtime": runtime, "outputs": outputs}
    except ExecutionError as error:
        values = {"error": str(error)}
    partial = Path(f"{answer}.partial")
    partial.write_text(json.dumps(values), encoding="utf-8")
    partial.replace(answer)
