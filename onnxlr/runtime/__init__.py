"""ONNX Runtime sessions: running a model file on inputs, in a process of its own."""

from onnxlr.runtime.execution import ExecutionError, open_runner, run_model, store_runs
from onnxlr.runtime.footprint import (
    MOST_FEEDS,
    Footprint,
    Footprints,
    ModelFile,
    load_apart,
    measure_footprints,
)
from onnxlr.runtime.heats import Pace, run_heats
from onnxlr.runtime.jobs import LEVELS, Job, Outcome, run_job, run_task, run_tasks
from onnxlr.runtime.latency import Latency, Race, measure_latency
from onnxlr.runtime.library import OpsDescription, describe_ops, get_library_path, register_ops
from onnxlr.runtime.sessions import session
from onnxlr.runtime.storage import read_arrays, store_arrays
from onnxlr.runtime.threads import with_threads

__all__ = [
    "LEVELS",
    "MOST_FEEDS",
    "ExecutionError",
    "Footprint",
    "Footprints",
    "Job",
    "Latency",
    "ModelFile",
    "OpsDescription",
    "Outcome",
    "Pace",
    "Race",
    "describe_ops",
    "get_library_path",
    "load_apart",
    "measure_footprints",
    "measure_latency",
    "open_runner",
    "read_arrays",
    "register_ops",
    "run_heats",
    "run_job",
    "run_model",
    "run_task",
    "run_tasks",
    "session",
    "store_arrays",
    "store_runs",
    "with_threads",
]
