"""Factorizes the weights of ONNX models, rewrites the graph, and proves that the outputs agree."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from onnxlr.version import VERSION

if TYPE_CHECKING:
    from onnxlr.benching import BenchResult, bench
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

__version__ = VERSION

__all__ = [
    "BenchResult",
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
    "bench",
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

_PLACES = {
    "benching": ("BenchResult", "bench"),
    "delivery": ("RewriteResult",),
    "model": ("Model", "open"),
    "pipeline": ("decompose", "inspect", "observe", "plan", "rewrite", "verify"),
    "plan": ("Plan",),
    "planning": ("SweepPoint", "SweepResult"),
    "runtime": ("OpsDescription", "describe_ops", "get_library_path", "register_ops", "session"),
    "stages": ("Chain",),
    "statistics": ("Statistics",),
    "sweeping": ("sweep",),
    "training_verbs": ("fisher", "train_svd", "train_ternary", "tune"),
    "verification": ("Report",),
}
"""Modules by what is imported from them when it is first asked for; all else is an error class."""


def __getattr__(name: str) -> Any:
    """Import what is asked for: child processes, and `--version`, need next to nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'onnxlr' has no attribute '{name}'")
    place = next((place for place, names in _PLACES.items() if name in names), "errors")
    value = getattr(import_module(f"onnxlr.{place}"), "open_model" if name == "open" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]


class _Package(ModuleType):
    """The package as a module in which the folder `plan` does not hide the function `plan`."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Leave out what an import of a folder of such a name would set."""
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
