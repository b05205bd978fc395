"""Runs models on stored inputs and sums up their tapped tensors: what the child process does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx

from onnxlr.calibration.accumulation import (
    NotFiniteError,
    Ranges,
    Recipe,
    Source,
    Sums,
    masked_rows,
)
from onnxlr.calibration.taps import Tap, expose
from onnxlr.runtime import LEVELS, ExecutionError, open_runner, read_arrays, run_model, store_arrays

__all__ = ["SPLITS", "Watch", "watch"]

SPLITS = ("fit", "holdout")
"""The two parts of the inputs."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Watch:
    """Models to run side by side on the same inputs, and what to sum up.

    Attributes
    ----------
    models
        Model files.
    feeds
        Files of inputs, one `.npz` each.
    held
        For each of them, whether it belongs to the holdout.
    taps
        Tensors to hand out.
    recipes
        What to accumulate.
    outputs
        Further tensors whose ranges are wanted.
    mask
        Tap of the mask; None for none.
    results
        File for the sums: arrays `<recipe>.<split>.<part>` and `outputs.<split>.low`, `.high`, of
        the splits that have inputs.
    memory
        Bytes that the tapped tensors of a run may take.
    """

    models: Sequence[str]
    feeds: Sequence[str]
    held: Sequence[bool]
    taps: Sequence[Tap]
    recipes: Sequence[Recipe]
    outputs: Sequence[Source]
    mask: int | None
    results: str
    memory: int
    function: ClassVar[str] = "onnxlr.calibration.watching:watch"


def watch(
    models: Sequence[str],
    feeds: Sequence[str],
    held: Sequence[bool],
    taps: Sequence[Mapping[str, Any]],
    recipes: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    mask: int | None,
    results: str,
    memory: int,
) -> dict[str, Any]:
    """Run the models as `Watch` says and store the sums.

    Returns
    -------
    dict
        `activations`, the most bytes that the tapped tensors of a run took: if that is more than
        `memory`, nothing was stored. `not_finite`: None, or the tap, the run, and how many entries
        of how many. `unmasked`: recipes with data that the mask does not fit.

    Raises
    ------
    ExecutionError
        If a model cannot be loaded or run.
    """
    work = _Work(
        [_Model(file, number, [Tap(**tap) for tap in taps]) for number, file in enumerate(models)],
        [Recipe([Source.of(**s) for s in r["sources"]], r["groups"], r["inputs"]) for r in recipes],
        [Source.of(**source) for source in outputs],
        mask,
        [SPLITS[is_held] for is_held in sorted(set(held))],
    )
    answer: dict[str, Any] = {"activations": 0, "not_finite": None, "unmasked": []}
    for position, (file, is_held) in enumerate(zip(feeds, held, strict=True)):
        tensors = work.run(read_arrays(Path(file)), len(taps))
        size = sum(tensor.nbytes for tensor in tensors)
        answer["activations"] = max(size, answer["activations"])
        if size > memory:
            return answer
        try:
            work.add(tensors, SPLITS[is_held])
        except NotFiniteError as error:
            return {**answer, "not_finite": [error.tap, position, error.bad, error.size]}
    answer["unmasked"] = sorted(work.unmasked)
    store_arrays(Path(results), work.arrays())
    return answer


class _Model:
    """A loaded model with the taps that are its own."""

    def __init__(self, file: str, number: int, taps: Sequence[Tap]) -> None:
        self.positions = [i for i, tap in enumerate(taps) if tap.model == number]
        self._names: list[str] = []
        own = [taps[position] for position in self.positions]
        self._runner = open_runner(file, LEVELS[0], partial(self._expose, own))

    def run(self, feeds: dict[str, Array]) -> list[Any]:
        """Return the tapped tensors."""
        return run_model(self._runner, feeds, self._names)

    def _expose(self, taps: Sequence[Tap], proto: onnx.ModelProto) -> None:
        self._names = expose(proto, taps)


class _Work:
    """The models, and everything that is being summed up."""

    def __init__(
        self,
        models: Sequence[_Model],
        recipes: Sequence[Recipe],
        outputs: Sequence[Source],
        mask: int | None,
        splits: Sequence[str],
    ) -> None:
        self._models, self._outputs, self._mask = models, outputs, mask
        sites = [(s.tap, i, j) for i, r in enumerate(recipes) for j, s in enumerate(r.sources)]
        # in the order of the model, so that the first tensor that is not finite is the one named
        self._order = sorted([*sites, *((s.tap, i, None) for i, s in enumerate(outputs))], key=_tap)
        self._sums = {split: [Sums(recipe) for recipe in recipes] for split in splits}
        self._ranges = {split: Ranges(len(outputs)) for split in splits}
        self.unmasked = set[int]()

    def run(self, feeds: dict[str, Array], count: int) -> list[Array]:
        """Return the tapped tensors of all models."""
        tensors: list[Array] = [np.zeros(0)] * count
        for model in self._models:
            for position, value in zip(model.positions, model.run(feeds), strict=True):
                if not isinstance(value, np.ndarray | np.generic):
                    raise ExecutionError("a tapped value is no tensor")
                tensors[position] = np.asarray(value)
        return tensors

    def add(self, tensors: Sequence[Array], split: str) -> None:
        """Take in one run; raises NotFiniteError."""
        mask = None if self._mask is None else tensors[self._mask]
        for tap, index, site in self._order:
            if site is None:
                kept, _ = masked_rows(tensors[tap], self._outputs[index].geometry, mask)
                self._ranges[split].add(index, tap, kept)
            elif not self._sums[split][index].add(site, tensors, mask):
                self.unmasked.add(index)

    def arrays(self) -> dict[str, Array]:
        """Return all sums by name."""
        found: dict[str, Array] = {}
        for split, all_sums in self._sums.items():
            for index, sums in enumerate(all_sums):
                found |= sums.arrays(f"{index}.{split}.")
            found[f"outputs.{split}.low"] = self._ranges[split].low
            found[f"outputs.{split}.high"] = self._ranges[split].high
        return found


def _tap(step: tuple[int, int, int | None]) -> int:
    return step[0]
