"""Where a model's constants go: which nodes read them, and what is made of them alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from onnxlr.training.program import Call
from onnxlr.training.trainable import TrainableModel

__all__ = ["MOVES", "Flow", "Use", "is_move"]

MOVES = frozenset(
    ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand")
)
"""Operators that move the numbers of their first input about, and change none."""

_DRAWING = frozenset(
    (
        *("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"),
        *("Bernoulli", "Multinomial", "Dropout"),
    )
)


@dataclass(frozen=True)
class Use:
    """A node that reads a tensor.

    Attributes
    ----------
    call
        The node.
    place
        Of the tensor among its inputs.
    """

    call: Call
    place: int

    def at(self, operator: str, *places: int, domain: str = "") -> bool:
        """Whether it is an operator's input of one of these places; of any, if none is given."""
        same = self.call.operator == operator and self.call.domain == domain
        return same and (not places or self.place in places)

    @property
    def other(self) -> str:
        """The other input of an operator of two."""
        return self.call.inputs[1 - self.place]


def is_move(use: Use) -> bool:
    """Whether a node only moves the tensor's numbers."""
    return not use.call.domain and use.call.operator in MOVES and use.place == 0


class Flow:
    """Who makes and who reads each tensor of a model's main graph, before anything is replaced."""

    def __init__(self, model: TrainableModel) -> None:
        self.model = model
        self.makers = {name: call for call in model.calls for name in call.outputs if name}
        self.users: dict[str, list[Use]] = {}
        self.captured: set[str] = set()
        for call in model.calls:
            for place, name in enumerate(call.inputs):
                self.users.setdefault(name, []).append(Use(call, place))
            for program in call.programs.values():
                self.captured.update(name for inner in program.all_calls() for name in inner.inputs)

    @cached_property
    def fixed(self) -> frozenset[str]:
        """Names of the constants, and of what is made of constants alone."""
        found = set(self.model.constants)
        for call in self.model.calls:
            drawn = call.operator in _DRAWING or bool(call.programs) or not call.inputs
            if not drawn and all(not name or name in found for name in call.inputs):
                found.update(name for name in call.outputs if name)
        return frozenset(found)

    def uses(self, name: str) -> Sequence[Use]:
        """Return who reads a tensor."""
        return self.users.get(name, [])

    def is_open(self, name: str) -> bool:
        """Whether something beside nodes of the main graph reads a tensor."""
        return name in self.captured or name in self.model.outputs

    def ends(self, name: str, through: Callable[[Use], bool] = is_move) -> Iterator[Use]:
        """Yield who reads a tensor, or what nodes `through` make of it."""
        left, seen = [name], {name}
        while left:
            for use in self.uses(left.pop()):
                if not through(use):
                    yield use
                    continue
                fresh = [output for output in use.call.outputs if output and output not in seen]
                seen.update(fresh)
                left += fresh

    def made_of(self, name: str) -> tuple[str, ...]:
        """Return the fixed tensors made of a fixed one that are read where data is."""
        left, seen, found = [name], {name}, []
        while left:
            current = left.pop()
            dynamic = False
            for use in self.uses(current):
                outputs = [output for output in use.call.outputs if output]
                if not self.fixed.issuperset(outputs):
                    dynamic = True
                    continue
                fresh = [output for output in outputs if output not in seen]
                seen.update(fresh)
                left += fresh
            if dynamic or self.is_open(current):
                found.append(current)
        return tuple(sorted(found))

    def behind(self, name: str, through: Callable[[Use], bool] = is_move) -> str:
        """Return what a tensor was before nodes `through` took it as their first input."""
        while True:
            call = self.makers.get(name)
            if call is None or not call.inputs or not through(Use(call, 0)):
                return name
            name = call.inputs[0]
