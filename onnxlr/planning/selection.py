"""Which layers a request is about: shell patterns on their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from onnxlr.errors import UsageError
from onnxlr.layers import Layer

__all__ = ["Selection"]

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Selection:
    """Layers to rewrite and layers to skip.

    Attributes
    ----------
    layers
        Shell patterns (`*`, `?`, `[…]`); a layer is meant if one matches its name, its weight's
        name, or one of its nodes' names. Empty means all.
    skip
        Patterns of layers that are left alone whatever `layers` says.
    """

    layers: Sequence[str] = ()
    skip: Sequence[str] = ()

    def check(self, found: Iterable[Layer]) -> None:
        """Refuse patterns that match nothing; raises UsageError naming the nearest layer."""
        found = list(found)
        for pattern in (*self.layers, *self.skip):
            if not any(_matches(pattern, layer) for layer in found):
                near = _nearest(pattern, [name for layer in found for name in _names(layer)])
                hint = f"; did you mean '{near}'?" if near else ""
                raise UsageError(
                    f"pattern '{pattern}' matches no layer of the model{hint} "
                    "(onnxlr inspect lists them)"
                )

    def leaves(self, layer: Layer) -> str | None:
        """Return why the selection leaves a layer alone, None if it is meant."""
        for pattern in self.skip:
            if _matches(pattern, layer):
                return f"skipped by pattern '{pattern}'"
        if self.layers and not any(_matches(pattern, layer) for pattern in self.layers):
            return "not among the layers asked for"
        return None


def _names(layer: Layer) -> list[str]:
    weight = [layer.weight.name] if layer.weight else []
    return [layer.name, *layer.nodes, *weight]


def _matches(pattern: str, layer: Layer) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for name in _names(layer))


def _nearest(pattern: str, names: Sequence[str]) -> str | None:
    """Return the name that was meant, or the pattern with one of its words as names have it."""
    if near := get_close_matches(pattern, names, n=1, cutoff=0.8):
        return near[0]
    known = sorted({word for name in names for word in _WORD.findall(name)})
    for word in _WORD.findall(pattern):
        for near in get_close_matches(word, known, n=3):
            mended = pattern.replace(word, near)
            if any(name == mended or fnmatchcase(name, mended) for name in names):
                return mended
    return next(iter(get_close_matches(pattern, names, n=1, cutoff=0.4)), None)
