"""Trains of paired modes can be multiplied from either end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from onnxlr.methods.method import Options, Setting
from onnxlr.methods.tensors.method import TensorMethod
from onnxlr.methods.tensors.options import TensorOptions

__all__ = ["ORDERS", "EitherEnd", "TrainOptions"]

ORDERS = ("forward", "backward")


@dataclass(frozen=True)
class TrainOptions(TensorOptions):
    """As of all tensor decompositions, and which core comes first.

    Attributes
    ----------
    order
        Of kronecker, and of tensor_train and semi_tensor_train of matrices: forward multiplies by
        the core of the first modes first, backward by that of the last. If not given, the faster
        one as measured where a model is rewritten, else forward.
    """

    order: str | None = None

    choices: ClassVar[Mapping[str, Sequence[str]]] = {"order": ORDERS}

    def __str__(self) -> str:
        order = f", {self.order}" if self.order else ""
        return f"{super().__str__()}{order}"


class EitherEnd(TensorMethod):
    """A method whose trains of paired modes give the same weight in two orders.

    Attributes
    ----------
    pairs_kernels
        Whether the channels of convolutions are paired as well.
    """

    options: type[Options] = TrainOptions
    pairs_kernels = False

    def orders(self, options: Any, setting: Setting) -> tuple[Options, ...]:
        """Return the options with each order; none where one is named, or there is one only."""
        if options.order is not None or (setting.groups is not None and not self.pairs_kernels):
            return ()
        return tuple(replace(options, order=order) for order in ORDERS)
