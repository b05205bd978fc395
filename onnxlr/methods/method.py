"""What a method is: mathematics that turns a weight into a chain, and knows no ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError, check_known
from onnxlr.layers import Layer
from onnxlr.metrics import Frobenius, Metric
from onnxlr.numbers import Format
from onnxlr.progress import Progress, silent
from onnxlr.stages import Chain

__all__ = [
    "Keep",
    "Method",
    "NoOptions",
    "Options",
    "Ordered",
    "Rounding",
    "Setting",
    "Versioned",
    "check_choices",
    "choices_of",
    "format_of",
    "option_names",
]


class Options(Protocol):
    """A frozen dataclass; command line flags and the plan's schema derive from its fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def option_names(options: type[Options]) -> tuple[str, ...]:
    """Return the names of the options of a method."""
    return tuple(field.name for field in fields(options))


def choices_of(options: type[Options]) -> Mapping[str, Sequence[str]]:
    """Return the options of a method that have a fixed set of values, and these.

    Classes of options say so in `choices`.
    """
    found: Mapping[str, Sequence[str]] = getattr(options, "choices", {})
    return found


def check_choices(options: Options) -> None:
    """Refuse options that have a fixed set of values and are none of these; raises UsageError."""
    for name, known in choices_of(type(options)).items():
        value = getattr(options, name)
        if value is not None:
            check_known(name, value, known)


@dataclass(frozen=True)
class NoOptions:
    """A method without options."""

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class Setting:
    """What a method is told beside its own options.

    Attributes
    ----------
    format
        How the factors are kept.
    compute
        Float type of the model, which scales are kept in.
    metric
        What the error is measured in.
    seed
        Of methods that draw random numbers.
    groups
        Of a convolution, whose weight is a kernel `(outputs, inputs/groups, *kernel)`; None for
        matrices.
    is_table
        Whether the weight is a table of which rows are taken, `(rows, width)`.
    stored
        Name of the type that the weight is stored in.
    whole_window
        Whether one stage has to take a convolution's whole window, because the node states the
        shape of its output.
    progress
        Told what a method that takes long has done of one weight.
    """

    format: Format
    compute: np.dtype[Any]
    metric: Metric = field(default_factory=Frobenius)
    seed: int = 0
    groups: int | None = None
    is_table: bool = False
    stored: str = ""
    whole_window: bool = False
    progress: Progress = silent

    @classmethod
    def for_array(
        cls,
        weight: npt.NDArray[Any],
        format: Format | str | None = None,
        metric: Metric | None = None,
        seed: int = 0,
        groups: int | None = None,
    ) -> Setting:
        """Return the setting for a bare array: its own float type unless a format is given."""
        own = weight.dtype.name
        return cls(
            _format(format or own),
            weight.dtype,
            metric or Frobenius(),
            seed,
            groups,
            stored=own,
        )

    @classmethod
    def for_layer(cls, layer: Layer, format: Format | str | None = None, seed: int = 0) -> Setting:
        """Return the setting for a layer's weight: the type it is stored in unless one is given."""
        return cls(
            _format(format or layer.stored),
            layer.dtype,
            seed=seed,
            groups=layer.groups,
            is_table=layer.is_table,
            stored=layer.stored,
            whole_window=any(site.states_output for site in layer.sites),
        )


def _format(format: Format | str) -> Format:
    return Format.parse(format) if isinstance(format, str) else format


class Method(Protocol):
    """Approximates a weight by a chain.

    Attributes
    ----------
    name
        What the command line and plans call it.
    options
        The dataclass of its options.
    default_format
        The format of a method that makes numbers of one kind only; None where any can be asked.
    is_slow
        Whether a fit takes so long that fewer are tried beside what is asked.
    """

    name: str
    options: type[Options]
    default_format: str | None
    is_slow: bool

    def factorize(self, weight: npt.NDArray[Any], options: Any, setting: Setting) -> Chain:
        """Return the chain for a weight of finite numbers.

        Its shape is `(*batch, inputs, outputs)`, or `(outputs, inputs/groups, *kernel)` where
        `setting.groups` is given. `options` is an instance of the method's own options.
        """

    def settle(self, options: Any, chain: Chain) -> Options:
        """Return the options that give this very chain again, as a plan records them."""

    def heeds_metric(self, options: Any, setting: Setting) -> bool:
        """Return whether the chain depends on what the error is measured in."""


@runtime_checkable
class Rounding(Protocol):
    """What a method of one format has beside where its numbers are rounded in groups.

    Attributes
    ----------
    default_group_size, default_rounding
        Of the format, where nothing else is asked; the rounding where statistics are known.
    """

    default_group_size: int
    default_rounding: str


@runtime_checkable
class Versioned(Protocol):
    """What a method has beside whose fit can go too far, so that the whole model is to judge it."""

    def plainer(self, options: Any, setting: Setting) -> Options | None:
        """Return the options of a less fitted version of the same size.

        None where there is none. `options` is what `settle` returned.
        """


@runtime_checkable
class Ordered(Protocol):
    """What a method has beside whose factors give the same weight in several orders of contraction.

    Which one is fastest depends on the data's shape and on the runtime, so that it is measured.
    """

    def orders(self, options: Any, setting: Setting) -> tuple[Options, ...]:
        """Return options that name each order, first the one that is taken where none is named.

        None where there is one order only, or the options name one. `options` is what `settle`
        returned: with the first of the result, `factorize` gives the very chain that it gives with
        them.
        """


def format_of(
    method: Method, kind: str | None, group_size: int | None, rounding: str | None
) -> Format | None:
    """Return the format that a method is to keep its numbers in; None for each weight's own type.

    Raises
    ------
    UsageError
        If the format cannot be parsed, is another than the method's one, or there is none for the
        group size or rounding that are given.
    """
    own = method.default_format
    if own is None:
        if kind is not None:
            return Format.parse(kind, group_size, rounding)
        if group_size is not None or rounding is not None:
            raise UsageError("group size and rounding are of a format of few bits: give --format")
        return None
    if kind not in (None, own):
        raise UsageError(
            f"method '{method.name}' makes {own} numbers, found format '{kind}': leave the format "
            "out, or take another method"
        )
    if isinstance(method, Rounding):
        usual = method.default_group_size if group_size is None else group_size
        return Format.parse(own, usual, rounding)
    if group_size or rounding not in (None, "nearest"):
        raise UsageError(
            f"method '{method.name}' rounds nothing in groups: leave group size and rounding out"
        )
    return Format.parse(own, 0)


class Keep:
    """Leaves the weight as it is."""

    name = "keep"
    options: type[Options] = NoOptions
    default_format: str | None = None
    is_slow = False

    def factorize(self, weight: npt.NDArray[Any], options: Any, setting: Setting) -> Chain:  # noqa: ARG002
        """Refuse: a kept layer is not touched, so that there is nothing to factorize."""
        raise ValueError("a kept layer has no chain")

    def settle(self, options: Any, chain: Chain) -> Options:  # noqa: ARG002
        """Return no options."""
        return NoOptions()

    def heeds_metric(self, options: Any, setting: Setting) -> bool:  # noqa: ARG002
        """Return that nothing depends on anything."""
        return False
