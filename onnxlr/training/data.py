"""Batches to train on, and those to judge by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.calibration import DataSource, InputSpec, label_of, load_feeds
from onnxlr.errors import DataError

__all__ = ["Arrays", "TrainingData", "read_training_data", "samples_of"]

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TrainingData:
    """Samples in memory, as arrays by name: inputs of the model, and what lies beside them.

    Attributes
    ----------
    pieces
        Where all samples have the same shape, one piece of all of them; else the batches as they
        were given.
    batch
        Samples of a batch that is cut from a piece; None where pieces are batches.
    held
        Batches to judge by; nothing is trained on them.
    description
        Where they come from and how many they are.
    """

    pieces: tuple[Arrays, ...]
    batch: int | None
    held: tuple[Arrays, ...]
    description: str

    def epoch(self, generator: np.random.Generator) -> Iterator[Arrays]:
        """Yield all batches once, in an order that is drawn."""
        if self.batch is None:
            for place in generator.permutation(len(self.pieces)):
                yield self.pieces[place]
            return
        (piece,) = self.pieces
        count = len(next(iter(piece.values())))
        order = generator.permutation(count)
        size = min(self.batch, count)
        for start in range(0, count - size + 1, size):  # a last batch of few would count as much
            taken = np.sort(order[start : start + size])
            yield {name: array[taken] for name, array in piece.items()}

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        if self.batch is None:
            return len(self.pieces)
        count = len(next(iter(self.pieces[0].values())))
        return count // min(self.batch, count)

    def cut(self) -> Iterator[Arrays]:
        """Yield what is trained on in its own order, each sample once."""
        for piece in self.pieces:
            yield from (piece,) if self.batch is None else _cut(piece, self.batch)

    def beside(self, made: Callable[[Arrays], Arrays]) -> TrainingData:
        """Return the same data with more arrays beside the inputs, made batch by batch.

        Parameters
        ----------
        made
            Returns arrays for a batch, whose first dimension counts samples where pieces are cut.

        Raises
        ------
        ValueError
            If it does not.
        """
        found = [made(batch) for batch in self.cut()]
        if self.batch is None:
            joined = [{**piece, **more} for piece, more in zip(self.pieces, found, strict=True)]
            return replace(self, pieces=tuple(joined))
        (piece,) = self.pieces
        more = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
        count = samples_of(piece)
        if any(len(array) != count for array in more.values()):
            raise ValueError("an array has another number of samples than the inputs")
        return replace(self, pieces=({**piece, **more},))

    @cached_property
    def sha256(self) -> str:
        """Hash of all arrays with their names, trained on or held out."""
        digest = hashlib.sha256()
        for piece in (*self.pieces, {}, *self.held):
            for name, array in sorted(piece.items()):
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
            digest.update(b";")
        return digest.hexdigest()


def read_training_data(
    source: DataSource,
    specs: Sequence[InputSpec],
    batch: int,
    holdout: float | DataSource,
    seed: int = 0,
    beside: bool = True,
) -> TrainingData:
    """Read samples and divide them.

    Parameters
    ----------
    source
        As `load_feeds` takes it; arrays that the model has no input for are kept for the loss.
    specs
        The model's inputs.
    batch
        Most samples of a batch. Where the model asks for a fixed number of them, batches have that.
    holdout
        Fraction of the samples (of the batches, where their shapes differ) to judge by, above 0 and
        below 1; or data of its own.
    seed
        Of what is held out.
    beside
        Whether arrays that the model has no input for are kept.

    Raises
    ------
    DataError
        If the data cannot be read or does not fit, the model has no inputs, what lies beside the
        inputs is not one row for each sample, or nothing is left to train on or to judge by.
    """
    if batch < 1:
        raise DataError(f"a batch of {batch} samples was asked for, expected 1 or more")
    if not specs:
        raise DataError(f"{label_of(source)}: the model takes no inputs, so that no sample matters")
    runs = _runs(source, specs, batch, beside)
    firsts = _fixed_sizes(specs)
    piece = _pooled(runs) if len(firsts) < 2 else None
    fixed = next(iter(firsts)) if piece is not None else None
    batch = fixed or batch
    generator = np.random.default_rng(seed)
    if not isinstance(holdout, int | float):
        held = _runs(holdout, specs, batch, beside)
    elif not 0 < holdout < 1:
        raise DataError(
            f"a holdout of {holdout:g} was asked for, expected a fraction above 0 and below 1, or "
            "data: without inputs that were not trained on nobody knows when to stop"
        )
    elif piece is not None:
        piece, apart = _divided(piece, holdout, generator, label_of(source), fixed or 1)
        held = list(_cut(apart, batch))
    else:
        chosen = _chosen(len(runs), holdout, generator, label_of(source), "batches")
        held = [run for run, is_held in zip(runs, chosen, strict=True) if is_held]
        runs = [run for run, is_held in zip(runs, chosen, strict=True) if not is_held]
    counts = [len(piece[next(iter(piece))])] if piece is not None else map(samples_of, runs)
    words = f"{sum(counts)} samples, {sum(map(samples_of, held))} held out"
    pieces = (piece,) if piece is not None else tuple(runs)
    return TrainingData(
        pieces, batch if piece is not None else None, tuple(held), f"{label_of(source)}: {words}"
    )


def _runs(source: DataSource, specs: Sequence[InputSpec], batch: int, beside: bool) -> list[Arrays]:
    runs = list(load_feeds(source, specs, batch, beside=beside))
    inputs = [spec.name for spec in specs]
    for run in runs:
        counts = {run[name].shape[:1] for name in inputs}
        if len(counts) != 1 or counts == {()}:
            continue  # not all inputs count samples
        ((count,),) = counts
        for name, array in run.items():
            if name not in inputs and array.ndim and len(array) != count:
                raise DataError(
                    f"{label_of(source)}: '{name}' has shape {list(array.shape)}, expected a first "
                    f"dimension of {count}: one entry for each sample of the inputs"
                )
    return runs


def _pooled(runs: Sequence[Arrays]) -> Arrays | None:
    """Return all samples in one array for each name; None if their shapes differ."""
    shapes = {
        tuple((name, array.shape[1:], array.ndim > 0) for name, array in sorted(run.items()))
        for run in runs
    }
    agree = all(len({array.shape[:1] for array in run.values()}) == 1 for run in runs)
    if len(shapes) != 1 or not agree or not all(ranked for _, _, ranked in next(iter(shapes))):
        return None
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def _fixed_sizes(specs: Sequence[InputSpec]) -> set[int | None]:
    """Return how many samples the inputs ask for at once, None where that is open."""
    firsts = [None if spec.dims is None else next(iter(spec.dims), None) for spec in specs]
    return {first if isinstance(first, int) and first > 0 else None for first in firsts}


def _divided(
    piece: Arrays, fraction: float, generator: np.random.Generator, label: str, unit: int
) -> tuple[Arrays, Arrays]:
    what = "samples" if unit == 1 else f"batches of {unit} samples"
    held = np.array(_chosen(samples_of(piece), fraction, generator, label, what, unit))
    return (
        {name: array[~held] for name, array in piece.items()},
        {name: array[held] for name, array in piece.items()},
    )


def _chosen(
    count: int,
    fraction: float,
    generator: np.random.Generator,
    label: str,
    what: str,
    unit: int = 1,
) -> list[bool]:
    """Return what is held out, a multiple of so many."""
    units = count // unit
    if units < 2:
        raise DataError(
            f"{label}: the number of {what} is {units}, expected some to train on and others to "
            "judge by (--holdout takes data of its own)"
        )
    taken = min(max(round(fraction * units), 1), units - 1) * unit
    order = set(generator.permutation(count)[:taken].tolist())
    return [place in order for place in range(count)]


def _cut(piece: Arrays, batch: int) -> Iterator[Arrays]:
    count = len(next(iter(piece.values())))
    for start in range(0, count, batch):
        yield {name: array[start : start + batch] for name, array in piece.items()}


def samples_of(run: Arrays) -> int:
    """Return how many samples a batch has: the longest first dimension."""
    return max((len(array) for array in run.values() if array.ndim), default=1)
