"""The benchmark of large models, on a small one."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxlr.layers import find_layers, read_weight
from onnxlr.model import open_model
from tools import bench_large_model as bench

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks /proc")


def test_the_model_is_a_sound_chain_of_low_rank(tmp_path: Path) -> None:
    file = bench.make_model(tmp_path, 3, 200)
    onnx.checker.check_model(str(file), full_check=True)
    model = open_model(file)
    assert [node.op_type for node in model.proto.graph.node] == ["MatMul", "Add", "Tanh"] * 3
    layers = find_layers(model)
    assert len(layers) == 3
    for layer in layers:
        values = np.linalg.svd(read_weight(model, layer), compute_uv=False)
        assert values[63] > 5 * values[64]
        assert values[64] > 0


def test_the_baseline_is_the_truncated_svd(tmp_path: Path) -> None:
    file = bench.make_model(tmp_path, 2, 80)
    bench.factorize_with_scipy(file, tmp_path / "f", 6)
    factors = np.fromfile(tmp_path / "f", np.float32).reshape(2, 2, 80 * 6)
    model = open_model(file)
    for layer, (left, right) in zip(find_layers(model), factors, strict=True):
        u, s, vt = np.linalg.svd(read_weight(model, layer).astype(float))
        found = left.reshape(80, 6) @ right.reshape(6, 80)
        np.testing.assert_allclose(found, u[:, :6] * s[:6] @ vt[:6], atol=1e-4)


def test_phases_are_watched_apart() -> None:
    said: list[bench.Phase] = []
    with bench.watched("first", said.append) as begin:
        held = np.ones(40_000_000 // 8)
        time.sleep(0.1)
        del held
        begin("second")
        time.sleep(0.05)
    assert [phase.name for phase in said] == ["first", "second"]
    assert said[0].own >= said[1].own + 30_000_000
    assert all(phase.together >= phase.own > 0 for phase in said)
    assert said[0].seconds >= 0.1


def test_all_phases_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "t.md"
    size = ["--layers", "2", "--size", "160", "--rank", "70"]
    bench.main([*size, "--folder", str(tmp_path), "--markdown", str(table)])
    assert list(tmp_path.iterdir()) == [table]
    text = table.read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert rows == ["phase", "---", "rewrite", "verify", "baseline"]
    assert "of the baseline's time" in text
