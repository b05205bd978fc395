"""Latency of model files against each other, on one thread.

The machine's speed drifts, so models are never timed one after the other: each set of inputs is run
by all of them in turn, in an order that moves on by one, and a ratio is taken within a round of all
inputs. What is counted is the thread's own CPU time; other processes enter it only through what
they share with it, caches above all. A model finds its weights where the others left the caches, as
in a program that does something else besides. Even two sessions of one file can differ by 2 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxlr.runtime.latency import Latency, ratios, time_rounds
from onnxlr.runtime.single_thread import SingleThread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["compare_latency"]


def compare_latency(
    models: Sequence[Path], feeds: Sequence[Mapping[str, Any]], rounds: int = 15
) -> list[Latency]:
    """Time model files on the same inputs; the ratios are to the first of them.

    Parameters
    ----------
    models
        The files.
    feeds
        Inputs; a round runs a model once on each.
    rounds
        How often; one more round, not counted, warms up.
    """
    return ratios(time_rounds([SingleThread(str(model)).run for model in models], feeds, rounds))
