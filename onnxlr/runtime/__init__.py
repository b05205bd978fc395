"""ONNX Runtime sessions: running a model file on inputs, in a process of its own."""

from onnxlr.runtime.jobs import LEVELS, Job, Outcome, run_job

__all__ = ["LEVELS", "Job", "Outcome", "run_job"]
