"""Sparse factors without a grid: truncated decompositions and sparse principal components."""

from __future__ import annotations

import numpy as np
import pytest

import onnxlr
from onnxlr.errors import UsageError
from onnxlr.metrics import Activation


def _weight(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def _covariance(seed, size):
    rng = np.random.default_rng([seed, size])
    mixed = np.eye(size) + rng.standard_normal((size, size)) / np.sqrt(size)
    x = rng.standard_normal((8 * size, size)) @ mixed
    return x.T @ x / (8 * size)


def _decompose(weight, **arguments):
    return onnxlr.decompose(weight, "sparse_quantized", **arguments)


def _distance(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _plain(atoms, nonzeros, bits=32):
    """Return the options of one tile of all inputs, and no grid."""
    sizes = {"value_bits": bits, "dictionary_bits": bits, "tile": 1000}
    return {"atoms": atoms, "nonzeros": nonzeros, **sizes}


def _truncated(matrix, root, rank):
    """Return the nearest matrix of a rank, in the metric of a root."""
    left, values, right = np.linalg.svd(root @ matrix.astype(float), full_matrices=False)
    return np.linalg.solve(root, (left[:, :rank] * values[:rank]) @ right[:rank])


def _root(covariance, part=0):
    return np.linalg.cholesky(np.asarray(Activation(covariance).covariance)[part]).T


@pytest.mark.parametrize(("bits", "close"), [(32, 1e-6), (16, 1e-3)])
@pytest.mark.parametrize("rank", [1, 7, 19, 20])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("shape", [(20, 33), (40, 20)])
def test_no_zeros_and_no_grid_are_the_truncated_svd(shape, rank, known, bits, close):
    weight = _weight(40, *shape) * np.geomspace(0.01, 10, shape[1]).astype(np.float32)
    covariance = _covariance(41, shape[0]) if known else None
    found = _decompose(weight, covariance=covariance, **_plain(rank, rank, bits))
    root = _root(covariance) if known else np.eye(shape[0])
    expected = _truncated(weight, root, rank)
    assert _distance(root @ found.reconstruct(), root @ expected) < close
    errors = [np.linalg.norm(root @ (one - weight)) for one in (found.reconstruct(), expected)]
    size = np.linalg.norm(root @ weight)
    assert errors[0] == pytest.approx(errors[1], rel=1e-4, abs=close * size)
    (stage,) = found.stages
    assert stage.atoms.coefficients.values.dtype == f"float{bits}"
    factors = rank * sum(shape) * bits // 8
    assert found.cost.bytes == factors + shape[1] * 4  # and the scales


@pytest.mark.parametrize("known", [False, True])
def test_a_kernel_without_zeros_and_grid_is_the_svd_of_its_patches(known):
    kernel, covariance = _weight(42, 30, 3, 3, 2), _covariance(43, 18)
    given_ = covariance[None] if known else None
    found = _decompose(kernel, groups=1, covariance=given_, **_plain(6, 6)).reconstruct()
    root = _root(covariance) if known else np.eye(18)
    expected = _truncated(kernel.reshape(30, 18).T, root, 6)
    assert _distance(found.reshape(30, 18).T, expected) < 1e-5


def test_groups_without_a_metric_have_one_svd_together():
    kernel = _weight(44, 12, 2, 3, 3)
    found = _decompose(kernel, groups=3, **_plain(5, 5)).reconstruct()
    expected = _truncated(kernel.reshape(12, 18).T, np.eye(18), 5)
    assert _distance(found.reshape(12, 18).T, expected) < 1e-5


def _alternated(points, rank, entries):
    """Return the error of COMPOT's alternation on its own, 60 rounds from singular vectors."""
    atoms = np.linalg.svd(points, full_matrices=False)[0][:, :rank]
    for _ in range(60):
        seen = atoms.T @ points
        limit = -np.sort(-np.abs(seen), axis=0)[entries - 1]
        taken = np.where(np.abs(seen) >= limit, seen, 0)
        left, _, right = np.linalg.svd(points @ taken.T, full_matrices=False)
        atoms = left @ right
    seen = atoms.T @ points
    limit = -np.sort(-np.abs(seen), axis=0)[entries - 1]
    taken = np.where(np.abs(seen) >= limit, seen, 0)
    return np.linalg.norm(points - atoms @ taken)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize(("rank", "entries"), [(12, 6), (20, 5), (24, 12), (6, 1)])
@pytest.mark.parametrize("known", [False, True])
def test_zeros_and_no_grid_are_sparse_principal_components(rank, entries, known, bits):
    rng = np.random.default_rng([rank, entries])
    weight = (_weight(45, 24, 24) @ rng.laplace(size=(24, 90))).astype(np.float32)
    covariance = _covariance(46, 24) if known else None
    found = _decompose(weight, covariance=covariance, **_plain(rank, entries, bits))
    (stage,) = found.stages
    values = stage.atoms.coefficients.matrix()[0]
    assert values.shape == (90, rank)
    assert (np.count_nonzero(values, axis=1) <= entries).all()
    root = _root(covariance) if known else np.eye(24)
    wrong = np.linalg.norm(root @ (found.reconstruct() - weight))
    assert wrong < 1.001 * _alternated(root @ weight, rank, entries)
    # the amounts of its atoms are those of least squares
    dictionary, scales = stage.atoms.dictionary.decode().T, stage.atoms.scales.astype(float)
    for output in range(90):
        own = root @ dictionary[:, values[output] != 0] * scales[output]
        left = np.linalg.lstsq(own, root @ weight[:, output].astype(float), rcond=None)[1]
        lost = np.linalg.norm(root @ (found.reconstruct() - weight)[:, output])
        assert lost <= np.sqrt(left.sum()) * 1.001 + 1e-3 * np.abs(weight).max()


@pytest.mark.parametrize("known", [False, True])
def test_sparse_components_that_are_there_are_found(known):
    """Orthogonal in the metric, of different sizes, two of them in each column."""
    rng = np.random.default_rng(47)
    covariance = _covariance(48, 16) if known else None
    root = _root(covariance) if known else np.eye(16)
    atoms = np.linalg.solve(root, np.linalg.qr(rng.standard_normal((16, 5)))[0])
    columns = np.zeros((5, 400))
    for column in columns.T:
        column[rng.choice(5, 2, replace=False)] = rng.standard_normal(2)
    weight = (atoms * [9, 5, 3, 2, 1]) @ columns
    found = _decompose(weight.astype(np.float32), covariance=covariance, **_plain(5, 2))
    assert _distance(root @ found.reconstruct(), root @ weight) < 1e-5
    (stage,) = found.stages
    dictionary = root @ stage.atoms.dictionary.decode().T
    alike = np.abs((dictionary / np.linalg.norm(dictionary, axis=0)).T @ root @ atoms)
    assert np.allclose(np.sort(alike, axis=1)[:, -1], 1, atol=1e-4)
    values = stage.atoms.coefficients.matrix()[0].T[alike.argmax(axis=0)]
    assert np.array_equal(values != 0, columns != 0)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("dictionary_bits", [0, 8, 32])
def test_small_tiles_with_floats_lose_less_than_with_whole_numbers(known, dictionary_bits):
    weight = _weight(49, 48, 64)
    covariance = _covariance(50, 48) if known else None
    root = _root(covariance) if known else np.eye(48)
    form = {"atoms": 16, "tile": 16, "nonzeros": 8, "dictionary_bits": dictionary_bits}
    errors = []
    for bits in (3, 8, 16, 32):
        found = _decompose(weight, covariance=covariance, value_bits=bits, **form).reconstruct()
        errors.append(np.linalg.norm(root @ (found - weight)))
    assert errors[0] > 1.05 * errors[1]
    assert 0.85 * errors[1] < errors[2] < 1.005 * errors[1]
    assert errors[3] == pytest.approx(errors[2], rel=0.03)


def test_floats_are_taken_if_they_are_asked_for():
    weight = _weight(51, 64, 96)
    plain = _decompose(weight, bits=6).stages[0].atoms.coefficients
    assert plain.values is None or plain.values.dtype == np.int8
    for bits in (16, 32):
        chain = _decompose(weight, bits=6, value_bits=bits)
        (stage,) = chain.stages
        assert chain.cost.bytes * 8 <= 6 * weight.size
        assert stage.atoms.coefficients.values.dtype == f"float{bits}"
        assert stage.atoms.is_plain or stage.format == onnxlr.Format(f"float{bits}")


def test_an_error_is_kept_with_floats():
    weight = _weight(52, 40, 12) @ _weight(53, 12, 60)
    chain = _decompose(weight, max_error=1e-4, value_bits=32, nonzeros=12, tile=40)
    assert _distance(chain.reconstruct(), weight) <= 1e-4
    assert chain.stages[0].atoms.dictionary.shape == (12, 40)
    noise = _weight(54, 32, 48)
    assert _distance(_decompose(noise, max_error=0.1, value_bits=32).reconstruct(), noise) <= 0.1
    with pytest.raises(UsageError, match="max_error 1e-09 is not reached with 32 bits for each"):
        _decompose(noise, max_error=1e-9, value_bits=32)


def test_groups_count_by_what_their_inputs_are():
    kernel = _weight(55, 8, 4, 3)
    covariance = np.stack([np.eye(12), 900 * np.eye(12)])
    found = _decompose(kernel, atoms=8, tile=2, groups=2, covariance=covariance).reconstruct()
    lost = np.square(found - kernel).reshape(2, -1).sum(axis=1)
    assert lost[1] < 0.5 * lost[0]
