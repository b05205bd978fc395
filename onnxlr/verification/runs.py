"""Runs models on stored inputs and reads back what they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.calibration import Feeds
from onnxlr.progress import Progress
from onnxlr.runtime import LEVELS, Job, Outcome, read_arrays, run_job, run_task, store_arrays
from onnxlr.verification.comparison import Comparison, compare
from onnxlr.verification.ternary import NodesAlone

__all__ = ["Runs"]

_LOCAL_RUNS = 4
"""Runs whose tensors are stored for comparing layers one by one."""


class Runs:
    """Runs models on stored feeds and reads back their outputs."""

    def __init__(self, folder: Path, isolate: bool, progress: Progress, total: int) -> None:
        self.folder, self._isolate = folder, isolate
        self._progress, self.total, self._done = progress, total, 0

    def store(self, feeds: Iterable[Feeds], name: str = "feed") -> list[str]:
        """Write feeds to files and return their names."""
        files = []
        for position, feed in zip(count(), feeds, strict=False):
            file = self.folder / f"{name}-{position:06}.npz"
            store_arrays(file, feed)
            files.append(str(file))
        return files

    def model(
        self,
        file: Path,
        name: str,
        key: str,
        feeds: Sequence[str],
        taps: Sequence[str] = (),
        kernels: bool = True,
    ) -> Outcome:
        """Run a model at every level; its outputs go under `key`.

        `kernels` is False to run onnxlr's operators as functions.
        """
        self._progress("verifying", self._done, self.total)
        levels = LEVELS if not taps else LEVELS[:1]
        job = Job(str(file), feeds, str(self.folder / key), levels, taps, kernels)
        outcome = run_job(job, name, self._isolate)
        self._done += not taps
        return outcome

    def tap(
        self, file: Path, name: str, level: str, feeds: Sequence[str], taps: Sequence[str]
    ) -> list[dict[str, npt.NDArray[Any]]]:
        """Return some tensors of a model on the first feeds, by name."""
        some, key = feeds[:_LOCAL_RUNS], f"taps-{level}"
        outcome = run_job(
            Job(str(file), some, str(self.folder / key), (level,), taps), name, self._isolate
        )
        found = []
        for position, feed in enumerate(some):
            stored = read_arrays(self.folder / key / level / f"{position:06}.npz")
            named = {outcome.outputs[int(k)]: a for k, a in stored.items() if k.isdigit()}
            found.append({**read_arrays(Path(feed)), **named})
        return found

    def pieces(
        self,
        file: Path,
        data: Sequence[Mapping[str, npt.NDArray[Any]]],
        inputs: Mapping[str, str],
        level: str,
    ) -> list[list[npt.NDArray[Any]]]:
        """Return the outputs of a model of pieces on tensors of another."""
        key = f"pieces-{level}"
        feeds = self._store_tapped(data, inputs, key)
        job = Job(str(file), feeds, str(self.folder / key), (level,))
        run_job(job, "the reference model", self._isolate)
        return self._stored(self.folder / key / level, len(feeds))

    def ternary_nodes(
        self,
        file: Path,
        name: str,
        data: Sequence[Mapping[str, npt.NDArray[Any]]],
        inputs: Mapping[str, str],
        level: str,
    ) -> list[list[npt.NDArray[Any]]]:
        """Return what a model's ternary nodes give by their functions, each alone on its data."""
        key = f"nodes-{level}"
        feeds = self._store_tapped(data, inputs, key)
        results = self.folder / key
        run_task(NodesAlone(str(file), feeds, str(results), level), name, self._isolate)
        return self._stored(results, len(feeds))

    def _store_tapped(
        self,
        data: Sequence[Mapping[str, npt.NDArray[Any]]],
        inputs: Mapping[str, str],
        name: str,
    ) -> list[str]:
        """Write tensors of one model as inputs of another, and return the files' names."""
        return self.store(
            ({own: arrays[theirs] for own, theirs in inputs.items()} for arrays in data), name
        )

    @staticmethod
    def _stored(folder: Path, count: int) -> list[list[npt.NDArray[Any]]]:
        """Return the outputs of so many runs."""
        files = (folder / f"{position:06}.npz" for position in range(count))
        return [list(read_arrays(file).values()) for file in files]

    def compare(self, expected: str, found: str, outputs: Sequence[str]) -> list[Comparison]:
        """Compare what two runs stored, `key/level` each, output by output."""
        return [
            comparison
            for position, output in enumerate(outputs)
            for comparison in self._compare_output(expected, found, output, position)
        ]

    def _compare_output(
        self, expected: str, found: str, output: str, position: int
    ) -> Iterator[Comparison]:
        files = sorted((self.folder / expected).glob("*.npz"))
        keys: dict[str, None] = {}
        for file in files:
            with np.load(file) as arrays:
                keys |= dict.fromkeys(
                    k for k in arrays.files if k.partition(".")[0] == str(position)
                )
        for key in keys:
            part = key.partition(".")[2]
            label = f"{output}[{part}]" if part else output
            yield compare(label, self._pairs(files, found, key))

    def _pairs(
        self, files: Sequence[Path], found: str, key: str
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        for file in files:
            with np.load(file) as one, np.load(self.folder / found / file.name) as other:
                if key in one.files or key in other.files:
                    empty = np.zeros(0, np.float32)
                    yield (
                        one[key] if key in one.files else empty,
                        other[key] if key in other.files else empty,
                    )
