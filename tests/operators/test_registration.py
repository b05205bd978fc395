"""What the op library exports, and what it says to an ONNX Runtime that is too old."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.operators.oplibrary import installed_library

EXPORTED = {"RegisterCustomOps", "OnnxlrOpsDescription"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the symbols of an ELF file")
def test_nothing_else_is_exported() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    command = [nm, "--dynamic", "--defined-only", "--format=posix", installed_library()]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {line.split()[0] for line in listed.splitlines()}
    assert names == EXPORTED


LOADED = """
import onnxruntime, sys
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])
del options
print(open("/proc/self/maps").read().count(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_library_is_loaded_once() -> None:
    """ONNX Runtime unloads it; each time, what it keeps for the process would be lost."""
    command = [sys.executable, "-c", LOADED, str(Path(installed_library()).resolve())]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(printed) > 0


def test_description() -> None:
    library = ctypes.CDLL(installed_library())
    library.OnnxlrOpsDescription.restype = ctypes.c_char_p
    fields = dict(
        field.split("=", 1) for field in library.OnnxlrOpsDescription().decode().split(";")
    )
    assert list(fields) == ["version", "layout", "isa", "available"]
    assert fields["layout"] == "1"
    assert fields["available"].split(",")[-1] == "scalar"
    assert fields["isa"] in ("", *fields["available"].split(","))


def test_an_onnx_runtime_that_is_too_old() -> None:
    """A runtime without version 17 of the interface makes the status itself, with version 1."""
    create_status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    messages: list[bytes] = []

    @create_status
    def create(code: int, message: bytes) -> int:
        assert code == 1
        messages.append(message)
        return 4711

    table = (ctypes.c_void_p * 300)(ctypes.cast(create, ctypes.c_void_p).value)
    asked: list[int] = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    def get_api(version: int) -> int | None:
        asked.append(version)
        return ctypes.addressof(table) if version < 17 else None

    version = ctypes.create_string_buffer(b"1.16.3")

    @ctypes.CFUNCTYPE(ctypes.c_void_p)
    def get_version() -> int:
        return ctypes.addressof(version)

    base = (ctypes.c_void_p * 2)(
        ctypes.cast(get_api, ctypes.c_void_p).value, ctypes.cast(get_version, ctypes.c_void_p).value
    )
    library = ctypes.CDLL(installed_library())
    library.RegisterCustomOps.restype = ctypes.c_void_p
    assert library.RegisterCustomOps(None, ctypes.byref(base)) == 4711
    assert messages == [b"onnxlr needs ONNX Runtime >= 1.17; found 1.16.3"]
    assert asked == [17, 1]
