"""Networks of cores against einsum written out."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxlr.methods.tensors import Network
from onnxlr.methods.tensors.network import _path
from tests.onelayer import distance

sizes = st.integers(1, 4)
seeds = st.integers(0, 99)


def tucker(seed, shape, ranks):
    """Return a network of a core and a factor for each axis, and the tensor it is."""
    generator = np.random.default_rng([seed, *shape])
    core = generator.standard_normal(ranks)
    factors = [generator.standard_normal(pair) for pair in zip(shape, ranks, strict=True)]
    labels = ((3, 4, 5), (0, 3), (1, 4), (2, 5))
    dense = np.einsum("abc,ia,jb,kc->ijk", core, *factors)
    return Network((core, *factors), labels, (0, 1, 2)), dense


def components(seed, shape, rank):
    """Return a network whose one inner index ties all cores, and the tensor it is."""
    generator = np.random.default_rng([seed, *shape])
    factors = [generator.standard_normal((size, rank)) for size in shape]
    dense = np.einsum("ir,jr,kr->ijk", *factors)
    return Network(tuple(factors), ((0, 3), (1, 3), (2, 3)), (0, 1, 2)), dense


def ring(seed, shape, ranks):
    """Return a network whose cores form a ring, and the tensor it is."""
    generator = np.random.default_rng([seed, *shape])
    ends = (*ranks[1:], ranks[0])
    cores = [generator.standard_normal(s) for s in zip(ranks, shape, ends, strict=True)]
    labels = ((3, 0, 4), (4, 1, 5), (5, 2, 3))
    return Network(tuple(cores), labels, (0, 1, 2)), np.einsum("aib,bjc,cka->ijk", *cores)


BUILDERS = {
    "tucker": tucker,
    "components": lambda seed, shape, ranks: components(seed, shape, ranks[0]),
    "ring": ring,
}
networks = st.builds(
    lambda kind, seed, shape, ranks: BUILDERS[kind](seed, shape, ranks),
    st.sampled_from(sorted(BUILDERS)),
    seeds,
    st.tuples(sizes, sizes, sizes),
    st.tuples(sizes, sizes, sizes),
)


@given(made=networks)
def test_the_tensor_of_a_network(made):
    network, dense = made
    assert distance(network.dense(), dense) < 1e-12
    assert network.parameters == sum(core.size for core in network.cores)


@given(made=networks, seed=seeds)
def test_the_adjoint_is_the_transpose_of_the_map_of_each_core(made, seed):
    network, dense = made
    generator = np.random.default_rng(seed)
    tensor = generator.standard_normal(dense.shape)
    for position, core in enumerate(network.cores):
        other = generator.standard_normal(core.shape)
        changed = network.with_core(position, other)
        back = network.adjoint(position, tensor.reshape(-1, dense.shape[-1]))
        assert back.shape == core.shape
        forth, other_way = np.vdot(changed.dense(), tensor), np.vdot(other, back)
        assert abs(forth - other_way) <= 1e-10 * (1 + abs(forth))


@given(made=networks)
def test_balancing_changes_no_entry_and_makes_norms_equal(made):
    network, dense = made
    scaled = network.with_core(0, 1e6 * network.cores[0]).with_core(1, 1e-6 * network.cores[1])
    even = scaled.balanced()
    norms = [np.linalg.norm(core) for core in even.cores]
    assert distance(even.dense(), dense) < 1e-9
    assert np.allclose(norms, norms[0])


def test_a_network_with_a_core_of_zeros_stays_as_it_is():
    network, _ = components(0, (2, 3, 4), 2)
    zero = network.with_core(1, np.zeros((3, 2)))
    assert zero.balanced() is zero


def test_products_of_many_components_are_of_pairs():
    """A contraction of three factors at once takes no matrix products: ten times as long."""
    network, _ = components(0, (40, 9, 50), 60)
    shapes = tuple(core.shape for core in network.cores)
    assert all(len(step) <= 2 for step in _path(shapes, network.labels, network.open)[1:])
