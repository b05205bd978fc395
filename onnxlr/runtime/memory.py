"""The memory of this process, as far as the system tells it."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Memory", "memory_now"]

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Memory:
    """Bytes of the process that are in memory, and the most there ever were; None: not told."""

    now: int
    most: int | None

    def above(self, start: Memory) -> int | None:
        """Return the most since then, in bytes above what there was."""
        if self.most is None or start.most is None:
            return None
        if self.most > start.most:
            return self.most - start.now
        # A peak of before hides a lower one, unless the count began anew.
        return 0 if start.most <= start.now else None


def memory_now(anew: bool = False) -> Memory | None:
    """Give back memory that is free, and return what is left; None where nobody tells.

    `anew` lets the most begin at what there is now, where the system allows that.
    """
    gc.collect()
    _trim()
    if anew:
        with suppress(OSError):
            _RESET.write_text("5", encoding="ascii")
    told = _told()
    if "VmRSS" not in told:
        return None
    return Memory(told["VmRSS"], told.get("VmHWM"))


def _told() -> dict[str, int]:
    """Return what Linux tells of this process's memory, in bytes."""
    try:
        text = _STATUS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (
        line.split(":", 1) for line in text.splitlines() if line.startswith(("VmRSS", "VmHWM"))
    )
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def _trim() -> None:
    """Let the C library give free memory back to the system, where it is one that can."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
