"""Programs without Python: the library's own installation, and the example that uses it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.operators.oplibrary import INPUTS, bias, telling_model, ternary

SOURCES = Path(__file__).parents[2] / "custom_ops"


def command(arguments: Sequence[object], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(a) for a in arguments], input=text, capture_output=True, text=True, check=False
    )


def done(arguments: Sequence[object]) -> str:
    ended = command(arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    compilers = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    if not any(shutil.which(compiler) for compiler in compilers if compiler):
        pytest.skip("there is no C++ compiler")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the component `native` was installed to."""
    build, folder = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("native")
    done(["cmake", "-S", SOURCES, "-B", build])
    done(["cmake", "--build", build, "--target", "onnxlr_ops"])
    done(["cmake", "--install", build, "--component", "native", "--prefix", folder])
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("example")
    done(["cmake", "-S", SOURCES / "examples", "-B", build])
    done(["cmake", "--build", build])
    return build / "register_ops"


@pytest.fixture(scope="module")
def runtime() -> Path:
    """Return the ONNX Runtime library that its Python package has, where it has one by itself."""
    found = sorted(Path(ort.__file__).with_name("capi").glob("libonnxruntime.so.*"))
    if not found:
        pytest.skip(f"onnxruntime {ort.__version__} has no libonnxruntime.so of its own")
    return found[0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(telling_model(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.skipif(platform.system() != "Linux", reason="names of the files are Linux's")
def test_the_native_installation_is_the_library_alone(installed: Path) -> None:
    files = [file for file in installed.rglob("*") if file.is_file()]
    assert [file.name for file in files] == ["libonnxlr_ops.so"]
    assert ctypes.CDLL(str(files[0])).RegisterCustomOps


def test_the_example_runs_a_model_in_the_kernels(
    program: Path, installed: Path, runtime: Path, model: Path
) -> None:
    rows = np.random.default_rng(1).standard_normal((2, INPUTS)).astype(np.float32)
    library = next(installed.rglob("libonnxlr_ops.so"))
    text = " ".join(f"{value:.9g}" for value in rows.ravel())
    ended = command([program, runtime, library, model, "x", "y", *rows.shape], text)
    assert ended.returncode == 0, ended.stderr
    found = np.array(ended.stdout.split(), np.float32).reshape(len(rows), -1)
    expected = rows.astype(np.float64) @ ternary() + bias()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "value", "message"),
    [
        (0, "nothing.so", "nothing.so"),
        (1, "nothing.so", "nothing.so"),
        (2, "nothing.onnx", "nothing.onnx"),
        (6, "33", "fewer than 66 numbers"),
    ],
)
def test_the_example_says_what_is_wrong(
    program: Path,
    installed: Path,
    runtime: Path,
    model: Path,
    changed: int,
    value: str,
    message: str,
) -> None:
    library = next(installed.rglob("libonnxlr_ops.so"))
    arguments = [runtime, library, model, "x", "y", 2, INPUTS]
    arguments[changed] = value
    ended = command([program, *arguments], "0 " * 2 * INPUTS)
    assert ended.returncode == 1
    assert message in ended.stderr
