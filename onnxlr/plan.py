"""The plan: one choice per layer, as JSON that a person can read and edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

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
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(
                f"{name}: not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
            ) from None
        known = {"schema", "onnxlr", "source", "target", "seed", "layers"}
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            found = values.get("schema") if isinstance(values, dict) else type(values).__name__
            raise PlanError(f"{name}: schema is {found!r}, expected '{SCHEMA}'")
        values = _object(values, name, known)
        source = _object(values.get("source", {}), f"{name}: source", {"sha256"})
        layers = _object(values.get("layers"), f"{name}: layers", None)
        seed = values.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise PlanError(f"{name}: seed is {seed!r}, expected a whole number")
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
            return cls.loads(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise PlanError(f"{path}: cannot be read: {reason}") from None


def _object(value: Any, where: str, known: set[str] | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(f"{where}: found {type(value).__name__}, expected an object")
    unknown = sorted(set(value) - known) if known is not None else []
    if unknown:
        raise PlanError(
            f"{where}: unknown key '{unknown[0]}', expected {', '.join(sorted(known or ()))}"
        )
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise PlanError(f"{where}: found {value!r}, expected a string")
    return value


def _one_of(value: Any, allowed: tuple[str, ...], where: str) -> str:
    if value not in allowed:
        raise PlanError(f"{where}: found {value!r}, expected one of {', '.join(allowed)}")
    return str(value)


def _options(kind: type[Options], values: Any, where: str) -> Options:
    known = set(kind.__dataclass_fields__)
    given = _object(values, where, known or {"(none)"})
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str | None):
            raise PlanError(f"{where}.{key}: found {value!r}, expected a number")
    try:
        return kind(**given)
    except TypeError as error:
        raise PlanError(f"{where}: {error}") from None
