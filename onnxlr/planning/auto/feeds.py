"""The inputs that the planner runs models on, as files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from onnxlr.calibration import Feeds, Sources
from onnxlr.model import Model
from onnxlr.runtime import store_arrays

__all__ = ["FeedFiles"]

_COMPARED = 8
"""Most held-out runs that models are compared on."""

_TIMED = 4
"""Most held-out samples that models are timed on, each a run of its own."""

_TRIED = 4
"""Most held-out runs that sensitivities are measured on."""

_CAPTURED = 2
"""Most held-out runs whose tensors candidates are measured on, beside the one they are timed on."""

_CALIBRATED = 16
"""Most runs that ONNX Runtime's own tools calibrate on."""


@dataclass(frozen=True)
class FeedFiles:
    """Files of inputs, one for each run.

    Attributes
    ----------
    compared, timed
        Held-out runs that whole models are compared on, and single samples that they are timed on.
    fitted
        Runs that are not held out.
    content
        Hash of all that is in them.
    """

    compared: tuple[str, ...] = ()
    timed: tuple[str, ...] = ()
    fitted: tuple[str, ...] = ()
    content: str = ""

    @property
    def tried(self) -> tuple[str, ...]:
        """Runs that sensitivities are measured on."""
        return self.compared[:_TRIED]

    @property
    def captured(self) -> tuple[str, ...]:
        """Runs whose tensors candidates are measured on: first the one they are timed on."""
        return self.timed[:1] + self.compared[:_CAPTURED]

    @classmethod
    def store(cls, folder: Path, model: Model, sources: Sources) -> FeedFiles:
        """Store inputs of the calibration data in a new folder; there are none without any."""
        if sources.calibration is None:
            return cls()
        folder.mkdir()
        compared = _store(folder, "compared", sources.held_out(model, _COMPARED))
        timed = _store(folder, "timed", sources.held_out(model, _TIMED, samples=1))
        fitted = _store(folder, "fitted", sources.fitted(model, _CALIBRATED))
        digest = sha256()
        for file in (*compared, *timed, *fitted):
            digest.update(Path(file).read_bytes())
        return cls(compared, timed, fitted, digest.hexdigest())


def _store(folder: Path, name: str, feeds: Iterable[Feeds]) -> tuple[str, ...]:
    files = []
    for position, feed in enumerate(feeds):
        file = folder / f"{name}-{position:06}.npz"
        store_arrays(file, feed)
        files.append(str(file))
    return tuple(files)
