"""The plan: one choice per layer, as JSON that a person can read and edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from onnxlr.errors import PlanError, UsageError
from onnxlr.layers import Layer
from onnxlr.lowering import ACTIVATIONS, find_target
from onnxlr.methods import Options, Recipe, find_method
from onnxlr.methods.method import NoOptions
from onnxlr.metrics import METRICS, SOLVERS
from onnxlr.numbers import Format
from onnxlr.stages import Adjustment, Chain

__all__ = ["SCHEMA", "Choice", "Plan", "Proposal"]

SCHEMA = "onnxlr.plan/1"
"""Name and version of the plan's form; other versions are refused."""


UNSET: Options = NoOptions()
"""Stands for the defaults of whatever method it comes with."""


@dataclass(frozen=True)
class Choice:
    """What becomes of one layer.

    Attributes
    ----------
    method
        Name of a method; `keep` leaves the layer alone.
    options
        The method's options; its defaults if not given.
    metric, solver
        What the error is measured in, and for metric `fisher` how it is minimised.
    format, group_size, rounding
        How the factors are kept, as `Format.parse` reads it; without a format they keep the
        weight's own float type.
    bias_correction
        Whether the mean of the outputs is corrected.
    activations
        What the data may be computed in.
    reason
        Why, for the reader; never acted upon.
    """

    method: str
    options: Options = UNSET
    metric: str = "frobenius"
    format: str | None = None
    activations: str = "float"
    reason: str | None = None
    group_size: int | None = None
    rounding: str | None = None
    bias_correction: bool = False
    solver: str | None = None

    def __post_init__(self) -> None:
        if self.options is UNSET:
            object.__setattr__(self, "options", find_method(self.method).options())

    def __str__(self) -> str:
        """Return the method and its options: `svd rank 12, spatial`."""
        return f"{self.method} {self.options}".strip()

    @property
    def kept_as(self) -> str:
        """How its numbers are kept: `int4 in groups of 32, gptq`, or `own`."""
        if self.encoding is None:
            return "own"
        rounding = f", {self.rounding}" if self.rounding not in (None, "nearest") else ""
        return f"{self.encoding}{rounding}"

    @property
    def summary(self) -> str:
        """The method, how its numbers are kept and what is corrected, for tables."""
        parts = [str(self)]
        if self.format is not None:
            parts.append(self.kept_as)
        if self.activations != "float":
            parts.append(f"{self.activations} data")
        if self.bias_correction:
            parts.append("bias corrected")
        return ", ".join(parts)

    @property
    def keeps(self) -> bool:
        """Whether the layer stays as it is."""
        return self.method == "keep"

    @property
    def needs_statistics(self) -> bool:
        """Whether it can only be followed with statistics of the layer's inputs."""
        fitted = self.metric in ("activation", "kfac") or self.bias_correction
        return fitted or self.activations == "static_int8"

    @property
    def encoding(self) -> Format | None:
        """The format; None for the weight's own float type."""
        if self.format is None:
            return None
        return Format.parse(self.format, self.group_size, self.rounding)

    @property
    def recipe(self) -> Recipe:
        """How the layer is fitted, beside its method and options."""
        rounding = self.rounding or "nearest"
        return Recipe(self.metric, rounding, self.bias_correction, self.solver)

    def to_json(self) -> dict[str, Any]:
        """Return the entry as a plan writes it, without what is not given."""
        entry: dict[str, Any] = {"method": self.method}
        if not self.keeps:
            given = {k: v for k, v in asdict(self.options).items() if v is not None}
            entry |= {"options": given, "metric": self.metric}
            for name in ("solver", "format", "group_size", "rounding"):
                if getattr(self, name) is not None:
                    entry[name] = getattr(self, name)
            if self.bias_correction:
                entry["bias_correction"] = True
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
        except PlanError:
            raise
        except UsageError as error:
            raise PlanError(f"{where}: {error}") from None
        reason = values.get("reason")
        if reason is not None:
            _text(reason, f"{where}.reason")
        return cls(
            name,
            options,
            _one_of(values.get("metric", "frobenius"), METRICS, f"{where}.metric"),
            activations=_one_of(
                values.get("activations", "float"), ACTIVATIONS, f"{where}.activations"
            ),
            reason=reason,
            bias_correction=_flag(values.get("bias_correction", False), f"{where}.bias_correction"),
            solver=_one_of_or_none(values.get("solver"), SOLVERS, f"{where}.solver"),
            **_encoding(values, where),
        )


def _encoding(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the entries that say how factors are kept."""
    kind, size = values.get("format"), values.get("group_size")
    if kind is not None:
        _text(kind, f"{where}.format")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
        raise PlanError(f"{where}.group_size: found {_shown(size)}, expected a whole number")
    rounding = values.get("rounding")
    if kind is None and (size is not None or rounding is not None):
        raise PlanError(f"{where}: group_size and rounding are for a format, and there is none")
    if rounding is not None:
        _text(rounding, f"{where}.rounding")
    try:
        if kind is not None:
            Format.parse(kind, size, rounding)
    except UsageError as error:
        raise PlanError(f"{where}: {error}") from None
    return {"format": kind, "group_size": size, "rounding": rounding}


@dataclass(frozen=True)
class Proposal:
    """A layer, the choice made for it, and what it means.

    Attributes
    ----------
    layer, choice
        The layer and the choice.
    chain
        What takes the weight's place; None where the layer is kept.
    adjustments
        What comes with the chain at each site; none where nothing is known.
    error, plain_error
        Relative error of its outputs on held-out inputs, and that of the plain fit of the same
        size (metric frobenius, nearest rounding, no bias correction); None where not measured.
    importance_variance, importance_gain
        Where importance is the metric: its variance inside the matrix over its squared mean, and
        by how much the weighted error is less than that of the plain fit.
    """

    layer: Layer
    choice: Choice
    chain: Chain | None = None
    adjustments: tuple[Adjustment, ...] = ()
    error: float | None = None
    plain_error: float | None = None
    importance_variance: float | None = None
    importance_gain: float | None = None


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
    statistics_sha256
        Hash of the statistics it was made with; None where there were none.
    sequential
        Whether each layer was fitted behind those rewritten before it.
    """

    layers: Mapping[str, Choice]
    source_sha256: str | None
    target: str
    seed: int
    version: str
    statistics_sha256: str | None = None
    sequential: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether every layer is kept."""
        return all(choice.keeps for choice in self.layers.values())

    @property
    def needs_statistics(self) -> bool:
        """Whether some layer can only be fitted with statistics of its inputs."""
        return self.sequential or any(c.needs_statistics for c in self.layers.values())

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "schema": SCHEMA,
            "onnxlr": self.version,
            "source": {"sha256": self.source_sha256} if self.source_sha256 else {},
            **self._statistics(),
            "target": self.target,
            "seed": self.seed,
            "layers": {name: choice.to_json() for name, choice in self.layers.items()},
        }

    def _statistics(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.statistics_sha256:
            found["statistics"] = {"sha256": self.statistics_sha256}
        if self.sequential:
            found["sequential"] = True
        return found

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
        known = {
            *("schema", "onnxlr", "source", "statistics", "sequential", "target", "seed", "layers"),
        }
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            found = values.get("schema") if isinstance(values, dict) else None
            raise PlanError(f"{name}: its schema is {_shown(found)}, expected '{SCHEMA}'")
        values = _object(values, name, known)
        source, statistics = (
            _object(values.get(part, {}), f"{name}: {part}", {"sha256"})
            for part in ("source", "statistics")
        )
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
        for part, entry in (("source", source), ("statistics", statistics)):
            if entry.get("sha256") is not None:
                _text(entry["sha256"], f"{name}: {part}.sha256")
        version = _text(values.get("onnxlr", ""), f"{name}: onnxlr")
        sequential = _flag(values.get("sequential", False), f"{name}: sequential")
        known_by = statistics.get("sha256")
        return cls(choices, source.get("sha256"), target, seed, version, known_by, sequential)

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


def _one_of_or_none(value: Any, allowed: tuple[str, ...], where: str) -> str | None:
    return None if value is None else _one_of(value, allowed, where)


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise PlanError(f"{where}: found {_shown(value)}, expected true or false")
    return value


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
