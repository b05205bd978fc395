"""The closed set of errors a user can meet, each with its exit code.

Every message is one sentence that names the file, the node, what was found and what was expected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxlr.verification import Report

__all__ = [
    "DataError",
    "ExitCode",
    "GoalNotMetError",
    "LibraryError",
    "LibraryMissingError",
    "MissingExtraError",
    "ModelError",
    "NothingGainedError",
    "NothingRewrittenError",
    "OnnxlrError",
    "OnnxlrWarning",
    "OutputError",
    "PlanError",
    "RuntimeFailureError",
    "ScratchError",
    "TrainingError",
    "UsageError",
    "VerificationError",
    "check_known",
    "expected_one_of",
    "nearest",
]


class ExitCode(IntEnum):
    """What a finished command tells the shell."""

    DONE = 0
    VERIFICATION_FAILED = 1
    USAGE = 2
    MODEL = 3
    NOTHING_REWRITTEN = 4
    DEFECT = 70
    INTERRUPTED = 130


class OnnxlrWarning(UserWarning):
    """Something onnxlr did as asked although it advises against it."""


class OnnxlrError(Exception):
    """Base of all errors that are not a defect of onnxlr."""

    exit_code = ExitCode.DEFECT


class UsageError(OnnxlrError):
    """An argument that cannot be followed: unknown method, pattern without a match, bad budget."""

    exit_code = ExitCode.USAGE


class MissingExtraError(UsageError, ImportError):
    """Something was asked that needs a package which is not installed."""


class DataError(UsageError):
    """Input data that does not fit the model: missing input, wrong dtype or shape, unreadable."""


class TrainingError(UsageError):
    """Training that cannot go on: a loss that is no finite number, a checkpoint of another run."""


class PlanError(UsageError):
    """A plan that cannot be read, or that was made for another model."""


class OutputError(UsageError):
    """An output path that cannot be written, or that is the input."""


class ScratchError(OutputError):
    """Temporary files that cannot be written, as where their disk is full.

    Attributes
    ----------
    reason
        What the system says.
    """

    def __init__(self, reason: str) -> None:
        try:
            folder = tempfile.gettempdir()
        except OSError:
            folder = "the system's folder for them"
        super().__init__(
            f"{folder}: temporary files cannot be written there ({reason}); make room, or let "
            "TMPDIR name a folder that has some"
        )
        self.reason = reason


class ModelError(OnnxlrError):
    """A model that cannot be handled: unreadable, invalid, NaN weights, shapes that disagree."""

    exit_code = ExitCode.MODEL


class RuntimeFailureError(ModelError):
    """A model that ONNX Runtime cannot load or run on the inputs it was given."""


class LibraryError(ModelError):
    """The op library cannot be used: it cannot be loaded, or is not where it should be."""


class LibraryMissingError(LibraryError):
    """There is no op library: none was built when onnxlr was installed, or it is turned off."""


class NothingRewrittenError(OnnxlrError):
    """No layer was rewritten although a change was required."""

    exit_code = ExitCode.NOTHING_REWRITTEN


class VerificationError(OnnxlrError):
    """The rewritten model's outputs do not agree with the original's.

    Attributes
    ----------
    report
        All comparisons, the failed checks and the drift at each rewritten layer; None where it did
        not come to that.
    result
        What was made: a `RewriteResult` where a rewrite failed, a `TuneResult` from `tune`; None
        from `verify`.
    """

    exit_code = ExitCode.VERIFICATION_FAILED

    def __init__(self, message: str, report: Report | None, result: Any = None) -> None:
        super().__init__(message)
        self.report = report
        self.result = result


class NothingGainedError(VerificationError):
    """Training that made a model no better on held-out data; nothing was written."""

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message, None, result)


class GoalNotMetError(VerificationError):
    """No plan does what was asked of the model as a whole; `result` says what came nearest."""

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message, None, result)


def expected_one_of(known: Iterable[str], given: str) -> str:
    """Return the end of a message on a name that is none of those known: the nearest, or all.

    Parameters
    ----------
    known
        Names that would do.
    given
        What was given.
    """
    names = list(known)
    near = nearest(names, given)
    return f"expected one of {', '.join(names)}" if near is None else f"did you mean '{near}'?"


def check_known(what: str, value: str, known: Iterable[str]) -> None:
    """Refuse a value that is none of those known.

    Parameters
    ----------
    what
        The value is of.
    value
        What was given.
    known
        Values that would do.

    Raises
    ------
    UsageError
        Naming the nearest, or all.
    """
    names = list(known)
    if value not in names:
        raise UsageError(f"{what} '{value}' is unknown; {expected_one_of(names, value)}")


def nearest(known: Iterable[str], given: str) -> str | None:
    """Return the name that was probably meant; None where none is near, or several are as near."""
    near = get_close_matches(given.lower(), list(known), n=2)
    likeness = [SequenceMatcher(None, given.lower(), name).ratio() for name in near]
    return near[0] if near and likeness.count(likeness[0]) == 1 else None
