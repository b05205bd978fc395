"""The op library: there, turned off, or with each instruction set of this machine."""

from __future__ import annotations

import pytest

import onnxlr
from tests.operators.oplibrary import installed_library


@pytest.fixture(params=onnxlr.describe_ops().available or ("scalar",))
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Use one instruction set; kernels are chosen when a session is made."""
    installed_library()
    monkeypatch.setenv("ONNXLR_ISA", request.param)
    assert onnxlr.describe_ops().isa == request.param
    return str(request.param)


@pytest.fixture
def available() -> str:
    """Return the op library's file, where there is one."""
    return installed_library()


@pytest.fixture
def off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn the op library off."""
    monkeypatch.setenv("ONNXLR_OPS_LIBRARY", "off")
