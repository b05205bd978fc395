"""What of a rewritten model is trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import ModelError, PlanError, UsageError
from onnxlr.model import Model
from onnxlr.plan import Plan
from onnxlr.rewriting import METADATA_KEY
from onnxlr.training.constants import array_of
from onnxlr.training.flow import Flow
from onnxlr.training.rates import BY_KIND
from onnxlr.training.roles import role_of
from onnxlr.training.storage import StoredCodes, stored_codes
from onnxlr.training.torch_import import torch
from onnxlr.training.trainable import TrainableModel
from onnxlr.training.writing import constant_tensors

__all__ = ["TRAINED", "Selection", "current_values", "running_values", "selected"]

Tensor = Any

TRAINED: Mapping[str, tuple[str, ...]] = {
    "scales": ("scales", "biases", "normalisations"),
    "factors": ("scales", "biases", "normalisations", "factors", "codes"),
    "all": ("scales", "biases", "normalisations", "factors", "codes", "weights"),
}
"""What can be asked for, and the kinds of parameters that are trained then."""

_WORDS = {
    "scales": "scales",
    "biases": "biases",
    "normalisations": "weights and biases of normalisations",
    "factors": "factors",
    "codes": "low-bit codes",
    "weights": "weights",
}


class _Scales(torch.nn.Module):
    """Numbers that keep their sign: those of the start times powers of e."""

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().clone(), persistent=False)
        self.values = torch.nn.Parameter(torch.zeros_like(start, dtype=_trained_type(start)))

    def forward(self) -> Tensor:
        return (self.start.to(self.values.dtype) * self.values.exp()).to(self.start.dtype)


class _Wide(torch.nn.Module):
    """Numbers of 16 bits that are trained in float32."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(start.detach().to(torch.float32))
        self._type = start.dtype

    def forward(self) -> Tensor:
        return self.values.to(self._type)


def _trained_type(start: Tensor) -> Any:
    return torch.float32 if start.dtype.itemsize < 4 else start.dtype


@dataclass(frozen=True)
class Selection:
    """What is trained.

    Attributes
    ----------
    what
        What was asked for, one of `TRAINED`.
    kinds
        Names of constants by kind. Terms of one sum have one trained value, under the name of the
        first.
    parameters
        What is trained, by the names of constants: float32 where the file has fewer bits, codes in
        the units of their weights, scales as logarithms of what multiplies those of the start.
    codes
        The modules of codes that are trained.
    types
        The files' types, by the names of float constants.
    fixed
        Scales that are not trained, as biases are kept in their units.
    """

    what: str
    kinds: Mapping[str, tuple[str, ...]]
    parameters: Mapping[str, Any]
    codes: tuple[StoredCodes, ...]
    types: Mapping[str, np.dtype[Any]]
    fixed: tuple[str, ...] = ()

    def groups(self, rates: Mapping[str, float] = BY_KIND) -> list[dict[str, Any]]:
        """Return parameters for the optimizer by kind; `scale` multiplies the learning rate."""
        found = []
        for kind, names in self.kinds.items():
            own = [self.parameters[name] for name in names if name in self.parameters]
            if own:
                found.append({"params": own, "scale": rates[kind]})
        return found

    def without(self, names: Collection[str]) -> Selection:
        """Return the same but for some constants."""
        return replace(
            self,
            kinds={
                kind: tuple(name for name in own if name not in names)
                for kind, own in self.kinds.items()
            },
            parameters={name: own for name, own in self.parameters.items() if name not in names},
            types={name: dtype for name, dtype in self.types.items() if name not in names},
            codes=tuple(module for module in self.codes if module.constant not in names),
        )

    def after_step(self) -> None:
        """Take codes that have gone beyond their range back to its end."""
        for module in self.codes:
            module.settle()

    @property
    def summary(self) -> dict[str, int]:
        """How many numbers of each kind are trained."""
        found = {}
        for kind, names in self.kinds.items():
            own = [self.parameters[name] for name in names if name in self.parameters]
            if own:
                found[_WORDS[kind]] = sum(int(parameter.numel()) for parameter in own)
        return found


@dataclass
class _Choosing:
    """A selection under way."""

    model: TrainableModel
    kinds: dict[str, list[str]]
    parameters: dict[str, Any] = field(default_factory=dict)
    codes: list[StoredCodes] = field(default_factory=list)
    types: dict[str, np.dtype[Any]] = field(default_factory=dict)

    def take_codes(self, module: StoredCodes) -> None:
        module.attach(self.model)
        self.codes.append(module)
        self.kinds["codes"].append(module.constant)
        if all(module.values is not known for known in self.parameters.values()):
            self.parameters[module.constant] = module.values

    def take_floats(self, name: str, kind: str) -> None:
        start = self.model.constant(name)
        self.types[name] = self.model.constants[name].dtype
        self.kinds[kind].append(name)
        if kind == "scales" or start.dtype.itemsize < 4:
            module = _Scales(start) if kind == "scales" else _Wide(start)
            self.model.replace(name, module)
            start = module.values
        self.parameters[name] = start


def selected(
    model: TrainableModel, opened: Model, what: str, original: Model | None = None
) -> Selection:
    """Choose what is trained, and attach to the model what stands for codes and scales.

    `scales` are the scales of low-bit weights, biases, and what normalisations multiply and add;
    `factors` also what a rewrite put in: float factors, and low-bit codes; `all` also every other
    weight that data is multiplied by, or whose rows are looked up.

    Never trained are epsilons, sizes, masks, and other constants that are no parameters (see
    `roles`), zero points, ranges of data, and what is in functions and subgraphs.

    Parameters
    ----------
    model
        The rewritten model, as it came; it is changed.
    opened
        The same model, as opened.
    what
        One of `TRAINED`.
    original
        The model that it was before: what that has not came with the rewrite. Without it, the plans
        in the model's metadata tell.

    Raises
    ------
    UsageError
        If `what` is unknown.
    ModelError
        If the model has nothing of what was asked for, or it cannot be told what was rewritten.
    """
    if what not in TRAINED:
        raise UsageError(
            f"'{what}' cannot be asked for to be trained, expected one of {', '.join(TRAINED)}"
        )
    is_new = _newcomers(opened, original, what)
    asked = TRAINED[what]
    flow, places = Flow(model), constant_tensors(opened)
    stored = stored_codes(opened, model)
    scales = {name: module.storage for module in stored for name in module.storage.scales}
    fixed = tuple(name for name, storage in scales.items() if storage.fixed_scales)
    choosing = _Choosing(model, {kind: [] for kind in asked})
    for name in places:
        if name not in model.constants or not model.constant(name).is_floating_point():
            continue
        role = _role(flow, name, scales, is_new(name))
        if role in asked:
            choosing.take_floats(name, role)
    for module in stored:
        if "codes" in asked and (what == "all" or is_new(module.constant)):
            choosing.take_codes(module)
    if not choosing.parameters:
        raise ModelError(f"{opened.name} has nothing to train: {what} were asked for (--train)")
    model.prune()
    for parameter in model.parameters():
        parameter.requires_grad_(requires_grad=False)
    for parameter in choosing.parameters.values():
        parameter.requires_grad_(requires_grad=True)
    kinds = {kind: tuple(names) for kind, names in choosing.kinds.items()}
    return Selection(what, kinds, choosing.parameters, tuple(choosing.codes), choosing.types, fixed)


def current_values(model: TrainableModel, selection: Selection) -> dict[str, npt.NDArray[Any]]:
    """Return what is trained, as it is now, by the names of constants, in the file's types.

    What has not changed has the file's numbers, bit by bit.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    with torch.no_grad():
        for name, dtype in selection.types.items():
            with np.errstate(over="ignore"):  # said where it is written
                found[name] = array_of(model.constant(name)).astype(dtype)
    found |= {module.constant: module.array() for module in selection.codes}
    return found


def running_values(model: TrainableModel, opened: Model) -> dict[str, npt.NDArray[Any]]:
    """Return running means and variances as they are now, by the names of a file's constants."""
    places = constant_tensors(opened)
    return {name: array_of(value) for name, value in model.running.items() if name in places}


def _role(flow: Flow, name: str, scales: Mapping[str, Any], is_new: bool) -> str | None:
    if name in scales:
        return None if scales[name].fixed_scales or _is_of_data(flow, name) else "scales"
    role = role_of(flow, name, is_new)
    return "factors" if role == "weights" and is_new else role


def _is_of_data(flow: Flow, name: str) -> bool:
    """Whether data is rounded or restored by a scale."""
    return any(
        use.at("QuantizeLinear", 1)
        or (use.at("DequantizeLinear", 1) and use.call.inputs[0] not in flow.fixed)
        for use in flow.ends(name)
    )


def _newcomers(opened: Model, original: Model | None, what: str) -> Callable[[str], bool]:
    """Return what tells constants that a rewrite put in."""
    if original is not None:
        known = constant_tensors(original)
        return lambda name: name not in known
    layers = _rewritten_layers(opened)
    if not layers and what == "factors":
        raise ModelError(
            f"{opened.name} holds no plan that tells what was rewritten: give the original model"
        )
    prefixes = tuple(f"{layer}." for layer in layers)
    return lambda name: name.startswith(prefixes) if prefixes else False


def _rewritten_layers(opened: Model) -> Sequence[str]:
    """Return the names of the layers that the plans in a model's metadata rewrote."""
    found: dict[str, None] = {}
    for entry in opened.proto.metadata_props:
        if not re.fullmatch(rf"{re.escape(METADATA_KEY)}(\.\d+)?", entry.key):
            continue
        try:
            plan = Plan.loads(entry.value, f"{opened.name}: metadata '{entry.key}'")
        except PlanError:
            continue
        found |= {name: None for name, choice in plan.layers.items() if not choice.keeps}
    return list(found)
