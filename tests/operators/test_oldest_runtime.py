"""Files with ternary operators in the oldest ONNX Runtime they are meant for, with no onnxlr there.

It is older than what onnxlr itself needs, so it gets an environment of its own, from the package
index that pip uses.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.onelayer import distance
from tests.operators.nodes import conv, data, expected, matmul, model_of
from tests.operators.oplibrary import installed_library

pytestmark = pytest.mark.slow

OLDEST = ("onnxruntime==1.17.*", "numpy<2")  # that ONNX Runtime was built for numpy 1
IR_VERSION, OPSETS = 8, (9, 17)
CASES = {
    "matmul": (matmul(75, 21), (3, 75)),
    "matmul-terms": (matmul(75, 21, 3), (2, 3, 75)),
    "matmul-groups": (matmul(75, 21, 2, 32), (3, 75)),
    "matmul-level-0": (matmul(75, 21, 2, 32, 0), (3, 75)),
    "matmul-no-rows": (matmul(75, 21), (0, 75)),
    "conv": (conv(6, 4, (3, 2), 2, 2, pads=(1, 0, 1, 1)), (2, 8, 5, 6)),
    "conv-groups": (conv(6, 40, (1,), 1, 2, 32), (2, 40, 7)),
    "conv-level-0": (conv(6, 4, (3,), 1, 1, None, 0), (2, 4, 7)),
    "conv-no-images": (conv(6, 4, (3, 2)), (0, 4, 5, 6)),
}
SCRIPT = """
import pathlib, sys
import numpy, onnxruntime

folder, library = pathlib.Path(sys.argv[1]), sys.argv[2]
assert onnxruntime.__version__.startswith("1.17."), onnxruntime.__version__
for file in sorted(folder.glob("*.onnx")):
    for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        if library:
            options.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        found = session.run(None, {"x": numpy.load(file.with_suffix(".npy"))})[0]
        numpy.save(folder / f"{file.stem}.{level}.npy", found)
"""


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with that ONNX Runtime; skip where pip has none."""
    folder = tmp_path_factory.mktemp("oldest")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    options = ["--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    installed = subprocess.run(
        [python, "-m", "pip", "install", *options, *OLDEST],
        check=False,
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        version = ".".join(map(str, sys.version_info[:2]))
        said = installed.stderr.strip().splitlines()[-1:]
        pytest.skip(f"pip cannot install {OLDEST[0]} for Python {version}: {' '.join(said)}")
    return python


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models and of data for each."""
    folder = tmp_path_factory.mktemp("files")
    for name, (operator, shape) in CASES.items():
        for opset in OPSETS:
            file = folder / f"{name}-{opset}.onnx"
            onnx.save(model_of([operator], shape, opset, IR_VERSION), file)
            np.save(file.with_suffix(".npy"), data(shape))
    return folder


@pytest.mark.parametrize("kind", ["functions", "kernels"])
def test_files_run_in_the_oldest_runtime(oldest: Path, files: Path, kind: str) -> None:
    library = installed_library() if kind == "kernels" else ""
    done = subprocess.run(
        [oldest, "-c", SCRIPT, files, library],
        check=False,
        capture_output=True,
        text=True,
        cwd=files,
    )
    assert done.returncode == 0, done.stderr
    for name, (operator, shape) in CASES.items():
        wanted = expected(operator, data(shape))
        for opset in OPSETS:
            for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):
                found = np.load(files / f"{name}-{opset}.{level}.npy")
                assert found.shape == wanted.shape, (name, opset, level)
                assert distance(found, wanted) < 1e-5, (name, opset, level)
                (files / f"{name}-{opset}.{level}.npy").unlink()
