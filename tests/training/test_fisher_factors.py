"""Kronecker factors by hand, and what the file of both kinds of information is good for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxlr
from tests.classifier import classifier, samples

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

Array = np.ndarray[Any, Any]

LOSS = """
def weighted(outputs, batch):
    return (outputs["y"] * batch["by"]).sum()
"""


@pytest.fixture(autouse=True)
def _loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loss_of_factor_tests.py").write_text(LOSS)
    monkeypatch.syspath_prepend(str(tmp_path))


WEIGHTED = "loss_of_factor_tests:weighted"
"""Its gradient at the output `y` is what lies beside the inputs as `by`."""


def model_of(nodes: list[onnx.NodeProto], rank: int, **constants: Array) -> onnx.ModelProto:
    """Return `x → y` of that rank, with nothing known of the sizes but that channels of x are."""
    channels = {3: [None, None, 5], 4: [None, 4, None, None]}[rank]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("x", channels), ("y", [None] * rank))
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        values[:1],
        values[1:],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    graph.input.append(helper.make_tensor_value_info("m", TensorProto.INT64, [None, None]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def second_moment(rows: Array) -> Array:
    rows = rows.astype(np.float64).reshape(-1, rows.shape[-1])
    return rows.T @ rows / len(rows)


@pytest.mark.parametrize("masked", [False, True])
def test_a_linear_layer_by_hand(masked: bool) -> None:
    x, by = random(6, 7, 5), random(6, 7, 3, seed=1)
    m = (np.random.default_rng(2).random((6, 7)) < 0.6).astype(np.int64)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")]
    model = model_of(nodes, 3, w=random(5, 3, seed=3))
    data = {"x": x, "by": by, "m": m}
    found = onnxlr.fisher(model, data, loss=WEIGHTED, mask="m" if masked else None)
    counts = m.astype(bool) if masked else np.ones((6, 7), bool)
    (layer,) = found.layers
    assert (layer.rows, layer.why) == (counts.sum(), None)
    factors = (found.arrays[f"w/{side}_covariance"] for side in ("input", "output"))
    for factor, rows in zip(factors, (x, by), strict=True):
        np.testing.assert_allclose(factor, second_moment(rows[counts]), rtol=1e-5, atol=1e-6)
    # The loss is the user's: the mask does not change what it is differentiated for.
    each = np.einsum("nti,nto->nio", x.astype(np.float64), by)
    np.testing.assert_allclose(found.arrays["w"], np.square(each).mean(0), rtol=1e-4)


def test_masked_positions_of_outputs_do_not_count() -> None:
    """Noise at positions that count alone: the others change nothing, whatever they hold."""
    x, m = random(3, 7, 5), np.ones((3, 7), np.int64)
    m[:, 4:] = 0
    other = x.copy()
    other[:, 4:] = 100 * random(3, 3, 5, seed=9)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")]
    model = model_of(nodes, 3, w=random(5, 3, seed=3))
    first, second, cut = (
        onnxlr.fisher(model, {"x": data, "m": m}, mask=mask).arrays
        for data, mask in ((x, "m"), (other, "m"), (other, None))
    )
    assert set(first) == {"w", "w/input_covariance", "w/output_covariance"}
    for name, array in first.items():
        np.testing.assert_allclose(second[name], array, rtol=1e-5)
        assert not np.allclose(cut[name], array, rtol=0.1)


def test_a_matrix_on_the_left_has_columns_for_rows() -> None:
    x, by = random(4, 3, 5), random(4, 2, 5, seed=1)
    nodes = [helper.make_node("MatMul", ["w", "x"], ["y"], name="only")]
    model = model_of(nodes, 3, w=random(2, 3, seed=3))
    found = onnxlr.fisher(model, {"x": x, "by": by, "m": np.ones((4, 1), np.int64)}, loss=WEIGHTED)
    for side, tensor in (("input", x), ("output", by)):
        factor = found.arrays[f"w/{side}_covariance"]
        rows = tensor.swapaxes(1, 2)
        np.testing.assert_allclose(factor, second_moment(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_by_patches(groups: int) -> None:
    kernel, x = random(6, 4 // groups, 3, 2, seed=3), random(3, 4, 6, 5)
    by = random(3, 6, 3, 4, seed=1)
    attributes = {"strides": [2, 1], "pads": [1, 0, 0, 0], "group": groups}
    nodes = [helper.make_node("Conv", ["x", "k"], ["y"], name="only", **attributes)]
    data = {"x": x, "by": by, "m": np.ones((3, 1), np.int64)}
    found = onnxlr.fisher(model_of(nodes, 4, k=kernel), data, loss=WEIGHTED)
    padded = torch.nn.functional.pad(torch.from_numpy(x).double(), (0, 0, 1, 0))
    patches = torch.nn.functional.unfold(padded, (3, 2), stride=(2, 1))
    size = 4 // groups * 6
    rows = patches.transpose(1, 2).reshape(-1, groups, size).numpy()
    true = np.stack([second_moment(rows[:, group]) for group in range(groups)])
    factor = found.arrays["k/input_covariance"]
    assert factor.shape == ((groups, size, size) if groups > 1 else (size, size))
    np.testing.assert_allclose(factor.reshape(true.shape), true, rtol=1e-4, atol=1e-5)
    gradients = np.moveaxis(by, 1, -1)
    factor = found.arrays["k/output_covariance"]
    np.testing.assert_allclose(factor, second_moment(gradients), rtol=1e-5, atol=1e-6)
    each = []
    for one, way in zip(torch.from_numpy(x), torch.from_numpy(by), strict=True):
        k = torch.from_numpy(kernel).double().requires_grad_(True)
        image = torch.nn.functional.pad(one[None].double(), (0, 0, 1, 0))
        y = torch.nn.functional.conv2d(image, k, stride=(2, 1), groups=groups)
        each.append(torch.autograd.grad((y * way).sum(), k)[0].numpy())
    true = np.square(each).mean(0)
    np.testing.assert_allclose(found.arrays["k"], true, rtol=1e-4, atol=1e-6)


def test_the_product_of_the_factors_is_the_information_of_independent_rows() -> None:
    """One row in each sample, and gradients that do not depend on it: `I_ij = C_ii G_jj`."""
    x, by = random(4000, 1, 5), random(4000, 1, 3, seed=1)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")]
    model = model_of(nodes, 3, w=random(5, 3, seed=3))
    data = {"x": x, "by": by, "m": np.ones((4000, 1), np.int64)}
    arrays = onnxlr.fisher(model, data, loss=WEIGHTED).arrays
    c, g = (np.diag(arrays[f"w/{side}_covariance"]) for side in ("input", "output"))
    np.testing.assert_allclose(np.outer(c, g), arrays["w"], rtol=0.1)


def test_without_factors_there_are_none() -> None:
    found = onnxlr.fisher(classifier(), {"x": samples(3)}, kronecker=False)
    assert set(found.arrays) == {"w1", "w2", "w3"}
    assert all((layer.rows, layer.why) == (0, None) for layer in found.layers)


@pytest.mark.parametrize("metric", ["fisher-rows", "fisher", "kfac"])
def test_the_file_feeds_the_metric(metric: str, tmp_path: Path) -> None:
    data, file, output = {"x": samples(64)}, tmp_path / "fisher.npz", tmp_path / "o.onnx"
    onnxlr.fisher(classifier(), data, file, draws=4)
    known = {"calibration": data} if metric == "kfac" else {}
    done = onnxlr.rewrite(
        classifier(),
        output,
        rank=3,
        metric=metric,
        importance=file,
        tolerance="cosine>=0",
        isolate=False,
        **known,
    )
    assert done.report is not None
    assert done.report.passed
    chosen = {record.name: record.choice for record in done.layers}
    assert {choice.metric for choice in chosen.values()} == {metric}
    # Each metric weighs as the arrays say, not as plain singular values do.
    plain = onnxlr.rewrite(
        classifier(), tmp_path / "p.onnx", rank=3, tolerance="cosine>=0", isolate=False
    )
    assert plain.output is not None
    assert output.read_bytes() != plain.output.read_bytes()
    if metric != "kfac":
        gains = [record.importance_gain for record in done.layers]
        assert all(gain is not None and gain >= 0 for gain in gains)
        assert max(gain or 0 for gain in gains) > 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_finds_what_the_cpu_finds() -> None:
    found, other = (
        onnxlr.fisher(classifier(), {"x": samples(8)}, device=device).arrays
        for device in ("cpu", "cuda")
    )
    for name, array in found.items():
        np.testing.assert_allclose(other[name], array, rtol=1e-3, atol=1e-6 * array.max())


def test_the_file_alone_is_enough_for_kfac(tmp_path: Path) -> None:
    model, file, output = tmp_path / "m.onnx", tmp_path / "fisher.npz", tmp_path / "o.onnx"
    onnx.save(classifier(), model)
    onnxlr.fisher(model, {"x": samples(64)}, file)
    asked: dict[str, Any] = {"importance": file, "tolerance": "cosine>=0", "isolate": False}
    done = onnxlr.rewrite(model, output, rank=3, metric="kfac", **asked)
    assert {record.choice.metric for record in done.layers} == {"kfac"}
    assert onnxlr.verify(model, output, **asked).passed
    again = onnxlr.rewrite(model, tmp_path / "p.onnx", plan=done.plan, **asked)
    assert again.output is not None
    first, second = (onnx.load(path).graph.initializer for path in (output, again.output))
    assert [t.raw_data for t in first] == [t.raw_data for t in second]
    lacking = {"w1/output_covariance": np.eye(32)}
    with pytest.raises(onnxlr.UsageError, match="statistics of the layers' inputs"):
        onnxlr.rewrite(model, tmp_path / "q.onnx", rank=3, metric="kfac", importance=lacking)
