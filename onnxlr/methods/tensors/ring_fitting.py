"""Fits tensor rings by alternating least squares, with Gram matrices of the cores alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt
from scipy import linalg
from tensorly.decomposition import tensor_ring

from onnxlr.methods.tensors.network import Network
from onnxlr.methods.tensors.refining import refine
from onnxlr.progress import Progress, silent

__all__ = ["fit_ring"]

Matrix = npt.NDArray[np.float64]

_SWEEPS, _LOOK_BACK, _SETTLED = (10, 100), 10, 0.03
"""Rounds over all cores at most, for large and small tensors, and over how many of them the squared
error must have fallen by which part of it for more to follow."""

_WORK = 2e11
"""Multiplications of all sweeps together, where that leaves the least number of them."""

_STARTS, _WORK_OF_STARTS = 10, 3e9
"""Starts at most, and multiplications of all together: of small tensors one in six starts of an
exact ring ends elsewhere; of large ones that are no rings, all end at about the same error."""

_EXACT = 1e-14
"""Squared error, relative to the tensor's, that is taken for none."""

_RIDGE = 0.3
"""Of the Gram matrix's mean diagonal, times the fourth power of the relative error. Without it
cores grow that cancel each other (20 000 times the tensor's norm on a kernel of 64 channels,
against 210 with it at a lower error). As the error goes to zero it does so faster, so that exact
rings are still found."""

_NEAR = (1e-11, 1e-8, 1e-5, 1e-2)
"""Of the same: how much a core stays where it is. Ranks that are more than the others leave make
the Gram matrix singular, and cores that cancel make it inexact: the first that will do is taken."""

_NOISE = 0.05
"""Of the start, where it has more ranks than the decomposition can give."""

_MOMENTUM, _GROWTH = 0.5, 1.15

_LARGE = 1600
"""Product of a core's two ranks up to which its Gram matrix is made; beyond, conjugate gradients on
the tensor itself take less."""


def fit_ring(
    tensor: Matrix, ranks: Sequence[int], seed: int, progress: Progress = silent
) -> list[Matrix]:
    """Return the cores `(left, size, right)` of a tensor ring.

    Starts from singular value decompositions (Zhao et al. 2016, TR-SVD). Then each core in turn is
    the least squares solution for the others (TR-ALS, there §3.2), with a small ridge. After every
    sweep all cores go on in the direction they went, and back if the next one does not lower the
    error: alternating least squares with momentum and restarts (Mitchell, Ye and De Sterck 2020).

    Parameters
    ----------
    tensor
        One axis for each core.
    ranks
        Of the bonds; core k lies between bond k and bond k + 1, the last before bond 0.
    seed
        Of the start, where the decomposition cannot have so many ranks.
    progress
        Told how many sweeps are done.
    """
    norm = float(np.linalg.norm(tensor))
    if norm == 0:
        return [np.zeros(shape) for shape in _shapes(tensor, ranks)]
    first, *others = _fitted(tensor / norm, ranks, seed, progress)
    return [first * norm, *others]


def _fitted(
    tensor: Matrix, ranks: Sequence[int], seed: int, progress: Progress
) -> Sequence[Matrix]:
    """Return the cores for a tensor of norm 1."""
    cores = _start(tensor, ranks, seed)
    if max(core.shape[0] * core.shape[2] for core in cores) > _LARGE:
        return refine(_network(cores), tensor, None, _SWEEPS[0]).cores
    best, least = _descend(tensor, cores, progress)
    generator = np.random.default_rng(seed)
    for _ in range(_starts(tensor, ranks) - 1):
        if least < _EXACT:
            break
        drawn = tuple(generator.standard_normal(shape) for shape in _shapes(tensor, ranks))
        other, error = _descend(tensor, drawn, progress)
        if error < least:
            best, least = other, error
    return best


def _descend(
    tensor: Matrix, cores: Sequence[Matrix], progress: Progress
) -> tuple[tuple[Matrix, ...], float]:
    """Return the cores after all sweeps, and their squared error."""
    best, least, momentum = _network(cores).balanced().cores, np.inf, _MOMENTUM
    cores, history, ridge = best, [1.0], _RIDGE
    rounds = _rounds(tensor, cores)
    for done in range(rounds):
        progress("fitting a ring", done, rounds)
        swept, error = _sweep(tensor, cores, ridge * history[-1] ** 2)
        if error < least:
            pairs = zip(swept, best, strict=True)
            ahead = tuple(new + momentum * (new - old) for new, old in pairs)
            cores = ahead if np.isfinite(least) else swept
            best, least, momentum = swept, error, momentum * _GROWTH
        elif cores is best:
            ridge /= 10
        else:
            cores, momentum = best, momentum / 2
        history.append(min(least, 1.0))
        if len(history) > _LOOK_BACK and least > (1 - _SETTLED) * history[-1 - _LOOK_BACK]:
            break
    return best, least


def _shapes(tensor: Matrix, ranks: Sequence[int]) -> list[tuple[int, int, int]]:
    return list(zip(ranks, tensor.shape, [*ranks[1:], ranks[0]], strict=True))


def _network(cores: Sequence[Matrix]) -> Network:
    """Return the ring; bond k has the index of the axes' number and k."""
    count = len(cores)
    labels = tuple((count + k, k, count + (k + 1) % count) for k in range(count))
    return Network(tuple(cores), labels, tuple(range(count)))


def _work(tensor: Matrix, ranks: Sequence[int]) -> int:
    """Return the multiplications of one sweep, about."""
    pairs = [left * right for left, _, right in _shapes(tensor, ranks)]
    return sum(tensor.size * pair + (len(pairs) - 2) * pair**3 for pair in pairs)


def _rounds(tensor: Matrix, cores: Sequence[Matrix]) -> int:
    """Return how many sweeps there are at most."""
    work = _work(tensor, [len(core) for core in cores])
    least, most = _SWEEPS
    return max(least, min(most, int(_WORK / work)))


def _starts(tensor: Matrix, ranks: Sequence[int]) -> int:
    """Return how many starts are tried at most."""
    work = _work(tensor, ranks) * _SWEEPS[1]
    return max(1, min(_STARTS, int(_WORK_OF_STARTS / work)))


def _sweep(
    tensor: Matrix, cores: Sequence[Matrix], ridge: float
) -> tuple[tuple[Matrix, ...], float]:
    """Return all cores solved in turn, of one norm, and the squared error."""
    network = _network(cores)
    squared = 0.0
    for number in range(len(cores)):
        left, size, right = network.cores[number].shape
        gram = _gram(network.cores, number)
        goal = network.adjoint(number, tensor).swapaxes(0, 1).reshape(size, -1)
        old = network.cores[number].swapaxes(0, 1).reshape(size, -1)
        solved = _solved(gram, goal, old, ridge)
        squared = 1 - 2 * float(np.vdot(solved, goal)) + float(np.vdot(solved @ gram, solved))
        core = solved.reshape(size, left, right).swapaxes(0, 1)
        network = network.with_core(number, np.ascontiguousarray(core))
    return network.balanced().cores, max(squared, 0.0)


def _solved(gram: Matrix, goal: Matrix, old: Matrix, ridge: float) -> Matrix:
    """Return the least squares solution for one core, `(size, left · right)`."""
    scale = float(np.trace(gram)) / len(gram) or 1.0
    for near in _NEAR:
        damped = gram + scale * (ridge + near) * np.eye(len(gram))
        try:
            factor = linalg.cho_factor(damped)
        except linalg.LinAlgError:
            continue
        return np.asarray(linalg.cho_solve(factor, (goal + scale * near * old).T).T)
    return old


def _gram(cores: Sequence[Matrix], number: int) -> Matrix:
    """Return the Gram matrix of what multiplies the entries `(left, right)` of a core."""
    count = len(cores)
    pairs = [_paired(cores[(number + step) % count]) for step in range(1, count)]
    product = reduce(np.matmul, pairs)
    left, right = cores[number].shape[0], cores[number].shape[2]
    apart = product.reshape(right, right, left, left)
    return np.asarray(apart.transpose(2, 0, 3, 1).reshape(left * right, left * right))


def _paired(core: Matrix) -> Matrix:
    """Return `Σ_i G[i] ⊗ G[i]`, `(left², right²)`."""
    left, _, right = core.shape
    flat = core.swapaxes(0, 1).reshape(core.shape[1], -1)
    apart = (flat.T @ flat).reshape(left, right, left, right).swapaxes(1, 2)
    return np.asarray(apart.reshape(left * left, right * right))


def _start(tensor: Matrix, ranks: Sequence[int], seed: int) -> tuple[Matrix, ...]:
    """Return the ring of TR-SVD, with a little noise where it has not so many ranks.

    The first core's unfolding is split into both its ranks: the one with most room for them is it.
    """
    count = tensor.ndim
    first = max(range(count), key=lambda k: _room(tensor, ranks, k))
    turned = [*range(first, count), *range(first)]
    given = [ranks[k] for k in turned]
    moved = tensor.transpose(turned)
    while _room(moved, given, 0) < 1:
        given[0 if given[0] > given[1] else 1] -= 1
    # Its own option to begin with another mode takes the ranks of the wrong bonds (0.10.0).
    ring = [np.asarray(core) for core in tensor_ring(moved, [*given, given[0]])]
    found = ring[count - first :] + ring[: count - first]
    generator = np.random.default_rng(seed)
    cores = []
    for number, core in enumerate(found):
        shape = (ranks[number], core.shape[1], ranks[(number + 1) % count])
        level = _NOISE * np.sqrt(np.mean(core**2))
        whole = level * generator.standard_normal(shape)
        if shape == core.shape:
            whole = np.zeros(shape)
        whole[: core.shape[0], :, : core.shape[2]] += core
        cores.append(whole)
    return tuple(cores)


def _room(tensor: Matrix, ranks: Sequence[int], first: int) -> float:
    """Return by which factor the first unfolding has more ranks than it is to be split into."""
    size = tensor.shape[first]
    unfolded = min(size, tensor.size // size)
    return float(unfolded) / (ranks[first] * ranks[(first + 1) % len(ranks)])
