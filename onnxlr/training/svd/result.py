"""What SVD training reached, and the files that it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxlr.errors import OutputError, UsageError
from onnxlr.model import Model
from onnxlr.model.saving import check_output
from onnxlr.training.loop import Course, Outcome
from onnxlr.training.svd.request import SvdLayer

if TYPE_CHECKING:
    from onnxlr.delivery import RewriteResult

__all__ = ["SvdFiles", "SvdResult", "SvdStage", "SvdTrained"]


@dataclass(frozen=True)
class SvdFiles:
    """What is written.

    Attributes
    ----------
    output
        The model with factors.
    dense
        The same with dense weights, which it is proved against; None if it is not wanted.
    checkpoint
        What the names of both stages' checkpoints begin with.
    """

    output: Path
    dense: Path | None
    checkpoint: Path

    @classmethod
    def of(
        cls,
        source: Model,
        output: str | Path | None,
        dense: str | Path | None,
        checkpoint: str | Path | None,
    ) -> SvdFiles:
        """Return the files, with the usual names where none are given.

        Raises
        ------
        UsageError
            If the model has no file beside which the output could lie.
        """
        if output is not None:
            file = Path(output)
        elif source.path is not None:
            file = source.path.with_suffix(".onnxlr.onnx")
        else:
            raise UsageError("a model without a file needs an output path")
        kept = file.with_name(f"{file.name}.checkpoint") if checkpoint is None else Path(checkpoint)
        return cls(file, None if dense is None else Path(dense), kept)

    def stages(self) -> tuple[Path, Path]:
        """Return the files of both checkpoints."""
        first, second = (
            self.checkpoint.with_name(f"{self.checkpoint.name}.{stage}") for stage in (1, 2)
        )
        return first, second

    def check(self, source: Model, *read: Path) -> None:
        """Refuse to write over anything that is read, or two things to one place.

        Raises
        ------
        OutputError
            If that was to happen.
        """
        inputs = (source.path, *(source.directory / name for name in source.external_files()))
        files = [path for path in (self.output, self.dense, *self.stages()) if path is not None]
        for path in files:
            check_output(path, *inputs, *read)
        if len({path.resolve() for path in files}) < len(files):
            names = ", ".join(map(str, files))
            raise OutputError(f"{names}: expected different files for what is written")


@dataclass(frozen=True)
class SvdStage:
    """How a stage went.

    Attributes
    ----------
    name
        `sparsification` or `fine-tuning`.
    steps, seconds
        What it took.
    kept
        The step whose state was kept, the best by held-out data.
    stopped
        Why it ended.
    course
        All judgements. Those of sparsification have the penalties in them.
    """

    name: str
    steps: int
    seconds: float
    kept: int
    stopped: str
    course: tuple[Course, ...]

    @classmethod
    def of(cls, name: str, outcome: Outcome) -> SvdStage:
        """Return the stage of an outcome."""
        last = outcome.course[-1]
        return cls(
            name, last.step, last.seconds, outcome.best.step, outcome.stopped, outcome.course
        )


@dataclass(frozen=True)
class SvdTrained:
    """What training reached.

    Attributes
    ----------
    layers
        What became of each layer.
    stages
        What was trained.
    energy_loss
        Share of the energy that each layer was allowed to lose.
    judged_by
        `loss`, or `score`, of which more is better.
    before, sparse, cut, after
        Held-out data: of the model as it came; after the stage with penalties, None without one;
        right after ranks were cut; in the end.
    data
        What it was trained on.
    """

    layers: tuple[SvdLayer, ...]
    stages: tuple[SvdStage, ...]
    energy_loss: float
    judged_by: str
    before: float
    sparse: float | None
    cut: float
    after: float
    data: str


@dataclass(frozen=True)
class SvdResult:
    """A finished SVD training.

    Attributes
    ----------
    training
        What training reached.
    rewriting
        How the trained model was written with factors, and the proof against its dense weights.
    dense
        The file of the trained model with dense weights, if it was kept.
    """

    training: SvdTrained
    rewriting: RewriteResult
    dense: Path | None
