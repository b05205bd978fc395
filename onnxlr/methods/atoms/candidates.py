"""Which forms a number of bytes allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

from onnxlr.methods.atoms.form import Form
from onnxlr.methods.atoms.weight import Weight

__all__ = ["Asked", "candidates"]

_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
_ENTRIES = (1, 2, 3)
_MOST_ATOMS = 4096
"""With more, fits take several times as long, and lose a few percent less."""

_FEWEST_COLUMNS = 4
"""Columns for each atom at least: with fewer, the dictionary would be the weight itself."""

_SQUARE = 16
"""Width of tiles with as many atoms: what a mask says of them are whole bytes."""

_WIDEST_SQUARE = 64
"""Wider ones are slow to fit, and not looked at unless they are asked for by all their bits."""

_SQUARE_BITS = (3, 4)
_WHOLE_BITS = (4, 6, 8)
_DICTIONARY_BITS = (8, 16)
_BEHIND = 0.4
"""Bits that an input is described by less than in another form, from which on a form with entries
of 1 is not looked at."""


@dataclass(frozen=True)
class Asked:
    """What a form must be like; None is left to the search.

    Attributes
    ----------
    tile, nonzeros, value_bits, dictionary_bits
        As in `Form`.
    """

    tile: int | None = None
    nonzeros: int | None = None
    value_bits: int | None = None
    dictionary_bits: int | None = None

    def __str__(self) -> str:
        given = [
            f"{one.name} {value}"
            for one in fields(self)
            if (value := getattr(self, one.name)) is not None
        ]
        return ", ".join(given) or "any properties"

    def allows(self, form: Form) -> bool:
        """Return whether a form is like that."""
        names = ("tile", "nonzeros", "value_bits", "dictionary_bits")
        return all(getattr(self, name) in (None, getattr(form, name)) for name in names)

    def one_of(self, name: str, usual: tuple[int, ...]) -> tuple[int, ...]:
        """Return what is asked, or what is usual."""
        asked = getattr(self, name)
        return usual if asked is None else (asked,)


def candidates(weight: Weight, limit: float, asked: Asked) -> list[Form]:
    """Return the largest forms of each kind that take no more than `limit` bytes.

    Entries of 1 of small tiles (vector quantisation, and sums of several of its atoms), entries of
    few bits of square dictionaries or of the inputs themselves, and sums of whole columns.
    """
    clusters = [form for form in _clusters(weight, limit, asked) if asked.allows(form)]
    found = []
    for count in sorted({form.nonzeros for form in clusters}):
        own = [form for form in clusters if form.nonzeros == count]
        most = max(form.rate for form in own)
        behind = _BEHIND if count == 1 else 0.0  # sums of atoms are slow to try, and seldom best
        found += [form for form in own if form.rate >= most - behind]
    found += [form for form in _squares(weight, limit, asked) if asked.allows(form)]
    found += [form for form in _wholes(weight, limit, asked) if asked.allows(form)]
    return list(dict.fromkeys(found))


def _clusters(weight: Weight, limit: float, asked: Asked) -> Iterator[Form]:
    inputs, outputs = weight.shape
    for width in asked.one_of("tile", _WIDTHS):
        columns = -(-inputs // width) * outputs
        most = min(_MOST_ATOMS, max(columns // _FEWEST_COLUMNS, 2))
        for count in asked.one_of("nonzeros", _ENTRIES):
            for bits in asked.one_of("dictionary_bits", _DICTIONARY_BITS):
                form = Form(width, most, count, 0, bits)
                if width <= inputs and bits and count < most:
                    yield from _with_atoms(weight, limit, form)


def _squares(weight: Weight, limit: float, asked: Asked) -> Iterator[Form]:
    if (asked.tile or _SQUARE) > _WIDEST_SQUARE and None in (
        asked.value_bits,
        asked.dictionary_bits,
    ):
        return
    width = min(asked.tile or _SQUARE, weight.shape[0])
    for own in asked.one_of("value_bits", _SQUARE_BITS):
        for bits in asked.one_of("dictionary_bits", (0, _beside(own))):
            if own:
                yield from _with_entries(weight, limit, Form(width, width, width, own, bits), asked)


def _wholes(weight: Weight, limit: float, asked: Asked) -> Iterator[Form]:
    inputs, outputs = weight.shape
    for own in asked.one_of("value_bits", _WHOLE_BITS):
        for bits in asked.one_of("dictionary_bits", (_beside(own),)):
            kinds = [_Whole(inputs, own, bits, share, asked.nonzeros) for share in (1, 2)]
            for kind in kinds if own and bits else ():
                yield from kind.within(weight, limit, min(inputs, outputs) - 1)


@dataclass(frozen=True)
class _Whole:
    """Forms of one tile: columns take all atoms, or one in `share` of them."""

    inputs: int
    value_bits: int
    dictionary_bits: int
    share: int
    nonzeros: int | None

    def of(self, rank: int) -> Form:
        """Return the form with so many atoms."""
        entries = self.nonzeros or max(rank // self.share, 1)
        return Form(self.inputs, rank, min(entries, rank), self.value_bits, self.dictionary_bits)

    def within(self, weight: Weight, limit: float, most: int) -> Iterator[Form]:
        """Yield the form of the most atoms that takes no more bytes than a limit."""
        rank = _largest(most, lambda k: weight.bytes(self.of(k)) <= limit)
        if rank:
            yield self.of(rank)


def _beside(value_bits: int) -> int:
    """Return the usual bits of a dictionary: with entries that are floats it has no grid either."""
    return max(value_bits, 8)


def _with_atoms(weight: Weight, limit: float, most: Form) -> Iterator[Form]:
    count = _largest(most.atoms, lambda k: weight.bytes(replace(most, atoms=k)) <= limit)
    if count > most.nonzeros:
        yield replace(most, atoms=count)


def _with_entries(weight: Weight, limit: float, most: Form, asked: Asked) -> Iterator[Form]:
    entries = min(asked.nonzeros or most.nonzeros, most.nonzeros)
    count = _largest(entries, lambda s: weight.bytes(replace(most, nonzeros=s)) <= limit)
    if count:
        yield replace(most, nonzeros=count)


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """Return the largest whole number up to `most` that fits, 0 if none does."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
