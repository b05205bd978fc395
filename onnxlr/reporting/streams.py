"""Standard output and standard error, whatever is at their other end."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any

from rich.console import Console

from onnxlr.errors import OutputError

__all__ = ["Stream", "tolerate_encodings"]


_LONGEST = 2000
"""Characters that rich looks for numbers and paths in: its patterns take quadratic time."""


class Stream(Console):
    """A console that leaves the exit code alone: it falls silent when nobody reads it any more.

    Attributes
    ----------
    documents
        JSON documents that were written.
    """

    documents: int

    def __init__(self, stderr: bool = False) -> None:
        # Without emoji: `module:boom` names a function.
        super().__init__(stderr=stderr, emoji=False)
        self.documents = 0

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does; colours nothing in a text that names of a model made long."""
        if any(isinstance(each, str) and len(each) > _LONGEST for each in objects):
            options["highlight"] = False
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._end(error)

    def write(self, text: str) -> None:
        """Write JSON as it is, in UTF-8 whatever the locale is."""
        if isinstance(self.file, io.TextIOWrapper):
            self.file.reconfigure(encoding="utf-8", errors="backslashreplace")
        try:
            self.file.write(text)
            self.file.flush()
        except OSError as error:
            self._end(error)

    def on_broken_pipe(self) -> None:
        """Do not exit, as rich would from version 13.9 on."""
        self._end(BrokenPipeError())

    def _end(self, error: OSError) -> None:
        """Send the rest to nowhere; raises OutputError unless the reader just went away."""
        self.quiet = True
        with suppress(OSError, ValueError):  # a stream that is no file has nothing behind it
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        if not isinstance(error, BrokenPipeError):
            raise OutputError(f"standard output cannot be written: {error.strerror}") from None


def tolerate_encodings() -> None:
    """Let characters that a terminal's encoding has not be question marks instead of errors."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
