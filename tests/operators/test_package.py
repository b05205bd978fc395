"""The package as users get it: with the op library, and without it where it cannot be built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.operators.oplibrary import INPUTS, OUTPUTS, bias, telling_model, ternary

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
UNREACHABLE = "No matching distribution found for scikit-build-core"


def run(
    arguments: Sequence[object], folder: Path, **changes: str
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ONNXLR_")} | changes
    return subprocess.run(
        [str(a) for a in arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def build(source: Path, folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel into a folder as pip does; skip where its requirements cannot be had."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-cache-dir"]
    ended = run([*command, "--wheel-dir", folder, source], folder, **changes)
    if UNREACHABLE in ended.stderr:
        pytest.skip(UNREACHABLE)
    return ended


def wheel_in(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    ended = run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder, wheel], folder
    )
    assert ended.returncode == 0, ended.stderr
    return folder


def python(installed: Path, *arguments: object) -> str:
    """Run Python with that installation, and not the one that tests otherwise use.

    Its dependencies are this environment's. Without `site`, which would let editable installations
    come first.
    """
    paths = [str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    ended = run([sys.executable, "-S", *arguments], installed, PYTHONPATH=os.pathsep.join(paths))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def described(installed: Path) -> dict[str, Any]:
    return dict(json.loads(python(installed, "-m", "onnxlr", "ops", "--json")))


def results(installed: Path) -> np.ndarray[Any, Any]:
    """Run the model that tells what runs it on a row of ones."""
    onnx.save(telling_model(), installed / "m.onnx")
    program = (
        "import numpy as np, onnxlr; s = onnxlr.session('m.onnx'); "
        f"print(*s.run(None, {{'x': np.ones((1, {INPUTS}), np.float32)}})[0].ravel())"
    )
    return np.array(python(installed, "-c", program).split(), np.float32)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel that was built from a source distribution, as from an index."""
    folder = tmp_path_factory.mktemp("wheel")
    ended = run([sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT], folder)
    if UNREACHABLE in ended.stdout + ended.stderr:
        pytest.skip(UNREACHABLE)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    if not shutil.which(os.environ.get("CXX", "c++")):
        pytest.skip("there is no C++ compiler")
    (source,) = folder.glob("*.tar.gz")
    ended = build(source, folder, ONNXLR_OPS="required")
    assert ended.returncode == 0, ended.stderr
    return wheel_in(folder)


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what is built where there is no compiler."""
    folder = tmp_path_factory.mktemp("pure")
    ended = build(ROOT, folder, CXX="/nonexistent")
    assert ended.returncode == 0, ended.stderr
    return wheel_in(folder)


def test_one_wheel_for_every_python(wheel: Path) -> None:
    python_tag, abi, platform = wheel.stem.split("-")[2:]
    assert (python_tag, abi) == ("py3", "none")
    assert platform != "any"


def test_the_wheel_holds_the_package_and_the_library(wheel: Path, pure_wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(pure_wheel) as pure:
        names, pure_names = archive.namelist(), pure.namelist()
        entry_points = next(n for n in names if n.endswith("entry_points.txt"))
        assert "onnxlr=onnxlr.__main__:main" in archive.read(entry_points).decode().replace(" ", "")
    libraries = [n for n in names if Path(n).suffix in (".so", ".dylib", ".dll")]
    assert [Path(n).stem.removeprefix("lib") for n in libraries] == ["onnxlr_ops"]
    assert sorted(set(names) - set(libraries)) == sorted(pure_names)
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "onnxlr").rglob("*.py")}
    page = {f"onnxlr/reporting/page/page.{kind}" for kind in ("css", "html.j2", "js")}
    assert sources | page | {"onnxlr/py.typed"} == {
        n for n in pure_names if n.startswith("onnxlr/")
    }


def test_the_wheel_by_itself(wheel: Path, tmp_path: Path) -> None:
    installed = install(wheel, tmp_path)
    found = described(installed)
    assert Path(found["library"]).parent == installed / "onnxlr"
    assert found["problem"] is None
    expected = ternary().sum(0) + bias()
    np.testing.assert_allclose(results(installed), expected, atol=1e-5)


def test_no_compiler_gives_a_wheel_without_the_library(pure_wheel: Path, tmp_path: Path) -> None:
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    installed = install(pure_wheel, tmp_path)
    found = described(installed)
    assert found["library"] is None
    assert "no C++ compiler" in found["problem"]
    np.testing.assert_array_equal(results(installed), bias()[:OUTPUTS])


def test_the_failure_shows_where_the_library_is_required(tmp_path: Path) -> None:
    ended = build(ROOT, tmp_path, CXX="/nonexistent", ONNXLR_OPS="required")
    assert ended.returncode != 0
    assert "/nonexistent" in ended.stdout + ended.stderr
    assert not list(tmp_path.glob("*.whl"))
