"""The files that training writes: where they are, what they must not be, when they go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxlr.errors import OutputError, UsageError
from onnxlr.model import Model
from onnxlr.model.saving import check_output

__all__ = ["TrainingFiles"]


@dataclass(frozen=True)
class TrainingFiles:
    """What is written.

    Attributes
    ----------
    output
        The result.
    dense
        The trained model with dense weights, which the result is proved against; None if it is not
        wanted, or there is none.
    checkpoints
        What training can go on from, a file for each of its stages.
    """

    output: Path
    dense: Path | None
    checkpoints: tuple[Path, ...]

    @classmethod
    def of(
        cls,
        source: Model,
        output: str | Path | None,
        dense: str | Path | None = None,
        checkpoint: str | Path | None = None,
        *,
        suffix: str = ".onnxlr.onnx",
        stages: int = 1,
    ) -> TrainingFiles:
        """Return the files, with the usual names where none are given.

        Parameters
        ----------
        source
            The model beside which the output lies if it has no name of its own.
        output, dense
            Files of models.
        checkpoint
            That of the only stage, or what the names of all begin with; `OUTPUT.checkpoint` if not
            given.
        suffix
            What takes the place of the model's `.onnx`.
        stages
            How many stages have a checkpoint.

        Raises
        ------
        UsageError
            If the model has no file beside which the output could lie.
        """
        if output is not None:
            file = Path(output)
        elif source.path is not None:
            file = source.path.with_suffix(suffix)
        else:
            raise UsageError("a model without a file needs an output path")
        kept = file.with_name(f"{file.name}.checkpoint") if checkpoint is None else Path(checkpoint)
        names = [kept.name] if stages == 1 else [f"{kept.name}.{n + 1}" for n in range(stages)]
        return cls(file, None if dense is None else Path(dense), tuple(map(kept.with_name, names)))

    @property
    def checkpoint(self) -> Path:
        """That of the first stage."""
        return self.checkpoints[0]

    def check(self, sources: Sequence[Model], read: Sequence[Path] = ()) -> None:
        """Refuse to write over anything that is read, or two things to one place.

        Parameters
        ----------
        sources
            The models that are read, with their external data.
        read
            What else is.

        Raises
        ------
        OutputError
            If that was to happen, or a file cannot be written.
        """
        inputs = [path for model in sources for path in model.files]
        files = [file for file in (self.output, self.dense, *self.checkpoints) if file is not None]
        for file in files:
            check_output(file, *inputs, *read)
        if len({file.resolve() for file in files}) < len(files):
            names = ", ".join(map(str, files))
            raise OutputError(f"{names}: expected different files for what is written")

    def forget(self) -> None:
        """Remove the checkpoints of a run that is saved, or that leads nowhere."""
        for file in self.checkpoints:
            file.unlink(missing_ok=True)
