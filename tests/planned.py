"""Plans of the planner for the small classifier, in a world where time is counted, not measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnxlr
from onnxlr.delivery import RewriteResult
from onnxlr.fits import orders
from onnxlr.methods import METHODS
from onnxlr.planning.auto import building, candidates, trials
from onnxlr.runtime import Latency, Race, jobs, run_task, run_tasks
from tests.classifier import samples

DATA = {"x": samples(64)}
"""Calibration data: four fifths to fit by, a fifth to judge by."""

FEW = ("quantize", "svd")
"""Methods that make enough candidates, and soon."""


def seconds_of(file: str | Path) -> float:
    """Return how long a model takes here: by its nodes, and by its bytes, which are read."""
    model = onnx.load(file)
    return 2e-8 * len(model.graph.node) + 1e-9 * model.ByteSize()


def race(races: Sequence[Race], *_: object) -> list[list[Latency]]:
    """Stand for measured races."""
    found = []
    for each in races:
        seconds = [seconds_of(model) for model in each.models]
        parts = [one / seconds[0] for one in seconds]
        found.append([Latency(s, part, part, part) for s, part in zip(seconds, parts, strict=True)])
    return found


def count_time(monkeypatch: pytest.MonkeyPatch, methods: Sequence[str] = FEW) -> None:
    """Count time instead of measuring it, and let few methods make offers."""
    monkeypatch.setattr(trials, "measure_latency", race)
    monkeypatch.setattr(building, "measure_latency", race)
    monkeypatch.setattr(candidates, "METHODS", {name: METHODS[name] for name in methods})


def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything run in this process, where nothing can ask for that."""

    def tasks(some: Iterable[Any], name: str, *_: object, **__: object) -> Any:
        return run_tasks(some, name, 1, isolate=False)

    monkeypatch.setattr(orders, "run_tasks", tasks)
    monkeypatch.setattr(jobs, "_run_in_child", lambda task, name: run_task(task, name, False))


def rewrite(model: Any, output: Path, **arguments: Any) -> RewriteResult:
    """Rewrite with the planner, in this process, beside no stock options unless they are asked."""
    usual: dict[str, Any] = {"calibration": DATA, "isolate": False, "stock": False}
    return onnxlr.rewrite(model, output, **usual | arguments)
