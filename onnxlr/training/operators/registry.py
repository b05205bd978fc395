"""Which function computes which operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from onnxlr.training.operators.kinds import refuses_kept
from onnxlr.training.program import Call

__all__ = ["OPERATORS", "Run", "operator", "refusal"]

Function = Callable[..., Any]


@dataclass(frozen=True)
class Run:
    """What a function knows of its node and of the run.

    Attributes
    ----------
    call
        The node.
    floating
        Float type in which everything that is float32 in the model is computed.
    training
        Whether normalisations take the batch's own mean and variance, and dropout drops.
    memory
        What was made of constants in earlier runs.
    """

    call: Call
    floating: Any
    training: bool
    memory: dict[Any, Any] = field(default_factory=dict)

    def kept(self, place: int, tensor: Any, make: Callable[[], Any]) -> Any:
        """Return what is made of an input, made anew only if that is another tensor than before.

        Parameters
        ----------
        place
            Of the input.
        tensor
            The input; only of one that no gradient flows to may anything be kept.
        make
            Makes it.
        """
        key = (self.call, place)
        known = self.memory.get(key)
        if known is not None and known[0] is tensor and known[1] == tensor._version:  # noqa: SLF001
            return known[2]
        made = make()
        self.memory[key] = (tensor, tensor._version, made)  # noqa: SLF001
        return made

    def number(self, name: str, usual: Any = None) -> Any:
        """Return an attribute, or what it is if not given."""
        return self.call.number(name, usual)

    @property
    def version(self) -> int:
        """Opset that the node is of."""
        return self.call.version


@dataclass(frozen=True)
class _Operator:
    function: Function
    refuses: Callable[[Call], str | None]
    lists: frozenset[int]


OPERATORS: dict[tuple[str, str], _Operator] = {}
"""By domain and type. A function takes a `Run` and the inputs, None where one is left out, and
returns the output, or a tuple of outputs."""


def _takes_all(call: Call) -> str | None:  # noqa: ARG001
    return None


def operator(
    *names: str,
    domain: str = "",
    refuses: Callable[[Call], str | None] = _takes_all,
    lists: Iterable[int] = (),
) -> Callable[[Function], Function]:
    """Register a function for operators.

    Parameters
    ----------
    names, domain
        The operators.
    refuses
        Says why it does not cover a node, None if it does.
    lists
        Places of inputs that it takes as Python has them, a number or lists of numbers: sizes, axes
        and other things that say what is done, and through which no gradient flows.
    """
    taken = frozenset(lists)

    def register(function: Function) -> Function:
        for name in names:
            OPERATORS[domain, name] = _Operator(function, refuses, taken)
        return function

    return register


def refusal(call: Call) -> str | None:
    """Return why a node cannot be run, None if it can."""
    known = OPERATORS.get((call.domain, call.operator))
    if known is None:
        return "the operator is not covered"
    if not call.domain and {"broadcast", "axis"} <= call.attributes.keys():
        return "broadcasting as it was before opset 7 is not covered"
    reasons = (*map(refuses_kept, call.kinds), known.refuses(call))
    return next((reason for reason in reasons if reason is not None), None)
