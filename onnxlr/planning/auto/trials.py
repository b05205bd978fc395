"""Small models beside the original layer's: how far apart they are, and how long they take.

Many share one child process. Where that dies, the models are tried in halves, so that whichever
kills it is the only one that is not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxlr.errors import RuntimeFailureError
from onnxlr.runtime import (
    LEVELS,
    ExecutionError,
    Latency,
    Race,
    measure_latency,
    open_runner,
    read_arrays,
    run_model,
    run_task,
)

__all__ = ["Comparisons", "Group", "Trial", "compare", "distances", "time_trials"]

_WORST = 1e3
"""Error of outputs that overflow, or of any where zeros are expected."""

Array = npt.NDArray[Any]

Values = dict[str, dict[str, Any]]
"""By the key of a trial one value: `error`, `seconds` or `ratio`, or the `problem` instead."""


@dataclass(frozen=True)
class Group:
    """An original layer.

    Attributes
    ----------
    original
        File of the small model.
    feeds
        Files of inputs: what models are timed on, then what they are compared on.
    """

    original: str
    feeds: tuple[str, ...]

    @property
    def compared(self) -> tuple[str, ...]:
        """The inputs that outputs are compared on; where there is one run only, that one."""
        return self.feeds[1:] or self.feeds


@dataclass(frozen=True)
class Trial:
    """A small model to measure.

    Attributes
    ----------
    group
        What it takes the place of.
    key
        What it is called in the answer.
    model
        Its file; that of the original for the original itself.
    """

    group: Group
    key: str
    model: str


@dataclass(frozen=True)
class Comparisons:
    """A task: run models on the same inputs as an original.

    Attributes
    ----------
    originals
        Files of the originals.
    models
        For each of them the files of the models.
    feeds
        For each of them the files of inputs.
    """

    originals: Sequence[str]
    models: Sequence[Sequence[str]]
    feeds: Sequence[Sequence[str]]
    function: ClassVar[str] = "onnxlr.planning.auto.trials:distances"


def compare(trials: Sequence[Trial], name: str, isolate: bool = True) -> Values:
    """Return the `error` of each trial: the relative L2 distance of the outputs, over all feeds.

    Parameters
    ----------
    name
        What messages call the model.
    isolate
        Whether to use child processes.
    """

    def work(some: Sequence[Trial]) -> Values:
        groups = _grouped(some)
        task = Comparisons(
            [group.original for group in groups],
            [[trial.model for trial in own] for own in groups.values()],
            [group.compared for group in groups],
        )
        values: Values = {}
        answers = run_task(task, name, isolate)["distances"]
        for own, answer in zip(groups.values(), answers, strict=True):
            for trial, found in zip(own, answer, strict=True):
                kind = "problem" if isinstance(found, str) else "error"
                values[trial.key] = {kind: found}
        return values

    return _in_parts(trials, work)


def time_trials(trials: Sequence[Trial], name: str, isolate: bool = True) -> Values:
    """Return the `seconds` of originals, and for other trials the `ratio` to theirs.

    Each group is a race on the first of its feeds, on one thread.

    Parameters
    ----------
    name
        What messages call the model.
    isolate
        Whether to use child processes.
    """

    def work(some: Sequence[Trial]) -> Values:
        groups = _grouped(some)
        races = [
            Race([group.original, *(trial.model for trial in _others(own))], group.feeds[:1])
            for group, own in groups.items()
        ]
        values: Values = {}
        for own, found in zip(groups.values(), measure_latency(races, name, isolate), strict=True):
            if not isinstance(found, str):
                values |= _times(own, found)
            elif len(own) == 1:
                values[own[0].key] = {"problem": found}
            else:  # one of them cannot be timed, which is no fault of the others
                for trial in own:
                    values |= work([trial])
        return values

    return _in_parts(trials, work)


def _grouped(trials: Iterable[Trial]) -> dict[Group, list[Trial]]:
    groups: dict[Group, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.group, []).append(trial)
    return groups


def _others(trials: Iterable[Trial]) -> list[Trial]:
    """Return the trials of a group that are not the original itself."""
    return [trial for trial in trials if trial.model != trial.group.original]


def _times(trials: Sequence[Trial], found: Sequence[Latency]) -> Values:
    values: Values = {
        trial.key: {"ratio": latency.ratio}
        for trial, latency in zip(_others(trials), found[1:], strict=True)
    }
    own = [trial for trial in trials if trial.model == trial.group.original]
    return values | {trial.key: {"seconds": found[0].seconds} for trial in own}


def _in_parts(trials: Sequence[Trial], work: Callable[[Sequence[Trial]], Values]) -> Values:
    """Do work on all trials; on halves of them where the process that does it dies."""
    if not trials:
        return {}
    try:
        return work(trials)
    except RuntimeFailureError as error:
        if len(trials) == 1:
            return {trials[0].key: {"problem": str(error)}}
    half = len(trials) // 2
    return _in_parts(trials[:half], work) | _in_parts(trials[half:], work)


def distances(
    originals: Sequence[str], models: Sequence[Sequence[str]], feeds: Sequence[Sequence[str]]
) -> Mapping[str, Any]:
    """Compare models as `Comparisons` says.

    Returns
    -------
    dict
        `distances`: for each original those of its models, or why one cannot be run.
    """
    rows = zip(originals, models, feeds, strict=True)
    return {"distances": [_compare(*row) for row in rows]}


def _compare(original: str, models: Sequence[str], feeds: Sequence[str]) -> list[float | str]:
    inputs = [read_arrays(Path(feed)) for feed in feeds]
    expected = _outputs(original, inputs)
    if isinstance(expected, str):
        return [f"the original layer alone: {expected}" for _ in models]
    made = (_outputs(model, inputs) for model in models)
    return [found if isinstance(found, str) else _distance(expected, found) for found in made]


def _outputs(model: str, inputs: Sequence[dict[str, Array]]) -> list[Array] | str:
    """Return a model's output in each run, or why it cannot be run."""
    try:
        runner = open_runner(model, LEVELS[0])
        return [np.asarray(run_model(runner, feed)[0]) for feed in inputs]
    except ExecutionError as error:
        return str(error)


def _distance(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """Return `‖y − ŷ‖ / ‖y‖` over all runs, of the entries where y is finite."""
    wrong = norm = 0.0
    for one, other in zip(expected, found, strict=True):
        reference = np.asarray(one, np.float64)
        counts = np.isfinite(reference)
        difference = np.asarray(other, np.float64)[counts] - reference[counts]
        wrong += float(np.nan_to_num(np.square(difference), nan=np.inf, posinf=np.inf).sum())
        norm += float(np.square(reference[counts]).sum())
    if wrong == 0:
        return 0.0
    return min(sqrt(wrong / norm), _WORST) if norm > 0 else _WORST
