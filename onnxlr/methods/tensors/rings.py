"""Tensor rings: trains whose last core is tied to the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from onnxlr.methods.tensors.contraction import Contraction
from onnxlr.methods.tensors.modes import Modes
from onnxlr.methods.tensors.network import Network
from onnxlr.methods.tensors.ranks import ranks_asked
from onnxlr.methods.tensors.ring_fitting import fit_ring
from onnxlr.methods.tensors.trains import Row, window_cores
from onnxlr.progress import Progress, silent
from onnxlr.stages import Chain

__all__ = ["Ring"]

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ring(Row):
    """Tensor rings, `W(i₁, …, i_d) = tr(G₁[i₁] G₂[i₂] … G_d[i_d])` (Zhao et al. 2016).

    Semi-tensor rings have cores of which each slice `G_k[:, :, γ] = F_k[:, :, γ] ⊗ I_t`, so that
    `r_k · n_k · r_{k+1} / t²` numbers are stored of a core of mode n_k. With the mode as
    `i_k = (a_k, j_k)` and the rank as `r_k = (α_k, β_k)`, the identity says β_k = j_k. Summed over
    the β, F_k has the indices `(α_k, a_k, α_{k+1}, j_{k+1})`: together they are the plain ring of
    ranks α over the modes `(a_k, j_{k+1})`, and are fitted as that. (An identity that passes
    through all cores, as in semi-tensor trains, would close to a factor: the ring of rank r/t.)

    Attributes
    ----------
    minors
        For each core, the axis of size t that the identity ties to its left rank; None of the
        window's, which are not split.
    t
        Size of the identity.
    progress
        Told how far a fit is.
    """

    minors: tuple[int | None, ...]
    t: int = 1
    polishing: int = 0
    progress: Progress = field(default=silent, compare=False)

    @classmethod
    def of(cls, modes: Modes, t: int, whole_window: bool, progress: Progress = silent) -> Ring:
        """Return the rings over the modes, of which t divides those of the channels."""
        parts = 1 if t == 1 else 2
        rows = [*_split(modes.inputs, t), *modes.window]
        columns = _split(modes.outputs, t)
        first = parts * len(modes.inputs)
        inputs = [(axis,) for axis in range(0, first, parts)]
        window = window_cores(modes, first, whole_window)
        outputs = [(axis,) for axis in range(len(rows), len(rows) + len(columns), parts)]
        if not window:
            inputs[0] = (*inputs[0], *range(first, len(rows)))
        majors = [*inputs, *window, *outputs]
        channels = [*range(len(inputs)), *range(len(majors) - len(outputs), len(majors))]
        minors = [majors[k][0] + 1 if t > 1 and k in channels else None for k in range(len(majors))]
        following = [*minors[1:], minors[0]]
        cores = [
            axes if minor is None else (*axes, minor)
            for axes, minor in zip(majors, following, strict=True)
        ]
        return cls(
            modes, tuple(rows), tuple(columns), tuple(cores), tuple(minors), t, progress=progress
        )

    @property
    def _steps(self) -> list[int]:
        """What each rank is a multiple of."""
        return [1 if minor is None else self.t for minor in self.minors]

    def _limits(self) -> list[int]:
        """Return for each bond the largest rank of an unfolding that it can be the rank of."""
        sizes, count = self.sizes, len(self.cores)
        turned = [sizes[k:] + sizes[:k] for k in range(count)]
        return [max(min(prod(row[:k]), prod(row[k:])) for k in range(1, count)) for row in turned]

    def _ranks(self, inner: Sequence[int]) -> tuple[int, ...]:
        return tuple(rank * step for rank, step in zip(inner, self._steps, strict=True))

    def _inner(self, ranks: Sequence[int]) -> tuple[int, ...]:
        return tuple(rank // step for rank, step in zip(ranks, self._steps, strict=True))

    def _shapes(self, inner: Sequence[int]) -> list[tuple[int, int, int]]:
        following = [*inner[1:], inner[0]]
        return list(zip(inner, self.sizes, following, strict=True))

    def levels(self, tensors: Sequence[Matrix]) -> Sequence[tuple[int, ...]]:
        """Return equal ranks from 1 on, and those between, one bond after the other.

        Equal ranks take the fewest numbers of all that reach round the ring alike. (Ranks of a
        closing bond of 1 to 6 with the others by the unfoldings' singular values were worse on
        every kernel tried: .44 to .32 against .29.)
        """
        limits, entries = self._limits(), tensors[0].size
        sizes = self.sizes
        cheapest = sorted(range(len(limits)), key=lambda k: (sizes[k - 1] + sizes[k], k))
        inner = [1] * len(limits)
        found = [self._ranks(inner)]
        while self._entries(inner) < entries and inner != limits:
            least = min(rank for rank, limit in zip(inner, limits, strict=True) if rank < limit)
            for bond in cheapest:
                if inner[bond] == least and least < limits[bond]:
                    inner[bond] += 1
                    found.append(self._ranks(inner))
        return found

    def closest(self, ranks: tuple[int, ...] | int) -> tuple[int, ...]:
        """Return the ranks asked for, each at most that of an unfolding."""
        steps = self._steps
        limits = [step * limit for step, limit in zip(steps, self._limits(), strict=True)]
        names = [f"bond {number}" for number in range(len(limits))]
        return ranks_asked(ranks, limits, names, steps)

    def _entries(self, inner: Sequence[int]) -> int:
        return sum(prod(shape) for shape in self._shapes(inner))

    def parameters(self, ranks: tuple[int, ...]) -> int:
        """Return the entries of all cores."""
        return self._entries(self._inner(ranks))

    def _network(self, cores: Sequence[Matrix]) -> Network:
        count = len(cores)
        ties = [(self.bond(k), self.bond((k + 1) % count)) for k in range(count)]
        return self.network(cores, ties)

    def empty(self, ranks: tuple[int, ...]) -> Network:
        """Return a network of zeros."""
        return self._network([np.zeros(shape) for shape in self._shapes(self._inner(ranks))])

    def decompose(self, tensor: Matrix, ranks: tuple[int, ...], seed: int) -> Network:
        """Return a ring, by alternating least squares from singular value decompositions."""
        return self._network(fit_ring(self.merged(tensor), self._inner(ranks), seed, self.progress))

    def chain(self, networks: Sequence[Network]) -> Chain:
        """Return one step for each core, from the inputs round to the outputs.

        The first bond, and the minor part of the first mode, wait behind the others until the last
        core takes them.
        """
        steps = self.contraction()
        pairs = [axis for axis in self.inputs if axis not in self.minors]
        single = len(pairs) == 1
        if not single and self.t > 1:
            # Core k sums over (a_k, j_{k+1}), which then lie side by side.
            steps.arrange([label for axis in pairs for label in (axis + 1, axis)])
        for number in range(len(self.cores)):
            cores = np.stack([network.cores[number] for network in networks])
            labels = networks[0].labels[number]
            steps.take(cores, labels, self._made(number, single))
            if number == len(pairs) - 1 and not single:
                self._turn(steps)
        steps.arrange(self.outputs)
        return steps.chain()

    def _made(self, number: int, single: bool) -> list[int]:
        """Return what a core makes: outputs, then the next bond; the first one the closing bond."""
        last = number == len(self.cores) - 1
        made = [axis for axis in self.cores[number] if axis in self.outputs]
        made = made if last else [*made, self.bond(number + 1)]
        if number > 0:
            return made
        return [*made, self.bond(0)] if single else [self.bond(0), *made]

    def _turn(self, steps: Contraction) -> None:
        """Put the closing bond, and what waits with it, behind the others."""
        waiting = [self.bond(0), *([] if self.minors[0] is None else [self.minors[0]])]
        others = [label for label in steps.features if label not in waiting]
        steps.arrange([*others, *waiting])


def _split(sizes: Sequence[int], t: int) -> list[int]:
    """Return each size as its major and its minor part."""
    return [part for size in sizes for part in ((size // t, t) if t > 1 else (size,))]
