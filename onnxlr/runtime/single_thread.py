"""A session of one thread: what is measured must not depend on how many a machine has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort

from onnxlr.runtime.execution import ExecutionError, in_one_line
from onnxlr.runtime.sessions import offer_kernels, open_session

__all__ = ["SingleThread"]


class SingleThread:
    """A model loaded with ONNX Runtime's usual optimisation of graphs.

    Raises
    ------
    ExecutionError
        If it cannot be loaded.
    """

    def __init__(self, model: str | bytes) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        kernels = offer_kernels(options)
        providers = ["CPUExecutionProvider"]
        try:
            self._session = open_session(model, options, kernels, None, providers=providers)
        except Exception as error:  # noqa: BLE001  (its exceptions share no base class)
            raise ExecutionError(f"cannot be loaded: {in_one_line(error)}") from None

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Return all outputs.

        Raises
        ------
        ExecutionError
            If the model cannot be run on these inputs.
        """
        try:
            return list(self._session.run(None, dict(inputs)))
        except Exception as error:  # noqa: BLE001
            raise ExecutionError(f"cannot be run: {in_one_line(error)}") from None
