"""Fixtures of tests of training."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.training.tuning_case import Case, cross_entropy, two_layers


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path, two_layers(), rank=4)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a module `my_losses`, of which `my_losses:loss` is a loss on labels."""
    module = ModuleType("my_losses")
    module.loss = cross_entropy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_losses", module)
    return module
