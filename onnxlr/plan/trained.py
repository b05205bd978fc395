"""Marks a model whose weights were trained after its plan was followed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import onnx

from onnxlr.version import VERSION

__all__ = ["TRAINED_KEY", "record_training", "trained_after"]

TRAINED_KEY = "onnxlr.tuned"
"""Key under which a model's metadata says how its weights were trained."""

_KEY = re.compile(rf"{re.escape(TRAINED_KEY)}(\.\d+)?")
_SCHEMA = "onnxlr.tuned/1"


def record_training(proto: onnx.ModelProto, by: str, details: Mapping[str, Any]) -> None:
    """Write into a model's metadata that its weights were trained, and how.

    Entries of earlier trainings stay; each later one has a number.

    Parameters
    ----------
    proto
        The model; it is changed.
    by
        The command that trained it, without `onnxlr`: `tune`, for instance.
    details
        JSON values: what was trained, on what, how long, held-out quality before and after.
    """
    taken = {entry.key for entry in proto.metadata_props}
    key, number = TRAINED_KEY, 1
    while key in taken:
        number += 1
        key = f"{TRAINED_KEY}.{number}"
    value = {"schema": _SCHEMA, "by": by, "onnxlr": VERSION, **details}
    proto.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))


def trained_after(proto: onnx.ModelProto, plan_key: str | None) -> str | None:
    """Return why a plan in a model's metadata no longer gives its weights, None if it still does.

    Parameters
    ----------
    proto
        The model.
    plan_key
        Key of the plan; training that was recorded before it is part of what was rewritten. None
        if the model has no such plan: any training counts.
    """
    found = None
    for entry in proto.metadata_props:
        if entry.key == plan_key:
            found = None
        elif _KEY.fullmatch(entry.key):
            found = _command(entry.value)
    if found is None:
        return None
    return f"its weights were trained by {found} after they were made, which no plan repeats"


def _command(value: str) -> str:
    try:
        return f"onnxlr {json.loads(value)['by']}"
    except (ValueError, KeyError, TypeError, RecursionError):  # whatever is in the file
        return "onnxlr"
