"""From arguments to a request: one method for every layer, or what the planner is to reach."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxlr.errors import UsageError
from onnxlr.fits import FitStore, Workers
from onnxlr.methods import options_for
from onnxlr.planning.auto.goal import Goal, Limit
from onnxlr.planning.auto.request import AutoRequest
from onnxlr.planning.request import Request

__all__ = ["AUTO", "Aims", "bytes_of", "method_of", "request_of"]

AUTO = "auto"
"""What the command line calls the planner, where it asks for a method."""

_USUAL_DROP = "cosine=0.01"
"""What outputs may lose where nothing else is asked."""

_MEASUREMENTS, _FITS = "measurements.sqlite", "fits"
"""What is in a folder that is a cache: the planner's measurements; fits."""

_DATABASES = (".sqlite", ".sqlite3", ".db")
"""Endings of a cache that is one file, of measurements alone."""

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?)\s*([kKmMgGtT]?)(?:i?[bB])?")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

_OF_ANY = ("cache", "jobs", "memory")
"""What is asked of the model as a whole whatever the method."""

_OF_BOTH = ("target", "seed", "selection", "bias_correction")
"""What the planner is told as well as a single method."""


@dataclass(frozen=True)
class Aims:
    """What is asked of the model as a whole, as `onnxlr.rewrite` takes it.

    Attributes
    ----------
    goal, max_drop, max_size, max_latency, cache, stock, jobs, memory
        The arguments of that name. The last two and `cache` are for any method.
    """

    goal: str | None = None
    max_drop: str | Sequence[str] = ()
    max_size: float | None = None
    max_latency: float | None = None
    cache: str | Path | None = None
    stock: bool = True
    jobs: int | None = None
    memory: int | str | None = None

    def parse(self) -> Goal:
        """Return the goal; raises UsageError where it means nothing."""
        texts = [self.max_drop] if isinstance(self.max_drop, str) else list(self.max_drop)
        if not texts and self.max_size is None and self.max_latency is None:
            texts = [_USUAL_DROP]
        limits = tuple(Limit.parse(text) for text in texts)
        goal = Goal(self.goal or "balanced", limits, self.max_size, self.max_latency)
        goal.check()
        return goal

    def measurements(self) -> Path | None:
        """Return the file that measurements are kept in, None for none."""
        if self.cache is None:
            return None
        path = Path(self.cache)
        return path if _is_file(path) else path / _MEASUREMENTS

    def workers(self, isolate: bool) -> Workers:
        """Return who fits layers, and where fits are kept; raises UsageError.

        Parameters
        ----------
        isolate
            Whether other processes may be used.
        """
        store = self.store()
        if self.cache is not None and store is None:
            raise UsageError(
                f"{self.cache}: is a file of measurements, which only method {AUTO} keeps; give a "
                "folder to keep fits in as well (--cache)"
            )
        memory = None if self.memory is None else bytes_of(self.memory)
        return Workers(self.jobs, memory, store, isolate)

    def store(self) -> FitStore | None:
        """Return where fits are kept; None for nowhere, as where the cache is one file."""
        if self.cache is None or _is_file(Path(self.cache)):
            return None
        return FitStore(Path(self.cache) / _FITS)


def _is_file(path: Path) -> bool:
    """Whether a cache is one file, as it is or by its name, and not a folder."""
    try:
        return path.is_file() or (path.suffix in _DATABASES and not path.is_dir())
    except OSError:  # said where something is to be written there
        return False


def bytes_of(size: int | str) -> int:
    """Return a number of bytes that may be written as `4G` or `512M`; raises UsageError."""
    found = _SIZE.fullmatch(str(size).strip())
    if found is None or float(found[1]) == 0:
        raise UsageError(f"memory '{size}' is no size, expected one such as 4G, 512M or 2000000000")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def request_of(
    method: str | None,
    options: Mapping[str, Any],
    fitting: Mapping[str, Any],
    aims: Aims,
    importance: bool = False,
) -> Request | AutoRequest:
    """Return what is asked.

    Without a method it is `svd` if any option of a method or of fitting is given, or importance,
    and otherwise the planner.

    Parameters
    ----------
    method
        Name of a method, `auto` for the planner; None if not given.
    options
        Of the method.
    fitting
        The other fields of `Request`.
    aims
        What is asked of the model as a whole.
    importance
        Whether the importance of entries is given, which single methods alone heed.

    Raises
    ------
    UsageError
        If arguments contradict each other or are unknown.
    """
    own = _of_one_method(options, fitting, importance)
    if method == AUTO and own:
        raise UsageError(
            f"{_shown(own[0])} is for one method, and method {AUTO} chooses for each layer: give a "
            "method, or leave it out"
        )
    chosen = method_of(method, options, fitting, importance)
    if chosen == AUTO:
        both = {name: fitting[name] for name in _OF_BOTH}
        memory = None if aims.memory is None else bytes_of(aims.memory)
        return AutoRequest(
            aims.parse(),
            **both,
            cache=aims.measurements(),
            stock=aims.stock,
            jobs=aims.jobs,
            memory=memory,
            store=aims.store(),
        )
    given = [
        name
        for name, value in vars(aims).items()
        if value not in (getattr(Aims(), name), []) and name not in _OF_ANY
    ]
    if given:
        why = "" if method is not None else f" (as {_shown(own[0])} is given, the method is svd)"
        raise UsageError(f"{_shown(given[0])} is for method {AUTO}{why}")
    return Request(chosen, options_for(chosen, dict(options)), **fitting)


def method_of(
    method: str | None,
    options: Mapping[str, Any],
    fitting: Mapping[str, Any],
    importance: bool = False,
) -> str:
    """Return the method that is meant; the arguments are as in `request_of`."""
    return method or ("svd" if _of_one_method(options, fitting, importance) else AUTO)


def _of_one_method(
    options: Mapping[str, Any], fitting: Mapping[str, Any], importance: bool
) -> list[str]:
    """Return the names of arguments that only a single method can follow."""
    usual = Request()
    given = [n for n, value in fitting.items() if n not in _OF_BOTH and value != getattr(usual, n)]
    return [*given, *options, *(["importance"] if importance else [])]


def _shown(name: str) -> str:
    return f"'{name}'"
