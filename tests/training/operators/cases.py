"""ONNX's own node test cases, as torch runs them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """A model of one operator (or of the functions that define it) with data."""

    name: str
    model: onnx.ModelProto
    feeds: Mapping[str, Array]
    expected: Mapping[str, Array]

    @property
    def operator(self) -> str:
        """The one operator that it is of; nothing where it is spelt out in others."""
        names = [node.op_type for node in self.model.graph.node if node.op_type != "Constant"]
        return names[0] if len(names) == 1 and not self.model.functions else ""


@cache
def cases() -> tuple[Case, ...]:
    """Return all cases whose inputs and outputs are tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they compute infinities on purpose
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    return tuple(_cases(found))


def _cases(found: list[Any]) -> Iterator[Case]:
    for case in found:
        graph = case.model.graph
        for inputs, outputs in case.data_sets:
            try:
                feeds, expected = _named(graph.input, inputs), _named(graph.output, outputs)
            except TypeError:  # sequences and optionals
                continue
            yield Case(case.name, case.model, feeds, expected)


def _named(infos: Any, values: Any) -> dict[str, Array]:
    found = {}
    for info, value in zip(infos, values, strict=False):
        array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        if not isinstance(array, np.ndarray | np.generic):
            raise TypeError(type(value))
        found[info.name] = np.asarray(array)
    return found


def cases_of(operator: str) -> list[Case]:
    return [case for case in cases() if case.operator == operator]
