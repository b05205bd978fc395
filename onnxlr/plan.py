"""The plan: one choice per layer, as JSON that a person can read and edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from onnxlr.errors import PlanError, UsageError
from onnxlr.layers import Layer
from onnxlr.lowering import ACTIVATIONS, find_target
from onnxlr.methods import Options, find_method
from onnxlr.methods.method import NoOptions
from onnxlr.numbers import Format
from onnxlr.stages import Chain

__all__ = ["SCHEMA", "Choice", "Plan", "Proposal"]

SCHEMA = "onnxlr.plan/1"
"""Name and version of the plan's form; other versions are refused."""

_METRICS = ("frobenius",)


@dataclass(frozen=True)
class Choice:
    """What becomes of one layer.

    Attributes
    ----------
    method
        Name of a method; `keep` leaves the layer alone.
    options
        The method's options.
    metric
        What the error is measured in.
    format
        How the factors are kept; None keeps them in the weight's own float type.
    activations
        What the data may be computed in.
    reason
        Why, for the reader; never acted upon.
    """

    method: str
    options: Options = field(default_factory=NoOptions)
    metric: str = "frobenius"
    format: str | None = None
    activations: str = "float"
    reason: str | None = None

    def __str__(self) -> str:
        """Return the method and its options: `svd rank 12, spatial`."""
        return f"{self.method} {self.options}".strip()

    @property
    def keeps(self) -> bool:
        """Whether the layer stays as it is."""
        return self.method == "keep"

    def to_json(self) -> dict[str, Any]:
        """Return the entry as a plan writes it, without what is not given."""
        entry: dict[str, Any] = {"method": self.method}
        if not self.keeps:
            given = {k: v for k, v in asdict(self.options).items() if v is not None}
            entry |= {"options": given, "metric": self.metric}
            if self.format is not None:
                entry["format"] = self.format
            entry["activations"] = self.activations
        if self.reason is not None:
            entry["reason"] = self.reason
        return entry

    @classmethod
    def from_json(cls, entry: Any, where: str) -> Choice:
        """Return the choice of an entry; raises PlanError saying where it is wrong."""
        known = {f.name for f in fields(cls)}
        values = _object(entry, where, known)
        name = _text(values.get("method"), f"{where}.method")
        try:
            method = find_method(name)
            options = _options(method.options, values.get("options", {}), f"{where}.options")
            if values.get("format") is not None:
                Format.parse(_text(values["format"], f"{where}.format"))
        except PlanError:
            raise
        except UsageError as error:
            raise PlanError(f"{where}: {error}") from None
        metric = _one_of(values.get("metric", "frobenius"), _METRICS, f"{where}.metric")
        activations = _one_of(
            values.get("activations", "float"), ACTIVATIONS, f"{where}.activations"
        )
        reason = values.get("reason")
        if reason is not None:
            _text(reason, f"{where}.reason")
        return cls(name, options, metric, values.get("format"), activations, reason)


@dataclass(frozen=True)
class Proposal:
    """A layer, the choice made for it, and the chain that it means (None where it is kept)."""

    layer: Layer
    choice: Choice
    chain: Chain | None = None


@dataclass(frozen=True)
class Plan:
    """A choice for each layer, and what a rebuild needs.

    Attributes
    ----------
    layers
        Choice by layer name, in graph order. Layers that are not named are kept.
    source_sha256
        Hash of the model it was made for; None lets the plan be used for any model that has its
        layers.
    target
        Name of the target.
    seed
        Seed of methods that draw random numbers.
    version
        Version of onnxlr that made it.
    """

    layers: Mapping[str, Choice]
    source_sha256: str | None
    target: str
    seed: int
    version: str

    @property
    def is_empty(self) -> bool:
        """Whether every layer is kept."""
        return all(choice.keeps for choice in self.layers.values())

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "schema": SCHEMA,
            "onnxlr": self.version,
            "source": {"sha256": self.source_sha256} if self.source_sha256 else {},
            "target": self.target,
            "seed": self.seed,
            "layers": {name: choice.to_json() for name, choice in self.layers.items()},
        }

    def dumps(self, indent: int | None = 2) -> str:
        """Return the plan as text; `indent=None` is the compact form stored in a model."""
        separators = None if indent else (",", ":")
        return json.dumps(self.to_json(), indent=indent, separators=separators, ensure_ascii=False)

    @classmethod
    def loads(cls, text: str, name: str = "plan") -> Plan:
        """Read a plan.

        Raises
        ------
        PlanError
            If it is not JSON, has another schema version, or an entry is wrong; the message names
            the place.
        """
        values = _parse(text, name)
        known = {"schema", "onnxlr", "source", "target", "seed", "layers"}
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            found = values.get("schema") if isinstance(values, dict) else None
            raise PlanError(f"{name}: its schema is {_shown(found)}, expected '{SCHEMA}'")
        values = _object(values, name, known)
        source = _object(values.get("source", {}), f"{name}: source", {"sha256"})
        layers = _object(values.get("layers"), f"{name}: layers", None)
        seed = values.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise PlanError(
                f"{name}: seed: found {_shown(seed)}, expected a whole number of at least 0"
            )
        target = _text(values.get("target", "onnx"), f"{name}: target")
        try:
            find_target(target)
        except UsageError as error:
            raise PlanError(f"{name}: {error}") from None
        choices = {
            layer: Choice.from_json(entry, f"{name}: layers['{layer}']")
            for layer, entry in layers.items()
        }
        sha256 = source.get("sha256")
        if sha256 is not None:
            _text(sha256, f"{name}: source.sha256")
        version = _text(values.get("onnxlr", ""), f"{name}: onnxlr")
        return cls(choices, sha256, target, seed, version)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a plan's file; raises PlanError if it cannot be read or is invalid."""
        try:
            # "-sig": editors on Windows put a mark at the beginning.
            return cls.loads(path.read_text(encoding="utf-8-sig"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise PlanError(f"{path}: cannot be read: {reason}") from None


def _parse(text: str, name: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except json.JSONDecodeError as error:
        raise PlanError(
            f"{name}: not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, too deep nesting
        raise PlanError(f"{name}: cannot be read: {error}") from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{twice}' stands twice in one object")
    return values


def _shown(value: Any) -> str:
    """Return a value as JSON writes it, cut short."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:40] + "…"


def _object(value: Any, where: str, known: set[str] | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(f"{where}: found {_shown(value)}, expected an object")
    unknown = sorted(set(value) - known) if known is not None else []
    if unknown:
        raise PlanError(
            f"{where}: unknown key '{unknown[0]}', "
            f"expected {', '.join(sorted(known)) if known else 'none'}"
        )
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise PlanError(f"{where}: found {_shown(value)}, expected a string")
    return value


def _one_of(value: Any, allowed: tuple[str, ...], where: str) -> str:
    if value not in allowed:
        raise PlanError(f"{where}: found {_shown(value)}, expected one of {', '.join(allowed)}")
    return str(value)


def _options(kind: type[Options], values: Any, where: str) -> Options:
    hints = get_type_hints(kind)
    given = _object(values, where, set(kind.__dataclass_fields__))
    for key, value in given.items():
        if not any(_has_type(value, allowed) for allowed in get_args(hints[key]) or (hints[key],)):
            words = [_WORDS[t] for t in get_args(hints[key]) or (hints[key],) if t in _WORDS]
            raise PlanError(f"{where}.{key}: found {_shown(value)}, expected {' or '.join(words)}")
    return kind(**given)


_WORDS: dict[Any, str] = {int: "a whole number", float: "a finite number", str: "a string"}
_LARGEST = 2**63
"""Numbers that are larger than an ONNX integer can be are mistakes."""


def _has_type(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) < _LARGEST
    if kind is int:
        return isinstance(value, int) and abs(value) < _LARGEST
    return isinstance(value, kind)
