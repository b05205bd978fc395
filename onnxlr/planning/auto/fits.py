"""Fits of layers in child processes, several layers side by side.

A process gets the weight and what is known of its inputs, nothing of the model. Arrays and chains
pass between processes as pickles in a folder of the planner's own, which nobody else writes to.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.evidence import Evidence
from onnxlr.methods import Fit, Options, Recipe, Setting, find_method, fit_best
from onnxlr.runtime import run_tasks

__all__ = ["Fitting", "Order", "Wish", "fit_side_by_side", "perform", "usual_jobs"]


@dataclass(frozen=True)
class Wish:
    """What is asked of one layer's weight.

    Attributes
    ----------
    method, options, setting, recipe
        As `fit_best` takes them, the method by its name.
    """

    method: str
    options: Options
    setting: Setting
    recipe: Recipe


@dataclass(frozen=True)
class Order:
    """One layer's work.

    Attributes
    ----------
    weight, evidence
        Of the layer.
    wishes
        What is asked.
    """

    weight: npt.NDArray[Any]
    evidence: Evidence
    wishes: Sequence[Wish]


@dataclass(frozen=True)
class Fitting:
    """A task: fit one layer's weight in some ways.

    Attributes
    ----------
    file
        File of the order; the results take its place.
    """

    file: str
    function: ClassVar[str] = "onnxlr.planning.auto.fits:perform"


def perform(file: str) -> dict[str, Any]:
    """Do what an order asks, as `Fitting` says."""
    path = Path(file)
    order: Order = pickle.loads(path.read_bytes())  # noqa: S301  (of the planner's own folder)
    found: list[Fit | str] = []
    for wish in order.wishes:
        method = find_method(wish.method)
        try:
            found.append(
                fit_best(
                    method, order.weight, wish.options, wish.setting, order.evidence, wish.recipe
                )
            )
        except UsageError as error:
            found.append(str(error))
    path.write_bytes(pickle.dumps(found))
    return {}


def fit_side_by_side(
    orders: Iterator[Order], folder: Path, name: str, jobs: int, isolate: bool
) -> Iterator[tuple[int, list[Fit | str]]]:
    """Yield the number of each order that is done, with a fit, or why there is none, for each wish.

    Parameters
    ----------
    orders
        Asked for one after the other, and kept on disk.
    folder
        Of the files.
    name
        What messages call the model.
    jobs
        Processes at a time.
    isolate
        Whether to use child processes at all.

    Raises
    ------
    RuntimeFailureError
        If a process dies.
    """
    tasks = []
    for number, order in enumerate(orders):
        file = folder / f"order-{number:06}.pickle"
        file.write_bytes(pickle.dumps(order))
        tasks.append(Fitting(str(file)))
    for number, _ in run_tasks(tasks, name, jobs, isolate):
        file = Path(tasks[number].file)
        found: list[Fit | str] = pickle.loads(file.read_bytes())  # noqa: S301
        file.unlink()
        yield number, found


def usual_jobs() -> int:
    """Return how many processes run side by side where nothing is asked: one a processor."""
    return os.cpu_count() or 1
