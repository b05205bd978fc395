"""A bound on what a library may take while it works on a file that may lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import resource
except ImportError:  # not on Windows, where there is no bound
    resource = None  # type: ignore[assignment]

__all__ = ["confined"]

_PAGES = Path("/proc/self/statm")
"""Begins with the pages of address space that this process has."""


@contextmanager
def confined(room: int) -> Iterator[None]:
    """Let this process take so many more bytes and no more: what asks for them gets MemoryError.

    Other threads are bound as well while it lasts. There is no bound where the system cannot tell
    what the process has, or does not let it be set.
    """
    before = None
    if resource is not None:
        with suppress(OSError, ValueError):
            pages = int(_PAGES.read_text(encoding="ascii").split()[0])
            soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            most = pages * resource.getpagesize() + room
            if soft == resource.RLIM_INFINITY or most < soft:
                resource.setrlimit(resource.RLIMIT_AS, (most, hard))
                before = soft, hard
    try:
        yield
    finally:
        if before is not None:
            resource.setrlimit(resource.RLIMIT_AS, before)
