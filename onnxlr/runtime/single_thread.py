"""Sessions of so many threads: what is measured must not depend on how many a machine has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import onnxruntime as ort

from onnxlr.runtime.execution import ExecutionError, in_one_line
from onnxlr.runtime.sessions import offer_kernels, open_session

__all__ = ["OnThreads", "SingleThread", "clock_of"]

_STOP_SPINNING = "session.force_spinning_stop"


class OnThreads:
    """A model loaded with ONNX Runtime's usual optimisation of graphs, on so many threads.

    Raises
    ------
    ExecutionError
        If it cannot be loaded.
    """

    def __init__(self, model: str | bytes, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        if threads > 1:
            # A session's idle threads go on looking for work a while: in the next session's time.
            options.add_session_config_entry(_STOP_SPINNING, "1")
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


class SingleThread(OnThreads):
    """A model on one thread, the one that calls it.

    Raises
    ------
    ExecutionError
        If it cannot be loaded.
    """

    def __init__(self, model: str | bytes) -> None:
        super().__init__(model, 1)


def clock_of(threads: int) -> Callable[[], float]:
    """Return the clock for so many threads, in seconds.

    One thread is timed by its own CPU time, which other processes hardly enter. Of several only the
    wall tells how long somebody waits.
    """
    return time.thread_time if threads == 1 else time.perf_counter
