"""What tensor decompositions are asked for: ranks or a budget for them, and the modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxlr.errors import UsageError
from onnxlr.methods.budget import Budget

__all__ = ["TensorOptions", "sizes_of", "sizes_text"]


@dataclass(frozen=True)
class TensorOptions(Budget):
    """A budget, or one rank or several, and the sizes of the modes.

    Sequences of numbers become texts: `(8, 12)` is `8x12`, `((8, 8), (4, 16))` is `8x8,4x16`.

    Attributes
    ----------
    rank
        Of tensor decompositions: one rank for all, or several, as in `8x12`.
    modes
        Of tensor decompositions: sizes that the inputs are split into, and behind a comma those of
        the outputs, as in `8x8x6,16x16x6`. If not given, a convolution's channels are one mode
        each, and the sides of a matrix are split into nearly equal ones.
    """

    rank: int | str | None = None
    modes: str | None = None

    budgets: ClassVar[tuple[str, ...]] = ("rank", *Budget.budgets)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None:
            object.__setattr__(self, "rank", _rank(self.rank))
        if self.modes is not None:
            object.__setattr__(self, "modes", _modes_text(self.modes))

    @property
    def ranks(self) -> tuple[int, ...] | None:
        """The ranks that are asked for one by one; None where one number or a budget is."""
        return sizes_of(self.rank) if isinstance(self.rank, str) else None

    @property
    def mode_sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Sizes of the modes of inputs and outputs, None where they are not given."""
        if self.modes is None:
            return None
        inputs, _, outputs = self.modes.partition(",")
        return sizes_of(inputs) or (), sizes_of(outputs) or ()

    def __str__(self) -> str:
        modes = f", modes {self.modes}" if self.modes else ""
        return f"{super().__str__()}{modes}"


def sizes_of(text: str) -> tuple[int, ...] | None:
    """Return the numbers of a text like `8x8x6`; None if it is no such text."""
    parts = text.strip().split("x")
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 2**31 for part in parts):
        return None
    return tuple(map(int, parts))


def sizes_text(sizes: tuple[int, ...] | list[int]) -> str:
    """Return numbers as a text like `8x8x6`."""
    return "x".join(map(str, sizes))


def _rank(rank: object) -> int | str:
    """Return one rank as a number, several as a text."""
    text = "x".join(map(str, rank)) if isinstance(rank, tuple | list) else str(rank)
    ranks = sizes_of(text)
    if ranks is None:
        raise UsageError(f"rank {text} is not a whole number of at least 1, nor several as in 8x12")
    return ranks[0] if len(ranks) == 1 else sizes_text(ranks)


def _modes_text(modes: object) -> str:
    """Return sizes of inputs and outputs as a text."""
    text = str(modes)
    if isinstance(modes, tuple | list):
        text = ",".join(
            "x".join(map(str, half)) for half in modes if isinstance(half, tuple | list)
        )
    halves = [sizes_of(half) for half in text.split(",")]
    if len(halves) != 2 or None in halves:
        raise UsageError(
            f"modes {text} are not sizes of inputs and of outputs, expected for instance "
            "8x8x6,16x16x6"
        )
    return ",".join(sizes_text(half) for half in halves if half is not None)
