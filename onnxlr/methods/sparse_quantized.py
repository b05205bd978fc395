"""A small dictionary and few whole numbers for each tile of a weight, recombined at inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.atoms import BIT, Asked, Fitted, Form, Sizes, Weight, candidates, search
from onnxlr.methods.budget import MOST_BITS, check_size
from onnxlr.methods.method import Options, Setting, check_choices
from onnxlr.methods.offering import Occasion, Offer
from onnxlr.metrics import relative_error
from onnxlr.numbers.atom_storage import FLOATS
from onnxlr.numbers.atoms import Atoms
from onnxlr.stages import Chain
from onnxlr.stages.recombined import recombined

__all__ = ["RECOMBINE", "SparseQuantized", "SparseQuantizedOptions"]

RECOMBINE = ("load", "run")
"""When the weight is made of its atoms."""

_BITS = 3.0
"""Where nothing else is asked."""

_TILE = 3
"""Inputs of a tile where the number of atoms is given and the tile is not."""

_MANY_ATOMS = 4096
"""More than this, and than a weight has tiles, are refused: that many take only time."""

_OFFERED_BITS, _SMALLEST_OFFERED, _LEFT = (2.0, 3.0, 4.0), 512, 1.0
"""Bits that are offered, of weights of so many entries at least, if scales leave so many bits."""

_METRICS = ("frobenius", "activation", "fisher-rows")
_MOST_BITS = 8.0
"""The most bits that are tried: behind it int8 takes no more."""


@dataclass(frozen=True)
class SparseQuantizedOptions:
    """A budget, or the form itself.

    At most one of `bits`, `max_error` and `atoms` is given; none means 3 bits.

    Attributes
    ----------
    bits
        Stored bits for each entry of the original weight, scales included.
    max_error
        Largest relative error `‖W − Ŵ‖/‖W‖` in the metric, 0 ≤ max_error < 1.
    atoms
        Of sparse_quantized: the number of atoms in the dictionary.
    tile
        Of sparse_quantized: inputs of a tile, which are the numbers of an atom; the weight's own
        number of inputs, or any that is larger, makes one tile of all. Chosen if not given.
    nonzeros
        Of sparse_quantized: atoms that a tile of one output takes. Chosen if not given, 1 where
        `atoms` are.
    value_bits
        Of sparse_quantized: bits of how much a tile takes of an atom, 2 to 8 for whole numbers, 16
        or 32 for floats; 0 for atoms that are taken as they are. Chosen if not given, of floats
        never; 0 where `atoms` are.
    dictionary_bits
        Of sparse_quantized: bits of a number of an atom, 4 or 8 for whole numbers, 16 or 32 for
        floats; 0 for the inputs themselves as atoms, which are as many. Chosen if not given, 8
        where `atoms` are.
    recombine
        Of sparse_quantized: when the weight is made of its atoms, `load` (the default: once, when
        the model is loaded, at full speed) or `run` (in each run, so that memory stays small).
    """

    bits: float | None = None
    max_error: float | None = None
    atoms: int | None = None
    tile: int | None = None
    nonzeros: int | None = None
    value_bits: int | None = None
    dictionary_bits: int | None = None
    recombine: str | None = None

    choices: ClassVar[Mapping[str, Sequence[str]]] = {"recombine": RECOMBINE}

    def __post_init__(self) -> None:
        check_choices(self)
        budgets = ("bits", "max_error", "atoms")
        given = [name for name in budgets if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} are both given, expected one budget")
        if self.bits is not None:
            check_size("bits", self.bits, MOST_BITS)
        if self.max_error is not None and not 0 <= self.max_error < 1:
            raise UsageError(f"max_error {self.max_error} is not at least 0 and below 1")
        for name in ("atoms", "tile", "nonzeros"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"{name} {value} is not a whole number of at least 1")
        _expect("value_bits", self.value_bits, (0, 2, 3, 4, 5, 6, 7, 8, 16, 32))
        _expect("dictionary_bits", self.dictionary_bits, (0, 4, 8, 16, 32))

    def __str__(self) -> str:
        if None not in (
            self.atoms,
            self.tile,
            self.nonzeros,
            self.value_bits,
            self.dictionary_bits,
        ):
            return self._form
        shown = [
            f"{field.name} {value}"
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        ]
        if self.bits is None and self.max_error is None and self.atoms is None:
            shown.insert(0, f"bits {_BITS:g}")
        return ", ".join(shown)

    @property
    def _form(self) -> str:
        """What is stored, in a few words: `256 atoms of 3 × 8 bits`."""
        atoms = f"{self.atoms} atoms of {self.tile} × {self.dictionary_bits} bits"
        if not self.dictionary_bits:
            atoms = f"tiles of {self.tile}"
        taken = f", {self.nonzeros} each" if self.nonzeros != 1 or self.value_bits else ""
        values = f" × {self.value_bits} bits" if self.value_bits else ""
        run = ", recombined in each run" if self.recombine == "run" else ""
        return f"{atoms}{taken}{values}{run}"


@dataclass(frozen=True)
class _FormChain(Chain):
    """A chain of one stage that knows its form."""

    form: Form | None = None


class SparseQuantized:
    """`W ≈ A Z` by tiles, `A` a small dense dictionary on a grid and `Z` sparse and on a grid.

    Source for the form: *Quantized Sparse Weight Decomposition for Neural Network Compression*,
    which unifies the singular value decomposition (no grid, no zeros), vector quantisation (columns
    of `Z` with one entry, which is 1) and sparse principal components (no grid). Dictionaries with
    entries of several values start as COMPOT's (2026); all are fitted with error feedback over
    tiles (`methods.atoms`). `docs/methods.md` says what is added.
    """

    name = "sparse_quantized"
    options: type[Options] = SparseQuantizedOptions
    default_format: str | None = None
    is_slow = True

    def factorize(
        self, weight: npt.NDArray[Any], options: SparseQuantizedOptions, setting: Setting
    ) -> Chain:
        """Return one stage that is stored as atoms.

        Raises
        ------
        UsageError
            If no form of the weight is as small, or as good, as is asked; if the weight is a table
            or a stack of matrices; if the metric is one of single entries or of outputs.
        """
        _check(weight, setting)
        own = Weight(weight, setting.metric, setting.groups, setting.compute, setting.seed)
        if options.atoms is not None:
            fitted = own.fitted(_form(options, own), setting.progress)
        elif options.max_error is not None:
            return self._within_error(own, options, setting)
        else:
            fitted = search(own, _affordable(own, options), setting.progress)
        return _chain(fitted, own, options, setting)

    def _within_error(
        self, weight: Weight, options: SparseQuantizedOptions, setting: Setting
    ) -> Chain:
        """Return the chain of the fewest bits that are expected to be enough, and are."""
        limit = options.max_error or 0.0
        exact = weight.numbers.astype(np.float64)
        most = _most_bits(weight, options)
        sizes = Sizes(weight, _asked(options, weight), most)
        wanted = limit**2
        size = sizes.fewest(1, wanted, _BITS)
        while size is not None:
            form, expected = sizes.best(size)
            chain = _chain(weight.fitted(form, setting.progress), weight, options, setting)
            error = relative_error(setting.metric, exact, chain.reconstruct(), setting.groups)
            if error <= limit:
                return chain
            # so much more than expected, others will lose as well; of a bit at most
            wanted = min(wanted, limit**2 * max(expected / error**2, BIT))
            size = sizes.fewest(size + 1, wanted) or sizes.last(size + 1, limit**2)
        raise UsageError(
            f"max_error {limit:g} is not reached with {most:g} bits for each entry of the weight: "
            "allow a larger error"
        )

    def settle(self, options: SparseQuantizedOptions, chain: Chain) -> SparseQuantizedOptions:
        """Return the form that the chain has."""
        if not isinstance(chain, _FormChain) or chain.form is None:
            raise TypeError(f"a chain that {self.name} did not make has no form")
        form = chain.form
        return SparseQuantizedOptions(
            atoms=form.atoms,
            tile=form.tile,
            nonzeros=form.nonzeros,
            value_bits=form.value_bits,
            dictionary_bits=form.dictionary_bits,
            recombine=options.recombine,
        )

    def heeds_metric(self, options: SparseQuantizedOptions, setting: Setting) -> bool:  # noqa: ARG002
        """Return that it does."""
        return True

    def offers(self, occasion: Occasion) -> tuple[Offer, ...]:
        """Return a few numbers of bits, where scales and a dictionary leave some for the tiles."""
        if occasion.is_table or occasion.is_stack or occasion.entries < _SMALLEST_OFFERED:
            return ()
        scales = 8 * np.dtype(occasion.stored).itemsize / occasion.inputs
        offered = [bits for bits in _OFFERED_BITS if bits - scales >= _LEFT]
        return tuple(Offer(SparseQuantizedOptions(bits=bits)) for bits in offered)


def _expect(name: str, value: int | None, known: tuple[int, ...]) -> None:
    if value is not None and (isinstance(value, bool) or value not in known):
        raise UsageError(f"{name} {value} is unknown, expected one of {', '.join(map(str, known))}")


def _check(weight: npt.NDArray[Any], setting: Setting) -> None:
    if setting.is_table:
        raise UsageError(
            "a table of rows has no product to recombine a weight for; method quantize changes its "
            "format"
        )
    if setting.groups is None and weight.ndim != 2:
        raise UsageError(
            f"sparse_quantized is for one matrix or a kernel, found a stack {weight.shape}: take "
            "another method"
        )
    if setting.format.kind != setting.stored or setting.format.group:
        raise UsageError(
            f"sparse_quantized has grids of its own, not {setting.format}: leave the format out, "
            "and give --bits"
        )
    if setting.metric.name not in _METRICS:
        raise UsageError(
            f"sparse_quantized fits in metric {', '.join(_METRICS)}, not {setting.metric.name}"
        )


def _form(options: SparseQuantizedOptions, weight: Weight) -> Form:
    """Return the form that is given by its atoms."""
    inputs, _ = weight.shape
    width = min(options.tile or _TILE, inputs)
    bits = 8 if options.dictionary_bits is None else options.dictionary_bits
    atoms, entries, own = options.atoms or 1, options.nonzeros or 1, options.value_bits or 0
    if bits == 0 and (atoms != width or own == 0):
        raise UsageError(
            f"dictionary_bits 0 stands for the inputs of a tile as atoms, found {atoms} atoms for "
            f"tiles of {width} and value_bits {own}: expected as many atoms, and values"
        )
    if entries > atoms:
        raise UsageError(f"nonzeros {entries} is more than the {atoms} atoms there are")
    columns = -(-inputs // width) * weight.shape[1]
    if atoms > max(columns, _MANY_ATOMS):
        raise UsageError(
            f"atoms {atoms} is more than the {columns} tiles of {width} inputs that the weight has"
        )
    return Form(width, atoms, entries, own, bits)


def _asked(options: SparseQuantizedOptions, weight: Weight) -> Asked:
    """Return what the form must be like, with tiles no wider than the weight."""
    tile = None if options.tile is None else min(options.tile, weight.shape[0])
    return Asked(tile, options.nonzeros, options.value_bits, options.dictionary_bits)


def _affordable(weight: Weight, options: SparseQuantizedOptions) -> list[Form]:
    """Return the forms of a number of bits; more than are of use are not looked at."""
    most = _most_bits(weight, options)
    bits = min(_BITS if options.bits is None else options.bits, most)
    asked, size = _asked(options, weight), weight.numbers.size / 8
    forms = candidates(weight, bits * size, asked)
    if forms:
        return forms
    where = f"of a {weight.shape[0]}×{weight.shape[1]} weight"
    if candidates(weight, most * size, asked):
        raise UsageError(
            f"{bits:g} bits are less than any such form {where} takes, with the scales of its "
            "outputs: give more"
        )
    raise UsageError(
        f"no form {where} has {asked} with up to {most:g} bits for each entry: "
        "docs/methods.md lists the forms"
    )


def _most_bits(weight: Weight, options: SparseQuantizedOptions) -> float:
    """Return the most bits for each entry that can be of use."""
    return 8.0 * weight.compute.itemsize if options.value_bits in FLOATS else _MOST_BITS


def _chain(
    fitted: Fitted, weight: Weight, options: SparseQuantizedOptions, setting: Setting
) -> Chain:
    shape = weight.numbers.shape
    kernel = setting.groups is not None
    scales = fitted.scales.astype(setting.compute)
    atoms = Atoms(shape, fitted.dictionary, fitted.coefficients, scales, kernel)
    window = tuple(range(len(shape) - 2)) if kernel else ()
    stage = recombined(atoms, setting.groups, window, options.recombine == "run")
    return _FormChain((stage,), fitted.form)
