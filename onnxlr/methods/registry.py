"""The methods by name."""

from __future__ import annotations

from difflib import get_close_matches

from onnxlr.errors import UsageError
from onnxlr.methods.method import Keep, Method
from onnxlr.methods.quantize import Quantize
from onnxlr.methods.svd import Svd

__all__ = ["METHODS", "find_method"]

METHODS: dict[str, Method] = {method.name: method for method in (Keep(), Quantize(), Svd())}
"""Every method, by the name that the command line and plans use."""


def find_method(name: str) -> Method:
    """Return the method of that name; raises UsageError naming the nearest."""
    if name in METHODS:
        return METHODS[name]
    near = get_close_matches(name, METHODS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(METHODS)}"
    raise UsageError(f"method '{name}' is unknown; {hint}")
