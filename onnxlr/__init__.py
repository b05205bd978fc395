"""Factorizes the weights of ONNX models, rewrites the graph, and proves that the outputs agree."""

from onnxlr.delivery import RewriteResult
from onnxlr.errors import (
    DataError,
    ExitCode,
    GoalNotMetError,
    LibraryError,
    LibraryMissingError,
    MissingExtraError,
    ModelError,
    NothingGainedError,
    NothingRewrittenError,
    OnnxlrError,
    OnnxlrWarning,
    OutputError,
    PlanError,
    RuntimeFailureError,
    TrainingError,
    UsageError,
    VerificationError,
)
from onnxlr.model import Model
from onnxlr.model import open_model as open  # noqa: A004  (onnxlr.open reads as what it does)
from onnxlr.pipeline import decompose, inspect, observe, plan, rewrite, verify
from onnxlr.plan import Plan
from onnxlr.planning import SweepPoint, SweepResult
from onnxlr.runtime import OpsDescription, describe_ops, get_library_path, register_ops, session
from onnxlr.stages import Chain
from onnxlr.statistics import Statistics
from onnxlr.sweeping import sweep
from onnxlr.training_verbs import fisher, train_svd, train_ternary, tune
from onnxlr.verification import Report
from onnxlr.version import VERSION

__version__ = VERSION

__all__ = [
    "Chain",
    "DataError",
    "ExitCode",
    "GoalNotMetError",
    "LibraryError",
    "LibraryMissingError",
    "MissingExtraError",
    "Model",
    "ModelError",
    "NothingGainedError",
    "NothingRewrittenError",
    "OnnxlrError",
    "OnnxlrWarning",
    "OpsDescription",
    "OutputError",
    "Plan",
    "PlanError",
    "Report",
    "RewriteResult",
    "RuntimeFailureError",
    "Statistics",
    "SweepPoint",
    "SweepResult",
    "TrainingError",
    "UsageError",
    "VerificationError",
    "__version__",
    "decompose",
    "describe_ops",
    "fisher",
    "get_library_path",
    "inspect",
    "observe",
    "open",
    "plan",
    "register_ops",
    "rewrite",
    "session",
    "sweep",
    "train_svd",
    "train_ternary",
    "tune",
    "verify",
]
