"""Builds whole models out of chosen candidates, and measures whole models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from onnxlr.errors import OnnxlrError
from onnxlr.lowering import carry_functions, find_target, lower_layer
from onnxlr.model import Model, Splice, splice
from onnxlr.model.saving import data_file, write_model
from onnxlr.plan import Proposal
from onnxlr.planning.auto.goal import Limit
from onnxlr.planning.auto.outcomes import Measurement
from onnxlr.planning.auto.scores import Scores
from onnxlr.runtime import Latency, Race, measure_latency

__all__ = ["Whole", "file_bytes", "write_proposals"]


def write_proposals(
    model: Model, proposals: Iterable[Proposal], target: str, folder: Path, file: str
) -> Path:
    """Write a model with its layers rewritten as proposed, one by one; `model` is changed."""
    change, kind = Splice(), find_target(target)
    with data_file(model, folder, file) as model.data:
        for proposal in proposals:
            if proposal.chain is None:
                continue
            own = lower_layer(
                proposal.layer,
                proposal.chain,
                model,
                model.names,
                kind,
                proposal.choice.activations,
                proposal.adjustments,
            )
            change.merge(own.moved_to(model.data))
        splice(model, change)
        carry_functions(model.proto)
        write_model(model, folder, file)
    return folder / file


def file_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder that holds one model."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


@dataclass
class Whole:
    """What whole models are measured by.

    Attributes
    ----------
    original
        File of the original.
    bytes
        Of its files.
    name
        What messages call it.
    feeds
        Files of inputs that outputs are compared on.
    timed
        Files of inputs that models are timed on, one sample each.
    limits
        What is measured beside size and time.
    isolate
        Whether models run in child processes.
    """

    original: Path
    bytes: int
    name: str
    feeds: Sequence[str]
    timed: Sequence[str]
    limits: Sequence[Limit]
    isolate: bool
    _scores: Scores | None = None

    def __enter__(self) -> Whole:  # noqa: PYI034  (Self is of Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        if self._scores is not None:
            self._scores.close()

    def race(self, models: Sequence[Path]) -> list[Latency] | str:
        """Time models against the original, which comes first; or say why that cannot be."""
        files = [str(self.original), *map(str, models)]
        return measure_latency([Race(files, self.timed)], self.name, self.isolate)[0]

    def drops(self, model: Path) -> dict[str, float] | str:
        """Return by measure how much worse a model is than the original, or why it cannot run."""
        if self._scores is None:
            self._scores = Scores(self.original, self.feeds, self.limits, self.name, self.isolate)
        return self._scores.drops(model)

    def measure(
        self,
        write: Callable[[Path], Path],
        folder: Path,
        beside: Sequence[tuple[Path, float]] = (),
    ) -> Measurement:
        """Write a model into a folder of its own and measure it.

        Parameters
        ----------
        beside
            Models that it is to be compared with, each with the part of the original's time that
            was measured before. They run in the same race, where all take the caches from each
            other, and are its yardstick: what they take now tells how races differ.
        """
        try:
            file = write(folder)
            drops = self.drops(file)
            if isinstance(drops, str):
                return Measurement(problem=drops)
            times = self.race([file, *(other for other, _ in beside)])
        except OnnxlrError as error:
            return Measurement(problem=str(error))
        if isinstance(times, str):
            return Measurement(problem=times)
        drifts = [known / now.ratio for (_, known), now in zip(beside, times[2:], strict=True)]
        latency = times[1].ratio * (fmean(drifts) if drifts else 1.0)
        return Measurement(file_bytes(folder) / self.bytes, latency, drops)
