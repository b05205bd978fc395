"""A sum of components, each of them a product of one vector for each mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.method import Options, Setting
from onnxlr.methods.offering import Occasion, Offer
from onnxlr.methods.tensors import (
    Modes,
    Network,
    NetworkChain,
    Steps,
    Structure,
    TensorMethod,
    TensorOptions,
    Tensors,
    check_kernel,
    ranks_asked,
)
from onnxlr.methods.tensors.components import Components, fit_components, spread
from onnxlr.progress import Progress, silent
from onnxlr.stages import Chain, KhatriRao

__all__ = ["ComponentChain", "Cp", "CpOptions", "CpStructure"]

Matrix = npt.NDArray[np.float64]

FORMS = ("joint", "separable")

_MATRIX_MODES = 2
"""Modes of each side of a matrix where their sizes are not given."""

_MORE = 1.1
"""How many times the components of the joint form the separable one has to have at one size to be
tried: it is a special case of the joint one, and worse with as many."""

_OFFERED, _LARGEST_OFFERED = 0.25, 1 << 18
"""The ratio that is offered, and the most entries: a fit of twice as many takes ten seconds."""

_SPREAD_LIMIT = 100.0
"""`spread` of components that are refused: rounding them would cost two digits more than rounding
the weight."""


@dataclass(frozen=True)
class CpOptions(TensorOptions):
    """As of all tensor decompositions, and for convolutions how the window is factorized.

    Attributes
    ----------
    form
        Of cp: `joint` (1×1, a k×k filter for each channel, 1×1), `separable` (the filter along one
        axis after the other), or `auto`, the default: the better of them.
    """

    form: str | None = None

    choices: ClassVar[Mapping[str, Sequence[str]]] = {"form": ("auto", *FORMS)}

    def __str__(self) -> str:
        form = f", {self.form}" if self.form else ""
        return f"{super().__str__()}{form}"


@dataclass(frozen=True)
class ComponentChain(NetworkChain):
    """The steps of a sum of components.

    Attributes
    ----------
    form
        That of a convolution, None of a matrix.
    """

    form: str | None = None


class Cp(TensorMethod):
    """`W ≈ Σ_r a_r ∘ b_r ∘ c_r …` (Hitchcock 1927, Carroll and Chang 1970, Harshman 1970).

    A convolution becomes 1×1, depthwise k×k and 1×1, or with the window's axes apart (Lebedev et
    al., ICLR 2015).
    """

    name = "cp"
    options: type[Options] = CpOptions

    def structure(
        self, weight: npt.NDArray[Any], options: CpOptions, setting: Setting
    ) -> Structure:
        """Return sums of components over the modes, in the form of the options or the first."""
        modes = Modes.of(weight, setting.groups, options, _MATRIX_MODES)
        if modes.groups is None:
            _check_matrix(options, setting)
            return CpStructure(modes, progress=setting.progress)
        _check_kernel(modes)
        if options.form == "separable" and setting.whole_window and len(modes.wide) > 1:
            raise UsageError(
                "the node states its output_shape, which has to be moved along all axes at once: "
                "only form joint can"
            )
        separable = options.form == "separable" and len(modes.wide) > 1
        return CpStructure(modes, separable, setting.progress)

    def factorize(self, weight: npt.NDArray[Any], options: CpOptions, setting: Setting) -> Chain:
        """Return the steps of the components, in the better form where none is named.

        Raises
        ------
        UsageError
            As of all tensor decompositions; or if components cancel each other to the last digits.
        """
        if setting.is_table or setting.groups is None:
            return super().factorize(weight, options, setting)
        found: list[ComponentChain] = []
        refused: UsageError | None = None
        for form in self._forms(weight, options, setting):
            try:
                chain = super().factorize(weight, replace(options, form=form), setting)
            except UsageError as error:
                refused = error
                continue
            ranks = chain.ranks if isinstance(chain, NetworkChain) else ()
            found.append(ComponentChain(chain.stages, ranks, form))
        if not found:
            raise refused or ValueError("no form was tried")
        if len(found) == 1:
            return found[0]
        tensors = Tensors(self.structure(weight, options, setting), weight, setting)
        if options.limits_bytes:
            return min(found, key=tensors.error)
        return min(found, key=lambda chain: chain.cost.bytes)

    def _forms(
        self, weight: npt.NDArray[Any], options: CpOptions, setting: Setting
    ) -> tuple[str, ...]:
        """Return the forms that are tried."""
        if options.form not in (None, "auto"):
            return (str(options.form),)
        joint = self.structure(weight, options, setting)
        if options.rank is not None or setting.whole_window:
            return FORMS[:1]
        apart = self.structure(weight, replace(options, form="separable"), setting)
        return FORMS if joint.parameters((1,)) >= _MORE * apart.parameters((1,)) else FORMS[:1]

    def settle(self, options: Any, chain: Chain) -> Options:
        """Return the options with the rank and the form that the chain has."""
        form = chain.form if isinstance(chain, ComponentChain) else None
        settled: Options = replace(super().settle(options, chain), form=form)
        return settled

    def offers(self, occasion: Occasion) -> tuple[Offer, ...]:
        """Return few components in int8 of a convolution with a window, of weights soon fitted.

        With half of the numbers it takes as long as the convolution, and sums of atoms of as many
        bytes are closer; of a matrix it takes several times as long.
        """
        small = occasion.component <= _OFFERED and occasion.entries <= _LARGEST_OFFERED
        if not (occasion.splits_window and small):
            return ()
        return (Offer(CpOptions(ratio=_OFFERED, form="joint"), "int8"),)


def _check_matrix(options: CpOptions, setting: Setting) -> None:
    """Refuse what a product of factors cannot be kept in, and forms of convolutions."""
    if options.form not in (None, "auto"):
        raise UsageError(f"form '{options.form}' is for convolutions, the weight is a matrix")
    if not setting.format.is_float:
        raise UsageError(
            "cp of a matrix leaves products of its factors to the runtime, which are floats, found "
            f"format '{setting.format.kind}': leave it out, or take another method"
        )


def _check_kernel(modes: Modes) -> None:
    """Refuse kernels that components of channels and window cannot make smaller."""
    if len(modes.inputs) > 1 or len(modes.outputs) > 1:
        raise UsageError(
            f"modes {modes.text} split the channels of a convolution, and cp has one vector for "
            "all inputs and one for all outputs there: leave modes out, or take tucker"
        )
    check_kernel(modes, "CP")


@dataclass(frozen=True)
class CpStructure:
    """Sums of components, of which each mode has a factor `(size, components)`.

    Attributes
    ----------
    modes
        Of the weight.
    separable
        Whether each axis of the window is a mode; otherwise the window is one.
    progress
        Told how far a fit is.
    """

    modes: Modes
    separable: bool = False
    progress: Progress = field(default=silent, compare=False)
    polishing: int = 0

    @property
    def _window(self) -> tuple[int, ...]:
        if not self.modes.window:
            return ()
        if not self.separable:
            return (prod(self.modes.window),)
        return tuple(self.modes.window[axis] for axis in self.modes.wide)

    @property
    def rows(self) -> tuple[int, ...]:
        """Modes of the inputs and of the window; axes of one entry are none."""
        return (*self.modes.inputs, *self._window)

    @property
    def columns(self) -> tuple[int, ...]:
        """Modes of the outputs."""
        return self.modes.outputs

    @property
    def _shape(self) -> tuple[int, ...]:
        return (*self.rows, *self.columns)

    @property
    def _most(self) -> int:
        """Components with which every tensor of the shape is exact."""
        return prod(self._shape) // max(self._shape)

    def levels(self, tensors: Sequence[Matrix]) -> Sequence[tuple[int, ...]]:  # noqa: ARG002
        """Return every number of components."""
        return [(count,) for count in range(1, self._most + 1)]

    def closest(self, ranks: tuple[int, ...] | int) -> tuple[int, ...]:
        """Return the number of components asked for, at most what makes the weight exact."""
        return ranks_asked(ranks, [self._most], ["components"], [1])

    def decompose(self, tensor: Matrix, ranks: tuple[int, ...], seed: int) -> Network:
        """Return components of least squared error."""
        found = fit_components(tensor, len(self.rows), ranks[0], seed, self.progress)
        return self._network(found.factors)

    def _network(self, factors: Sequence[Matrix]) -> Network:
        count = len(self._shape)
        labels = tuple((axis, count) for axis in range(count))
        return Network(tuple(factors), labels, tuple(range(count)))

    def empty(self, ranks: tuple[int, ...]) -> Network:
        """Return a network of zeros."""
        return self._network([np.zeros((size, ranks[0])) for size in self._shape])

    def parameters(self, ranks: tuple[int, ...]) -> int:
        """Return the entries of all factors."""
        return ranks[0] * sum(self._shape)

    def chain(self, networks: Sequence[Network]) -> Chain:
        """Return the steps that gather the components, filter them and spread them again.

        Raises
        ------
        UsageError
            If components cancel each other: larger ones would be a little nearer forever.
        """
        parts = [_checked(network).factors for network in networks]
        if self.modes.groups is None:
            inputs = len(self.rows)
            first = KhatriRao.of_factors(parts[0][:inputs], gathers=True)
            return Chain((first, KhatriRao.of_factors(parts[0][inputs:], gathers=False)))
        gathered, *filters, made = (np.stack(f) for f in zip(*parts, strict=True))
        rank = gathered.shape[2]
        steps = Steps(self.modes)
        steps.multiply(0, 1, gathered, (rank,))
        for axes, kernels in zip(self._filtered(), filters, strict=True):
            extent = [size if axis in axes else 1 for axis, size in enumerate(self.modes.window)]
            steps.filter(0, kernels.swapaxes(1, 2).reshape(len(parts), rank, *extent), axes)
        steps.multiply(0, 1, made.swapaxes(1, 2), self.modes.outputs)
        return steps.chain()

    def _filtered(self) -> list[tuple[int, ...]]:
        """Return the spatial axes that each filter takes; the first those of one entry as well."""
        everything = tuple(range(len(self.modes.window)))
        if not self.separable:
            return [everything]
        others = self.modes.wide[1:]
        return [tuple(a for a in everything if a not in others), *((axis,) for axis in others)]


def _checked(network: Network) -> Components:
    """Return a network's components, each by vectors of one norm."""
    components = Components(network.cores)
    norms = components.norms
    if norms.any():
        size = float(np.linalg.norm(network.dense()))
        if not spread(components, size) <= _SPREAD_LIMIT:
            raise UsageError(
                f"the {len(norms)} components of cp cancel each other to less than a hundredth of "
                "their size: the weight has no best sum of so many; take another rank, or tucker"
            )
    return components.balanced()
