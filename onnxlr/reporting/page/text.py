"""What others wrote, made legible: names of layers and paths may hold anything."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["legible", "parts"]

_BEHIND = re.compile(r"(?<=[./_:])(?=[^./_:])")


def legible(value: Any) -> Any:
    """Return text without what cannot be seen, or turns the text around it; other values as are.

    The template escapes what is left, as everything that is put into it.
    """
    if not isinstance(value, str) or hasattr(value, "__html__") or value.isprintable():
        return value
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)


def parts(name: str) -> list[str]:
    """Cut a name where a line may end."""
    return _BEHIND.split(name)
