"""Memory follows the largest layer, not the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import onnxlr
from tools.bench_large_model import make_model

LAYERS, SIZE = 16, 1024
MODEL = LAYERS * SIZE**2 * 4
"""Bytes of the weights: 64 MiB, in layers of 4 MiB."""

REWRITING = """
import sys
from pathlib import Path
import numpy as np, scipy.linalg, onnx_graphsurgeon, tensorly, onnxruntime
import onnxlr
from onnxlr import pipeline

def peak():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

np.ones((512, 512)) @ np.ones((512, 512))  # what libraries keep for themselves
before, found = peak(), []

def heed(task, done, total):
    if task.startswith("verifying") and not found:
        found.append(peak() - before)

source, output, verb = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if verb == "inspect":
    onnxlr.inspect(source)
elif verb == "plan":
    onnxlr.plan(source, method="svd", ratio=0.5)
else:
    onnxlr.rewrite(
        source,
        output,
        method="svd",
        ratio=0.5,
        tolerance="cosine>=-1",
        isolate=False,
        progress=heed,
    )
print(found[0] if found else peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc for the peak")
@pytest.mark.parametrize("verb", ["inspect", "plan", "rewrite"])
def test_memory_is_that_of_a_layer(verb: str, tmp_path: Path) -> None:
    """Everything that one layer takes is far less than the model, of which no copy is made.

    A layer in float64 is 8 MiB; its Gram matrix, eigenvectors and their product as much each. Half
    the model's parameters are in the factors, which no run holds together either.
    """
    model = make_model(tmp_path, LAYERS, SIZE)
    command = [sys.executable, "-c", REWRITING, str(model), str(tmp_path / "out.onnx"), verb]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    taken = int(done.stdout)
    assert 0 < taken < 0.6 * MODEL, f"{taken / MODEL:.2f} of the model"


@pytest.mark.slow
def test_a_model_in_memory_above_what_protobuf_writes_is_refused_with_a_way_out() -> None:
    """This takes 4 GB: the weight twice."""
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size])
        for name, size in (("x", 2**15), ("y", 2**14))
    ]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    model = onnx.ModelProto(ir_version=8)
    model.opset_import.add(version=17)
    model.graph.name = "g"
    model.graph.node.append(node)
    model.graph.input.append(ends[0])
    model.graph.output.append(ends[1])
    big = model.graph.initializer.add(name="w", dims=[2**15, 2**14], data_type=1)
    big.raw_data = bytes(2**31)
    for use in (onnxlr.inspect, onnxlr.session):
        with pytest.raises(onnxlr.ModelError, match=r"2 GB.*save_as_external_data"):
            use(model)
