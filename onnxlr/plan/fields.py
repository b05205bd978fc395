"""Reads the fields of JSON documents; every error names the place and what was expected there."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, get_args, get_type_hints

from onnxlr.errors import PlanError, UsageError
from onnxlr.methods import Options, option_names

__all__ = [
    "flag_of",
    "object_of",
    "one_of",
    "one_of_or_none",
    "options_of",
    "parse",
    "part_of",
    "shown",
    "text_of",
    "text_or_none",
]

_WORDS: dict[Any, str] = {int: "a whole number", float: "a finite number", str: "a string"}

_LARGEST = 2**63
"""Numbers that are larger than an ONNX integer can be are mistakes."""


def parse(text: str, name: str) -> Any:
    """Return the values of a JSON text; raises PlanError saying where it is wrong."""
    try:
        values = json.loads(text, object_pairs_hook=_without_repetition)
        json.dumps(values, ensure_ascii=False).encode()  # plans are written into models
    except json.JSONDecodeError as error:
        raise PlanError(
            f"{name}: not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except UnicodeEncodeError as error:
        lone = ascii(error.object[error.start])
        raise PlanError(f"{name}: holds {lone}, half a character, expected text") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, too deep nesting
        raise PlanError(f"{name}: cannot be read: {error}") from None
    return values


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key '{twice}' stands twice in one object")
    return values


def shown(value: Any) -> str:
    """Return a value as JSON writes it, cut short."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:  # it was read with a few calls less around it
        return "what is nested too deep"
    return text if len(text) <= 40 else text[:40] + "…"


def object_of(value: Any, where: str, known: set[str] | None) -> dict[str, Any]:
    """Return an object that has no keys but the known ones (any, for None)."""
    if not isinstance(value, dict):
        raise PlanError(f"{where}: found {shown(value)}, expected an object")
    unknown = sorted(set(value) - known) if known is not None else []
    if unknown:
        raise PlanError(
            f"{where}: unknown key '{unknown[0]}', "
            f"expected {', '.join(sorted(known)) if known else 'none'}"
        )
    return value


def text_of(value: Any, where: str) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise PlanError(f"{where}: found {shown(value)}, expected a string")
    return value


def text_or_none(value: Any, where: str) -> str | None:
    """Return a string, or None."""
    return None if value is None else text_of(value, where)


def one_of(value: Any, allowed: tuple[str, ...], where: str) -> str:
    """Return one of some strings."""
    if value not in allowed:
        raise PlanError(f"{where}: found {shown(value)}, expected one of {', '.join(allowed)}")
    return str(value)


def one_of_or_none(value: Any, allowed: tuple[str, ...], where: str) -> str | None:
    """Return one of some strings, or None."""
    return None if value is None else one_of(value, allowed, where)


def flag_of(value: Any, where: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise PlanError(f"{where}: found {shown(value)}, expected true or false")
    return value


def part_of(value: Any, where: str) -> float | None:
    """Return a number from 0 to 1, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise PlanError(f"{where}: found {shown(value)}, expected a number from 0 to 1")
    return float(value)


def options_of(kind: type[Options], values: Any, where: str) -> Options:
    """Return the options of a method, each of the type that its field has."""
    hints = get_type_hints(kind)
    given = object_of(values, where, set(option_names(kind)))
    for key, value in given.items():
        if not any(_has_type(value, allowed) for allowed in get_args(hints[key]) or (hints[key],)):
            words = [_WORDS[t] for t in get_args(hints[key]) or (hints[key],) if t in _WORDS]
            raise PlanError(f"{where}.{key}: found {shown(value)}, expected {' or '.join(words)}")
    try:
        return kind(**given)
    except UsageError as error:
        raise PlanError(f"{where}: {error}") from None


def _has_type(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) < _LARGEST
    if kind is int:
        return isinstance(value, int) and abs(value) < _LARGEST
    return isinstance(value, kind)
