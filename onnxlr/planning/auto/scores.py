"""What models lose against an original: by their outputs, or by a score of the user's own."""

from __future__ import annotations

import hashlib
import inspect
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from onnxlr.calibration.data import load_function
from onnxlr.errors import DataError, ModelError, RuntimeFailureError, UsageError
from onnxlr.planning.auto.goal import Limit
from onnxlr.progress import silent
from onnxlr.runtime import LEVELS, Job, run_job
from onnxlr.scratch import Scratch
from onnxlr.verification.comparison import Comparison
from onnxlr.verification.runs import Runs

__all__ = ["Scores", "content_of"]

_LEVEL = LEVELS[0]


def content_of(limit: Limit) -> str:
    """Return what the values of a measure are known by.

    A function of the user's changes with the file that it is written in; what it takes from other
    files is not seen.

    Raises
    ------
    DataError
        If the function cannot be found.
    """
    if not limit.is_function:
        return limit.measure
    function = load_function(limit.measure)
    try:
        code = Path(inspect.getfile(inspect.unwrap(function))).read_bytes()
    except (TypeError, OSError):  # built in, an object that can be called, or made on the fly
        return limit.measure
    return f"{limit.measure} {hashlib.sha256(code).hexdigest()}"


class Scores:
    """Compares models with an original, whose outputs and scores are found once.

    A context manager; the outputs lie in temporary files meanwhile.

    Parameters
    ----------
    original
        File of the model to compare with.
    feeds
        Files of inputs, on which outputs are compared.
    limits
        What is measured; how much may be lost plays no part.
    name
        What messages call the original.
    isolate
        Whether models run in child processes. Functions of the user's are called in this one.

    Raises
    ------
    RuntimeFailureError
        If the original cannot be loaded or run.
    ModelError
        If its outputs are not finite.
    UsageError
        If its outputs have not what a measure is about.
    DataError
        If there are no inputs; if a function cannot be found, fails on the original, or returns no
        finite number.
    """

    def __init__(
        self,
        original: Path,
        feeds: Sequence[str],
        limits: Sequence[Limit],
        name: str,
        isolate: bool = True,
    ) -> None:
        self._measures = [limit.measure for limit in limits if not limit.is_function]
        functions = [limit.measure for limit in limits if limit.is_function]
        self._functions = {source: load_function(source) for source in functions}
        self._feeds, self._isolate = list(feeds), isolate
        if self._measures and not self._feeds:
            raise DataError(f"{name}: there are no inputs on which outputs could be compared")
        self._folder = Scratch("onnxlr-scores-")
        try:
            self._runs = Runs(self._folder.path, isolate, silent, 0)
            self._outputs = self._run(original, "original", name)
            self._check(name)
            self._scores = {
                source: _score(source, function, original)
                for source, function in self._functions.items()
            }
        except BaseException:
            self._folder.remove()
            raise

    def __enter__(self) -> Scores:  # noqa: PYI034  (Self is of Python 3.11)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the outputs; nothing can be compared any more."""
        self._folder.remove()

    def drops(self, model: Path) -> dict[str, float] | str:
        """Return how much worse a model is, by measure, or why it cannot be told.

        0 is as good as the original, less is better than it. A model that cannot be loaded or run,
        whose outputs are not finite, or on which a function fails, gives a sentence.
        """
        try:
            self._run(model, "model", model.name)
            compared = self._compare("model") if self._measures else []
            found = {
                source: self._scores[source] - _score(source, function, model)
                for source, function in self._functions.items()
            }
        except RuntimeFailureError as error:
            return str(error).removeprefix(f"{model.name}: ")
        except DataError as error:
            return str(error)
        finally:
            shutil.rmtree(self._runs.folder / "model", ignore_errors=True)
        if faults := [one.fault for one in compared if one.fault]:
            return faults[0]
        return {measure: _drop(measure, compared) for measure in self._measures} | found

    def _run(self, model: Path, key: str, name: str) -> tuple[str, ...]:
        """Store a model's outputs and return their names."""
        job = Job(str(model), self._feeds, str(self._runs.folder / key), (_LEVEL,))
        return run_job(job, name, self._isolate).outputs

    def _compare(self, key: str) -> list[Comparison]:
        """Return how far the float outputs of a model are from the original's."""
        found = self._runs.compare(f"original/{_LEVEL}", f"{key}/{_LEVEL}", self._outputs)
        return [one for one in found if one.is_float]

    def _check(self, name: str) -> None:
        """Refuse an original whose outputs cannot be compared."""
        if not self._measures:
            return
        own = self._compare("original")
        for one in own:
            if one.original_non_finite:
                raise ModelError(
                    f"{name}: output '{one.output}' has {one.original_non_finite:,} NaN or "
                    "infinite entries on the data given, so that nothing can be compared with it"
                )
        for measure in self._measures:
            if not own or (measure == "top1" and all(one.top1 is None for one in own)):
                needed = "float output" + (" with rows of entries" if own else "")
                raise UsageError(
                    f"{name}: has no {needed}, which '{measure}' is about; "
                    "measure drops by a function of yours, module:function"
                )


def _drop(measure: str, compared: Sequence[Comparison]) -> float:
    """Return the loss of the output that is worst."""
    if measure == "relout":
        return max(one.relative_l2 for one in compared)
    if measure == "top1":
        return max(1 - one.top1 for one in compared if one.top1 is not None)
    # Of equal outputs the cosine may be 1 − 2⁻⁵³.
    return max(max(1 - one.cosine, 0.0) if one.relative_l2 > 0 else 0.0 for one in compared)


def _score(source: str, function: Callable[[str], Any], model: Path) -> float:
    """Return what a function of the user's says of a model."""
    try:
        found = function(str(model))
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{source}: failed with {type(error).__name__}: {reason}") from error
    try:
        if isinstance(found, str | bytes) or np.ndim(found) or np.iscomplexobj(found):
            raise TypeError
        number = float(found)
    except (TypeError, ValueError):
        raise DataError(
            f"{source}: returned {type(found).__name__}, expected a number that scores the model"
        ) from None
    if not np.isfinite(number):
        raise DataError(f"{source}: returned {number:g}, expected a finite number")
    return number
