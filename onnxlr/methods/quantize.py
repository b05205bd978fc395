"""The whole weight in another format, without any factorization."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.method import NoOptions, Options, Setting
from onnxlr.stages import Chain, Convolution, Linear, Lookup, Stage

__all__ = ["Quantize"]


class Quantize:
    """Rounds a weight to the format asked for, to the nearest code.

    Matrices and kernels get a scale for each output, tables of rows a scale for each row.
    """

    name = "quantize"
    options: type[Options] = NoOptions

    def factorize(
        self,
        weight: npt.NDArray[Any],
        options: NoOptions,  # noqa: ARG002
        setting: Setting,
    ) -> Chain:
        """Return one stage.

        Raises
        ------
        UsageError
            If the format is the weight's own type: nothing would change.
        """
        if setting.format.kind == setting.stored:
            raise UsageError(
                f"quantize keeps a {setting.stored} weight as {setting.format.kind}: nothing "
                "changes (give --format)"
            )
        stage: Stage
        if setting.is_table:
            stage = Lookup.of(weight)
        elif setting.groups is not None:
            stage = Convolution.of(weight, setting.groups, tuple(range(weight.ndim - 2)))
        else:
            stage = Linear.of(weight)
        return Chain((stage,)).encoded(setting.format, setting.compute)

    def settle(self, options: NoOptions, chain: Chain) -> NoOptions:  # noqa: ARG002
        """Return no options."""
        return NoOptions()
