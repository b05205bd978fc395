"""The plan: one choice per layer, as JSON that a person can read and edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxlr.errors import PlanError, UsageError
from onnxlr.lowering import find_target
from onnxlr.plan.choice import Choice
from onnxlr.plan.fields import flag_of, object_of, parse, shown, text_of, text_or_none

__all__ = ["SCHEMA", "Plan"]

SCHEMA = "onnxlr.plan/1"
"""Name and version of the plan's form; other versions are refused."""

_MOST_BYTES = 1 << 27
"""Plans of a hundred thousand layers are smaller; the values of JSON take many times its bytes."""


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
    observed
        Layers that the statistics are of; None for all that can be rewritten.
    """

    layers: Mapping[str, Choice]
    source_sha256: str | None
    target: str
    seed: int
    version: str
    statistics_sha256: str | None = None
    sequential: bool = False
    observed: tuple[str, ...] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every layer is kept."""
        return all(choice.keeps for choice in self.layers.values())

    @property
    def needs_statistics(self) -> bool:
        """Whether some layer can only be fitted with statistics of its inputs."""
        with_kfac = any(choice.metric == "kfac" for choice in self.layers.values())
        observed = with_kfac and self.statistics_sha256 is not None
        return self.sequential or observed or any(c.needs_statistics for c in self.layers.values())

    @property
    def needs_importance(self) -> bool:
        """Whether some layer can only be fitted with importance."""
        return any(c.metric in ("fisher", "fisher-rows", "kfac") for c in self.layers.values())

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
            if self.observed is not None:
                found["statistics"]["layers"] = list(self.observed)
        if self.sequential:
            found["sequential"] = True
        return found

    def dumps(self, indent: int | None = 2) -> str:
        """Return the plan as text; `indent=None` is the compact form stored in a model.

        That one does not say what else was measured: it can be longer than a small model.
        """
        values = self.to_json()
        if indent is None:
            for entry in values["layers"].values():
                entry.pop("rejected", None)
        separators = None if indent else (",", ":")
        return json.dumps(values, indent=indent, separators=separators, ensure_ascii=False)

    @classmethod
    def loads(cls, text: str, name: str = "plan") -> Plan:
        """Read a plan.

        Raises
        ------
        PlanError
            If it is not JSON, has another schema version, or an entry is wrong; the message names
            the place.
        """
        values = parse(text, name)
        known = {
            *("schema", "onnxlr", "source", "statistics", "sequential", "target", "seed", "layers"),
        }
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            found = values.get("schema") if isinstance(values, dict) else None
            raise PlanError(f"{name}: its schema is {shown(found)}, expected '{SCHEMA}'")
        values = object_of(values, name, known)
        source = object_of(values.get("source", {}), f"{name}: source", {"sha256"})
        known_by, observed = _statistics(values.get("statistics", {}), f"{name}: statistics")
        layers = object_of(values.get("layers"), f"{name}: layers", None)
        seed = values.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise PlanError(
                f"{name}: seed: found {shown(seed)}, expected a whole number of at least 0"
            )
        target = text_of(values.get("target", "onnx"), f"{name}: target")
        try:
            find_target(target)
        except UsageError as error:
            raise PlanError(f"{name}: {error}") from None
        choices = {
            layer: Choice.from_json(entry, f"{name}: layers['{layer}']")
            for layer, entry in layers.items()
        }
        sha256 = text_or_none(source.get("sha256"), f"{name}: source.sha256")
        version = text_of(values.get("onnxlr", ""), f"{name}: onnxlr")
        sequential = flag_of(values.get("sequential", False), f"{name}: sequential")
        return cls(choices, sha256, target, seed, version, known_by, sequential, observed)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a plan's file; raises PlanError if it cannot be read or is invalid."""
        try:
            # "-sig": editors on Windows put a mark at the beginning.
            return cls.loads(_read(path).decode("utf-8-sig"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise PlanError(f"{path}: cannot be read: {reason}") from None


def _read(path: Path) -> bytes:
    """Return what is in a file, which may be a pipe; raises PlanError if that does not end."""
    with path.open("rb") as stream:
        content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise PlanError(f"{path}: has more than {_MOST_BYTES:,} bytes, which no plan has")
    return content


def _statistics(values: Any, where: str) -> tuple[str | None, tuple[str, ...] | None]:
    """Return the hash of a plan's statistics, and the layers they are of."""
    entry = object_of(values, where, {"sha256", "layers"})
    layers = entry.get("layers")
    if layers is not None:
        if not isinstance(layers, list):
            raise PlanError(f"{where}.layers: found {shown(layers)}, expected names")
        layers = tuple(text_of(name, f"{where}.layers") for name in layers)
    return text_or_none(entry.get("sha256"), f"{where}.sha256"), layers
