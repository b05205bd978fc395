"""Files that training can go on from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxlr.errors import OutputError, TrainingError
from onnxlr.model.saving import staging
from onnxlr.training.torch_import import torch

__all__ = ["Checkpoint", "forget", "read_checkpoint", "write_checkpoint"]

_CONTENT = {"step", "seconds", "course", "best", "best_state", "state", "optimizer"}


@dataclass(frozen=True)
class Checkpoint:
    """Where training can go on from.

    Attributes
    ----------
    path
        The file. It is written at each judgement, and removed by whoever saves the result.
    meaning
        What the run depends on; a checkpoint with another meaning is refused.
    """

    path: Path
    meaning: Mapping[str, str]


def write_checkpoint(checkpoint: Checkpoint, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all.

    Parameters
    ----------
    content
        Tensors and plain values by name: where training is, what was judged, the states.
    """
    with staging(checkpoint.path) as folder:
        whole = {"meaning": dict(checkpoint.meaning), **content}
        torch.save(whole, folder / checkpoint.path.name)


def read_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a checkpoint holds.

    Raises
    ------
    OutputError
        If the file cannot be read.
    TrainingError
        If it is none, or that of another run.
    """
    path = checkpoint.path
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content["meaning"]
        if not content.keys() >= _CONTENT:
            raise KeyError("course")
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch and pickle raise what the bytes lead to
        raise TrainingError(
            f"{path}: is no checkpoint of onnxlr, or damaged: remove it to begin anew"
        ) from error
    for name, value in checkpoint.meaning.items():
        if found.get(name) != value:
            raise TrainingError(
                f"{path}: is a checkpoint of another run ({name} was {found.get(name)}, now "
                f"{value}): remove it to begin anew, or name another with --checkpoint"
            )
    return dict(content)


def forget(checkpoint: Checkpoint) -> None:
    """Remove a checkpoint's file, if it is there."""
    with suppress(FileNotFoundError):
        checkpoint.path.unlink()
