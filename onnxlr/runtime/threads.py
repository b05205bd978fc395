"""How many threads models run on, where they are observed or compared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from onnxlr.errors import UsageError

__all__ = ["THREADS_VARIABLE", "session_threads", "with_threads"]

THREADS_VARIABLE = "ONNXLR_THREADS"
"""Environment variable that child processes, too, take the number from."""


def session_threads() -> int:
    """Return the threads of a session's products; 0 where ONNX Runtime chooses, one for each core.

    Raises
    ------
    UsageError
        If the environment variable holds no whole number above 0.
    """
    text = os.environ.get(THREADS_VARIABLE, "")
    if not text:
        return 0
    if not (text.isdecimal() and int(text) > 0):
        raise UsageError(f"{THREADS_VARIABLE} is '{text}', expected a whole number of 1 or more")
    return int(text)


@contextmanager
def with_threads(count: int | None) -> Iterator[None]:
    """Run models on so many threads inside; None leaves it as the environment has it.

    Raises
    ------
    UsageError
        If the number is below 1, or that of the environment is none.
    """
    before = os.environ.get(THREADS_VARIABLE)
    if count is not None:
        if count < 1:
            raise UsageError(f"threads is {count}, expected 1 or more")
        os.environ[THREADS_VARIABLE] = str(count)
    try:
        session_threads()
        yield
    finally:
        if before is None:
            os.environ.pop(THREADS_VARIABLE, None)
        else:
            os.environ[THREADS_VARIABLE] = before
