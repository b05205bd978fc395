"""Results as JSON documents, each with the name and version of its schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from onnxlr.delivery import RewriteResult
from onnxlr.errors import ExitCode
from onnxlr.plan import Choice, Plan
from onnxlr.records import Parameters
from onnxlr.statistics import Statistics

__all__ = ["error_document", "summarise_statistics", "to_document"]


def to_document(kind: str, result: object) -> dict[str, Any]:
    """Return a result as JSON values under the schema `onnxlr.<kind>/1`.

    Fields of results become keys of the same name. Numbers that JSON has not (infinity) become
    null. A rewrite also has the `parameters` of its rewritten layers and of all layers.
    """
    values = result if isinstance(result, dict) else _plain(result)
    if isinstance(result, RewriteResult):
        rewritten = [record for record in result.layers if not record.choice.keeps]
        totals = {"rewritten": Parameters.of(rewritten), "all": Parameters.of(result.layers)}
        values["parameters"] = {what: _plain(total) for what, total in totals.items()}
    return {"schema": f"onnxlr.{kind}/1", **values}


def error_document(kind: str, message: str, exit_code: ExitCode) -> dict[str, Any]:
    """Return an error as JSON values under the schema `onnxlr.error/1`.

    `kind` is the name of an error of `onnxlr.errors`, `Interrupted` or `Defect`.
    """
    return {
        "schema": "onnxlr.error/1",
        "error": kind,
        "message": message,
        "exit_code": int(exit_code),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Plan | Choice):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        plain = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        for derived in ("passed", "failures", "ratio"):
            if derived not in plain and hasattr(value, derived):
                plain[derived] = _plain(getattr(value, derived))
        return plain
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


def summarise_statistics(statistics: Statistics) -> dict[str, Any]:
    """Return what was observed, without the moments themselves."""
    return {
        "sha256": statistics.sha256,
        "model_sha256": statistics.model_sha256,
        "data": statistics.data,
        "layers": {
            key: {
                "rows": layer.fit.count,
                "held_out": layer.holdout.count if layer.holdout else 0,
                "groups": layer.fit.covariance.shape[0],
                "inputs": layer.fit.covariance.shape[1],
            }
            for key, layer in statistics.layers.items()
        },
        "unobserved": dict(statistics.unobserved),
        "notes": list(statistics.notes),
    }
