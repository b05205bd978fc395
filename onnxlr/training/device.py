"""Where torch computes, and on how many threads."""

from __future__ import annotations

from typing import Any

from onnxlr.errors import UsageError
from onnxlr.runtime.threads import session_threads
from onnxlr.training.torch_import import torch

__all__ = ["usable_device"]


def usable_device(name: str) -> Any:
    """Return the device of a name; torch takes as many threads as models do, where that is said.

    Raises
    ------
    UsageError
        If torch does not know it, or cannot compute there.
    """
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"device '{name}' cannot be used, expected cpu, cuda or cuda:N")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device '{name}' cannot be used: {reason}") from error
    if threads := session_threads():
        torch.set_num_threads(threads)
    return device
