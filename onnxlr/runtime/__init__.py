"""ONNX Runtime sessions: running a model file on inputs, in a process of its own."""

from onnxlr.runtime.execution import ExecutionError, open_runner, run_model
from onnxlr.runtime.jobs import LEVELS, Job, Outcome, run_job, run_task
from onnxlr.runtime.storage import read_arrays, store_arrays

__all__ = [
    "LEVELS",
    "ExecutionError",
    "Job",
    "Outcome",
    "open_runner",
    "read_arrays",
    "run_job",
    "run_model",
    "run_task",
    "store_arrays",
]
