"""Divides calibration data into the part that factors are fitted to and the part they face."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxlr.calibration.data import Batches, DataSource, label_of, load_feeds
from onnxlr.calibration.signature import Feeds, InputSpec
from onnxlr.errors import UsageError
from onnxlr.runtime import read_arrays, store_arrays
from onnxlr.scratch import scratch

__all__ = ["Division", "check_holdout", "divide", "fitted", "held_out"]


@dataclass(frozen=True)
class Division:
    """Stored inputs.

    Attributes
    ----------
    files
        One `.npz` for each run.
    held
        For each of them, whether it is held out.
    description
        Where they come from, how many they are, what is held out.
    """

    files: tuple[str, ...]
    held: tuple[bool, ...]
    description: str


def check_holdout(holdout: float | DataSource) -> None:
    """Refuse a fraction outside [0, 1).

    Raises
    ------
    UsageError
        If it is one.
    """
    if isinstance(holdout, int | float) and not 0 <= holdout < 1:
        raise UsageError(
            f"a holdout of {holdout:g} was asked for, expected a fraction from 0 to less than 1, "
            "or data"
        )


def divide(
    folder: Path,
    data: DataSource,
    holdout: float | DataSource,
    specs: Sequence[InputSpec],
    batch: int,
) -> Division:
    """Store all inputs, one run after the other, and say which are held out.

    A fraction holds out whole runs, spread evenly over the data; where there is only one run, its
    samples become runs of their own if its arrays can be cut.

    Raises
    ------
    DataError
        As `load_feeds` does.
    """
    runs = _store(folder, "feed", load_feeds(data, specs, batch))
    if not isinstance(holdout, int | float):
        others = _store(folder, "holdout", load_feeds(holdout, specs, batch))
        held = [False] * len(runs) + [True] * len(others)
        words = f"{_counted(runs)}; {_counted(others)} held out, of {label_of(holdout)}"
        files = [run.file for run in (*runs, *others)]
        return Division(tuple(files), tuple(held), f"{label_of(data)}: {words}")
    if holdout and len(runs) == 1:
        feed = read_arrays(Path(runs[0].file))
        runs = _store(folder, "sample", load_feeds(feed, specs, 1))
    held = _spread(len(runs), holdout)
    chosen = [run for run, is_held in zip(runs, held, strict=True) if is_held]
    words = f"{_counted(runs)}; {_counted(chosen) if chosen else 'nothing'} held out"
    if holdout and not chosen:
        words += " (it is one run that cannot be divided)"
    return Division(tuple(run.file for run in runs), tuple(held), f"{label_of(data)}: {words}")


def held_out(
    data: DataSource, holdout: float | DataSource, specs: Sequence[InputSpec], batch: int, most: int
) -> Batches:
    """Return the first held-out runs, at most `most`; of all runs if none are held out.

    Raises
    ------
    DataError
        As `load_feeds` does.
    """
    return _first(data, holdout, specs, batch, most, held=True)


def fitted(
    data: DataSource, holdout: float | DataSource, specs: Sequence[InputSpec], batch: int, most: int
) -> Batches:
    """Return the first runs that are not held out, at most `most`.

    Raises
    ------
    DataError
        As `load_feeds` does.
    """
    return _first(data, holdout, specs, batch, most, held=False)


def _first(
    data: DataSource,
    holdout: float | DataSource,
    specs: Sequence[InputSpec],
    batch: int,
    most: int,
    held: bool,
) -> Batches:
    with scratch("onnxlr-held-out-") as folder:
        division = divide(folder, data, holdout, specs, batch)
        pairs = zip(division.files, division.held, strict=True)
        meant = [file for file, is_held in pairs if is_held == held]
        feeds = [read_arrays(Path(file)) for file in (meant or division.files)[:most]]
    words = "inputs (none are held out)" if held and not meant else "inputs"
    words = "held-out inputs" if held and meant else words
    return Batches(feeds, f"{words} of {label_of(data)}", are_fitted=not (held and meant))


@dataclass(frozen=True)
class _Run:
    """A stored run, and its samples if its arrays agree on how many they are."""

    file: str
    samples: int | None


def _store(folder: Path, name: str, feeds: Iterable[Feeds]) -> list[_Run]:
    runs = []
    for position, feed in enumerate(feeds):
        file = folder / f"{name}-{position:06}.npz"
        store_arrays(file, feed)
        sizes = {array.shape[:1] for array in feed.values()}
        agree = len(sizes) == 1 and () not in sizes
        runs.append(_Run(str(file), next(iter(sizes))[0] if agree else None))
    return runs


def _spread(count: int, fraction: float) -> list[bool]:
    """Return which of `count` runs are held out: at least one and not all, if there are two."""
    if not fraction or count < 2:
        return [False] * count
    chosen = min(max(round(fraction * count), 1), count - 1)
    return [(i + 1) * chosen // count > i * chosen // count for i in range(count)]


def _counted(runs: Sequence[_Run]) -> str:
    words = f"{len(runs)} run{'s' if len(runs) != 1 else ''}"
    samples = [run.samples for run in runs if run.samples is not None]
    if len(samples) < len(runs):
        return words
    return f"{words}, {sum(samples)} sample{'s' if sum(samples) != 1 else ''}"
