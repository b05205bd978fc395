"""Inputs from files, functions and mappings, and the runs they are cut into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from onnxlr.calibration import InputSpec, load_feeds
from onnxlr.calibration.data import BATCH
from onnxlr.calibration.signature import Dim
from onnxlr.errors import DataError

X = np.arange(12, dtype=np.float32).reshape(6, 2)


def spec(name: str, *dims: Dim, kind: int = TensorProto.FLOAT) -> InputSpec:
    return InputSpec(name, int(kind), dims)


def runs(source: Any, *specs: InputSpec) -> list[dict[str, np.ndarray]]:
    return [dict(feeds) for feeds in load_feeds(source, specs)]


def same(found: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other)
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


# --- forms ---------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    np.savez("d.npz", x=X, other=np.zeros(3))
    np.save("d.npy", X)
    Path("folder").mkdir()
    np.save("folder/2.npy", X + 1)
    np.savez("folder/1.npz", x=X)
    Path("folder/notes.txt").write_text("not data")
    Path("feeds_in_forms.py").write_text(
        "import numpy as np\nX = np.load('d.npy')\n"
        "def generator():\n    yield {'x': X}\n    yield {'x': X + 1}\n"
        "def listing():\n    return [{'x': X}, {'x': X + 1}]\n"
        "def one():\n    return {'x': X}\n"
    )
    return tmp_path


FORMS: list[tuple[Callable[[], Any], list[np.ndarray]]] = [
    (lambda: "d.npz", [X]),
    (lambda: Path("d.npz"), [X]),
    (lambda: "d.npy", [X]),
    (lambda: "folder", [X, X + 1]),
    (lambda: "folder/", [X, X + 1]),
    (lambda: "feeds_in_forms:generator", [X, X + 1]),
    (lambda: "feeds_in_forms:listing", [X, X + 1]),
    (lambda: "feeds_in_forms:one", [X]),
    (lambda: {"x": X}, [X]),
    (lambda: {"x": X.tolist(), "more": object()}, []),
    (lambda: [{"x": X}, {"x": X + 1}], [X, X + 1]),
    (lambda: ({"x": X + i} for i in range(2)), [X, X + 1]),
]


@pytest.mark.parametrize(("source", "arrays"), FORMS)
def test_every_form(here: Path, source: Callable[[], Any], arrays: list[np.ndarray]) -> None:
    if not arrays:  # lists of Python floats are float64
        with pytest.raises(DataError, match="dtype float64, expected float32"):
            runs(source(), spec("x", "N", 2))
        return
    same(runs(source(), spec("x", "N", 2)), [{"x": array} for array in arrays])


def test_files_are_read_one_at_a_time(here: Path) -> None:
    Path("folder/3.npz").write_bytes(b"PK, and nothing else")
    feeds = load_feeds("folder", [spec("x", "N", 2)])
    np.testing.assert_array_equal(next(feeds)["x"], X)
    np.testing.assert_array_equal(next(feeds)["x"], X + 1)
    with pytest.raises(DataError, match=r"3\.npz: cannot be read"):
        next(feeds)


def test_a_file_wins_over_a_function(here: Path) -> None:
    np.save("a:b.npy", X)
    same(runs("a:b.npy", spec("x", "N", 2)), [{"x": X}])


def test_one_array_is_for_models_of_one_input(here: Path) -> None:
    with pytest.raises(DataError, match=r"d\.npy: .* has 2 \('x', 'y'\); use \.npz"):
        runs("d.npy", spec("x", "N", 2), spec("y", "N"))


def test_bytes_and_objects_become_strings() -> None:
    text = spec("t", "N", kind=TensorProto.STRING)
    for array in (np.array([b"a", b"\xc3\xa9"]), np.array(["a", "é"], object), ["a", "é"]):
        same(runs({"t": array}, text), [{"t": np.array(["a", "é"])}])


# --- cutting into runs ---------------------------------------------------------------------------


def counted(samples: int, *rest: int) -> np.ndarray:
    return np.arange(samples * int(np.prod(rest)), dtype=np.float32).reshape(samples, *rest)


def test_open_first_dimensions_give_runs_of_a_batch() -> None:
    x, y = counted(2 * BATCH + 3, 2), counted(2 * BATCH + 3)
    found = runs({"x": x, "y": y}, spec("x", "N", 2), spec("y", "N"))
    cuts = [slice(0, BATCH), slice(BATCH, 2 * BATCH), slice(2 * BATCH, None)]
    same(found, [{"x": x[cut], "y": y[cut]} for cut in cuts])


@pytest.mark.parametrize("samples", [1, BATCH - 1, BATCH])
def test_few_samples_are_one_run(samples: int) -> None:
    x = counted(samples, 2)
    same(runs({"x": x}, spec("x", None, 2)), [{"x": x}])


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_a_fixed_first_dimension_gives_runs_of_that_many(size: int) -> None:
    found = runs({"x": X, "y": X[:, 0]}, spec("x", size, 2), spec("y", size))
    cuts = [slice(start, start + size) for start in range(0, 6, size)]
    same(found, [{"x": X[cut], "y": X[cut, 0]} for cut in cuts])


def test_a_fixed_first_dimension_may_be_above_a_batch() -> None:
    x = counted(2 * (BATCH + 8), 2)
    found = runs({"x": x}, spec("x", BATCH + 8, 2))
    same(found, [{"x": x[: BATCH + 8]}, {"x": x[BATCH + 8 :]}])


@pytest.mark.parametrize("size", [4, 5, 7])
def test_samples_that_are_no_multiple_do_not_fit(size: int) -> None:
    with pytest.raises(DataError, match=rf"shape \[6, 2\], expected \[{size}, 2\]"):
        runs({"x": X}, spec("x", size, 2))


WHOLE: list[tuple[str, list[InputSpec], dict[str, np.ndarray]]] = [
    (
        "another number of samples",
        [spec("x", "N", 1), spec("y", "N", 1)],
        {"x": counted(70, 1), "y": counted(69, 1)},
    ),
    (
        "another dimension",
        [spec("x", "N", 1), spec("y", "M", 1)],
        {"x": counted(70, 1), "y": counted(70, 1)},
    ),
    (
        "one fixed, one open",
        [spec("x", 70, 1), spec("y", "N", 1)],
        {"x": counted(70, 1), "y": counted(70, 1)},
    ),
    (
        "a scalar",
        [spec("x", "N", 1), spec("s")],
        {"x": counted(70, 1), "s": np.float32(3).reshape(())},
    ),
]


@pytest.mark.parametrize(("specs", "arrays"), [w[1:] for w in WHOLE], ids=[w[0] for w in WHOLE])
def test_other_inputs_are_one_run(specs: list[InputSpec], arrays: dict[str, np.ndarray]) -> None:
    same(runs(arrays, *specs), [arrays])


def test_an_unknown_rank_is_open() -> None:
    x = counted(BATCH + 1, 2)
    unknown = InputSpec("x", int(TensorProto.FLOAT), None)
    same(runs({"x": x}, unknown), [{"x": x[:BATCH]}, {"x": x[BATCH:]}])


def test_a_model_without_inputs_is_run_once() -> None:
    same(runs({}), [{}])
    same(runs([{}, {"unused": X}]), [{}, {}])


def test_each_item_of_many_is_cut_by_itself() -> None:
    def items() -> Iterator[dict[str, np.ndarray]]:
        yield {"x": counted(BATCH + 1, 1)}
        yield {"x": counted(2, 1)}

    assert [len(feed["x"]) for feed in runs(items(), spec("x", "N", 1))] == [BATCH, 1, 2]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the given data: holds no inputs"),
        ([{"x": X}, 3], "item 1: found int, expected a mapping"),
        ({"x": X[:0]}, "the given data: the arrays hold no samples"),
        ({"x": X, "y": X}, "input 'z' .* is missing; found 'x', 'y'"),
        ({"z": np.array(3.0, np.float32)}, r"shape \[\], expected \[N, 2\]"),
        ({"z": [[1], [1, 2]]}, "'z' is no array"),
    ],
)
def test_data_that_does_not_fit(source: Any, message: str) -> None:
    name = "x" if isinstance(source, list) or len(source.get("x", X)) == 0 else "z"
    with pytest.raises(DataError, match=message):
        runs(source, spec(name, "N", 2))


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 6), (4, [4, 2]), (6, [6]), (99, [6])])
def test_the_most_samples_of_a_run_can_be_chosen(batch: int, sizes: list[int]) -> None:
    found = list(load_feeds({"x": X}, [spec("x", "N", 2)], batch))
    assert [len(feed["x"]) for feed in found] == sizes
    fixed = load_feeds({"x": X}, [spec("x", 3, 2)], batch)
    assert [len(feed["x"]) for feed in fixed] == [3, 3]  # the model has the last word
