"""ONNX Runtime sessions: running a model file on inputs, in a process of its own."""

from onnxlr.runtime.jobs import LEVELS, Job, Outcome, run_job
from onnxlr.runtime.storage import store_arrays

__all__ = ["LEVELS", "Job", "Outcome", "run_job", "store_arrays"]
