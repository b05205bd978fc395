"""Many threads and sessions at once: the same results, bit by bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.operators.ternary_nodes import Array, TernaryNode, conv_node, matmul_node, open_session

THREADS = 6
ROUNDS = 5
CASES: list[tuple[TernaryNode, tuple[int, ...]]] = [
    (matmul_node(96, 64, group_size=32), (1, 96)),
    (matmul_node(256, 300, terms=2), (90, 256)),
    (matmul_node(256, 300, level=0), (70, 256)),
    (matmul_node(128, 40), (600, 128)),
    (conv_node(16, 40, (3, 3), pads=(1, 1, 1, 1)), (2, 16, 24, 23)),
    (conv_node(32, 48, (1, 1), group=2), (3, 32, 20, 20)),
    (conv_node(16, 24, (3, 3), level=0), (1, 16, 20, 20)),
]


def data(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("node", "shape"), CASES)
def test_threads_share_sessions(node: TernaryNode, shape: tuple[int, ...]) -> None:
    alone = node.session(1)
    inputs = [data(shape, seed) for seed in range(THREADS)]
    expected = [alone.run(None, {"X": x})[0] for x in inputs]
    sessions = [node.session(threads) for threads in (1, 2, 2)]

    def work(i: int) -> list[Array]:
        return [sessions[r % len(sessions)].run(None, {"X": inputs[i]})[0] for r in range(ROUNDS)]

    with ThreadPoolExecutor(THREADS) as pool:
        for i, found in enumerate(pool.map(work, range(THREADS))):
            for result in found:
                np.testing.assert_array_equal(result, expected[i])


def test_sessions_are_made_at_the_same_time() -> None:
    node, shape = CASES[1]
    model = node.model()
    x = data(shape, 0)
    expected = node.run(x)
    with ThreadPoolExecutor(THREADS) as pool:
        made = list(pool.map(lambda _: open_session(model, 1), range(3 * THREADS)))
    for session in made:
        np.testing.assert_array_equal(session.run(None, {"X": x})[0], expected)


@pytest.mark.parametrize(("node", "shape"), CASES)
def test_the_number_of_threads_changes_nothing(node: TernaryNode, shape: tuple[int, ...]) -> None:
    x = data(shape, 1)
    one = node.run(x, 1)
    for threads in (2, 4):
        np.testing.assert_array_equal(node.run(x, threads), one)
