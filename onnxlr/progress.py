"""What long work tells who waits: a callback that the command line draws."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Called before each step of a task."""

    def __call__(self, task: str, done: int, total: int) -> None:
        """Say that `done` of `total` steps of `task` are finished."""


def silent(task: str, done: int, total: int) -> None:
    """Say nothing."""
