"""An ONNX model as a torch module: its weights are parameters under their own names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import ModelError, UsageError
from onnxlr.model import Model, open_model
from onnxlr.training.constants import running_statistics, tensor_of
from onnxlr.training.operators import OPERATORS, check_covered
from onnxlr.training.operators.registry import Run
from onnxlr.training.program import Call, Program, compile_program
from onnxlr.training.torch_import import torch

__all__ = ["TrainableModel"]

Array = npt.NDArray[Any]
Tensor = Any

_SHORT = 64
"""Whole numbers of at most one axis and so many entries stay on the CPU: they say what is done."""


class TrainableModel(torch.nn.Module):
    """Runs a model's graph in torch, so that gradients flow through it.

    Float initializers and Constant values are parameters under their own names (names with dots
    too), running means and variances are buffers; whole numbers stay as they are. Any of them, and
    any other tensor, can be given by a module of its own, see `replace`. In `train()` mode
    normalisations take the batch's own statistics and Dropout drops; a new model is in `eval()`
    mode, in which outputs agree with ONNX Runtime.

    Parameters
    ----------
    model
        A path, the bytes of a file, a proto, or an opened model; it is not changed.
    floating
        Float type in which everything is computed that is float32 in the model, for instance
        `torch.float64` to compare gradients; float32 if not given.

    Raises
    ------
    ModelError
        If the model cannot be read, or has nodes that are not covered: all of them are named.
    """

    def __init__(self, model: Any, *, floating: Any = None) -> None:
        super().__init__()
        opened = model if isinstance(model, Model) else open_model(model)
        self.name = opened.name
        self.floating = torch.float32 if floating is None else floating
        self._memory: dict[Any, Any] = {}
        self._program = compile_program(opened)
        check_covered(opened.name, self._program)
        self._take(self._program, running_statistics(self._program))
        self.eval()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that no constant gives."""
        return self._program.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self._program.outputs

    @property
    def calls(self) -> tuple[Call, ...]:
        """The main graph's nodes, in the order in which they run."""
        return self._program.calls

    @property
    def constants(self) -> Mapping[str, Array]:
        """The main graph's initializers and the values of its Constant nodes, as they came."""
        return self._program.constants

    @property
    def running(self) -> dict[str, Tensor]:
        """Running means and variances by name, which the data moves in `train()` mode."""
        return {
            name: value
            for name, value in self._buffers.items()
            if value is not None and value.is_floating_point()
        }

    def constant(self, name: str) -> Tensor:
        """Return the tensor of a constant, as it is now.

        Raises
        ------
        KeyError
            If there is no constant of this name.
        """
        module = self._modules.get(name)
        if module is not None:
            return module()
        found = self._parameters.get(name)
        return self._buffers[name] if found is None else found

    def replace(self, name: str, module: torch.nn.Module, inputs: Sequence[str] = ()) -> None:
        """Let a module give a tensor from now on; its own values are trained.

        Parameters
        ----------
        name
            A constant, or the output of a node of the main graph, which no longer runs.
        module
            Returns the tensor.
        inputs
            Names of the tensors that it takes; of a node's output only, and made before it.

        Raises
        ------
        UsageError
            If there is no such tensor.
        """
        made = {output for call in self.calls for output in call.outputs}
        kinds = (self._parameters, self._buffers, self._modules)
        if name not in made and not any(name in kind for kind in kinds):
            raise UsageError(f"{self.name}: there is no constant or tensor '{name}'")
        for kind in kinds:
            kind.pop(name, None)
        self._modules[name] = module
        calls = (
            replace(call, inputs=tuple(inputs), programs={}) if call.outputs[0] == name else call
            for call in self.calls
        )
        self._program = replace(self._program, calls=tuple(calls))

    def part(self, inputs: Iterable[str], outputs: Sequence[str]) -> TrainableModel:
        """Return what computes some tensors of the main graph out of others and of constants.

        It shares this model's parameters and modules.

        Parameters
        ----------
        inputs
            Tensors that are given, constants or others; those of the model are not needed.
        outputs
            Tensors that are wanted.
        """
        found = copy(self)
        found._program = self._cut(tuple(inputs), tuple(outputs))  # noqa: SLF001
        return found

    def prune(self) -> None:
        """Leave out the nodes of the main graph that no output needs, as after `replace`."""
        self._program = self._cut(self.inputs, self.outputs)

    def _cut(self, given: tuple[str, ...], outputs: tuple[str, ...]) -> Program:
        wanted, calls = set(outputs), list[Call]()
        for call in reversed(self.calls):
            if wanted.isdisjoint(call.outputs) or call.outputs[0] in given:
                continue
            calls.append(call)
            wanted.update(call.reads())
        constants = {
            name: array
            for name, array in self._program.constants.items()
            if name in wanted and name not in given
        }
        return replace(
            self._program,
            inputs=given,
            outputs=outputs,
            constants=constants,
            calls=tuple(reversed(calls)),
        )

    def forward(self, feeds: Mapping[str, Any], watch: Sequence[str] = ()) -> dict[str, Tensor]:
        """Return the outputs by name, and the tensors named in `watch`.

        Parameters
        ----------
        feeds
            Arrays or tensors by the names of inputs.
        watch
            Names of other tensors of the main graph to return.

        Raises
        ------
        UsageError
            If an input is missing, or a name of `watch` unknown.
        ModelError
            If a node cannot be run on what it is given.
        """
        values: dict[str, Tensor] = {}
        for name in self.inputs:
            if name not in feeds:
                raise UsageError(f"{self.name}: input '{name}' is missing")
            values[name] = self._tensor(feeds[name])
        wanted = dict.fromkeys((*self.outputs, *watch))
        self._run(self._program, values, wanted)
        missing = [name for name in wanted if name not in values]
        if missing:
            raise UsageError(f"{self.name}: there is no tensor '{missing[0]}' in its main graph")
        return {name: values[name] for name in wanted}

    def _tensor(self, value: Any) -> Tensor:
        found = (
            value
            if isinstance(value, torch.Tensor)
            else tensor_of(np.asarray(value), f"{self.name}: an input")
        )
        if found.dtype == torch.float32:
            found = found.to(self.floating)
        return found.to(self._device())

    def _device(self) -> Any:
        first = next(self.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move all tensors but what shapes are made of, which is needed on the CPU."""
        kept = {
            name: value
            for name, value in self._buffers.items()
            if value is not None and not value.is_floating_point() and _is_short(value)
        }
        super()._apply(fn, recurse)
        self._buffers.update(kept)
        return self

    def _take(self, program: Program, running: set[str]) -> None:
        """Make parameters and buffers of all constants, those of subgraphs too."""
        for name, array in program.constants.items():
            known = program.aliases.get(name, name)
            tensor = tensor_of(array, f"{self.name}: constant '{known}'")
            if tensor.dtype == torch.float32:
                tensor = tensor.to(self.floating)
            if tensor.is_floating_point() and name not in running:
                self._parameters[known] = torch.nn.Parameter(tensor)
            else:
                self._buffers[known] = tensor
        for call in program.calls:
            for inner in call.programs.values():
                self._take(inner, running)

    def _run(self, program: Program, values: dict[str, Tensor], wanted: Iterable[str]) -> None:
        """Run all calls; of what they make, only what is wanted is kept to the end."""
        kept = {*wanted, *values}
        for name in program.constants:
            values[name] = self.constant(program.aliases.get(name, name))
        for call, over in zip(program.calls, program.last_uses, strict=True):
            if call.outputs[0] in self._modules:
                taken = (values[name] for name in call.inputs)
                values[call.outputs[0]] = self._modules[call.outputs[0]](*taken)
            else:
                results = self._results(call, values)
                values.update(zip(call.outputs, results, strict=False))
            for name in over:
                if name not in kept:
                    values.pop(name, None)

    def _results(self, call: Call, values: dict[str, Tensor]) -> Sequence[Tensor]:
        if call.operator == "If" and not call.domain:
            branch = "then_branch" if bool(values[call.inputs[0]]) else "else_branch"
            inner, program = dict(values), call.programs[branch]
            self._run(program, inner, program.outputs)
            return [inner[name] for name in program.outputs]
        known = OPERATORS[call.domain, call.operator]
        inputs = _on_one_device([values[name] if name else None for name in call.inputs])
        run = Run(call, self.floating, self.training, self._memory)
        try:
            given: list[Any] = list(inputs)
            for place in known.lists:
                tensor = inputs[place] if place < len(inputs) else None
                if tensor is not None:
                    given[place] = run.kept(place, tensor, tensor.tolist)
            found = known.function(run, *given)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            shapes = ", ".join("–" if x is None else str(list(x.shape)) for x in inputs)
            reason = str(error).splitlines()[0]
            raise ModelError(
                f"{self.name}: {call.kind} '{call.label}' cannot be run on {shapes}: {reason}"
            ) from error
        return found if isinstance(found, tuple) else (found,)


def _on_one_device(inputs: list[Tensor | None]) -> list[Tensor | None]:
    """Return inputs on the accelerator if one of them is there: shapes are made on the CPU."""
    devices = {x.device for x in inputs if x is not None}
    if len(devices) < 2:
        return inputs
    device = next(device for device in devices if device.type != "cpu")
    return [None if x is None else x.to(device) for x in inputs]


def _is_short(value: Tensor) -> bool:
    return value.dim() < 2 and value.numel() <= _SHORT
