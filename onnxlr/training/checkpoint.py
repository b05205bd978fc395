"""Files that training can go on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxlr.errors import OutputError, TrainingError
from onnxlr.model.saving import staging
from onnxlr.training.torch_import import torch

__all__ = [
    "Checkpoint",
    "put_back",
    "random_state",
    "read_checkpoint",
    "restore_random_state",
    "write_checkpoint",
]

_CONTENT = {
    *("step", "seconds", "course", "best", "best_state", "state", "optimizer"),
    *("blown_up", "random"),
}


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
        stream = path.open("rb")
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        with stream:
            content = torch.load(stream, map_location="cpu", weights_only=True)
        found = content["meaning"]
        if not content.keys() >= _CONTENT:
            raise KeyError("course")
    except Exception as error:  # torch and pickle raise what the bytes lead to, OSError as well
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


def put_back(own: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Copy the tensors of a state into those that are trained, which have the same names.

    Raises
    ------
    TrainingError
        If it is the state of something else.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if shapes != {name: tuple(value.shape) for name, value in own.items()}:
        raise TrainingError("the state is that of another model, or of layers of other ranks")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def random_state() -> dict[str, Any]:
    """Return where torch's random numbers are, which dropout and losses may draw."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found |= {f"cuda:{at}": one for at, one in enumerate(torch.cuda.get_rng_state_all())}
    return found


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Go on with the random numbers that came next; those of devices that are not here are left."""
    torch.set_rng_state(state["cpu"])
    for at in range(torch.cuda.device_count()):
        if f"cuda:{at}" in state:
            torch.cuda.set_rng_state(state[f"cuda:{at}"], at)
