"""LSTM, GRU and RNN: one step after the other, as ONNX writes their equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.program import Call
from onnxlr.training.torch_import import torch

__all__: list[str] = []

functional = torch.nn.functional
Activation = Callable[[Any], Any]
Step = Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]
"""Takes a step's part of the input and the states before it; returns the states after it."""

_PLAIN: dict[str, Activation] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": functional.softsign,
    "softplus": functional.softplus,
}
_WITH_FACTORS: dict[str, tuple[float, float | None, Callable[..., Any]]] = {
    "affine": (1.0, 0.0, lambda x, a, b: a * x + b),
    "leakyrelu": (0.01, None, lambda x, a, b: functional.leaky_relu(x, a)),  # noqa: ARG005
    "thresholdedrelu": (1.0, None, lambda x, a, b: x * (x >= a)),  # noqa: ARG005
    "scaledtanh": (1.0, 1.0, lambda x, a, b: a * torch.tanh(b * x)),
    "hardsigmoid": (0.2, 0.5, lambda x, a, b: torch.clamp(a * x + b, 0, 1)),
    "elu": (1.0, None, lambda x, a, b: functional.elu(x, a)),  # noqa: ARG005
}
"""Usual alpha and beta (None: it has none), and the function."""


def _refuses(call: Call) -> str | None:
    names = [name for name in call.number("activations", []) if name.lower() not in _PLAIN]
    unknown = [name for name in names if name.lower() not in _WITH_FACTORS]
    return f"activation {unknown[0]} is not covered" if unknown else None


def _activations(run: Run, usual: list[str], directions: int) -> list[list[Activation]]:
    """Return the activations of each direction; alphas and betas go to those that have them."""
    names = run.number("activations") or usual * directions
    alphas = iter(run.number("activation_alpha") or ())
    betas = iter(run.number("activation_beta") or ())
    found: list[Activation] = []
    for name in map(str.lower, names):
        if name in _PLAIN:
            found.append(_PLAIN[name])
            continue
        alpha, beta, function = _WITH_FACTORS[name]
        a = next(alphas, alpha)
        b = None if beta is None else next(betas, beta)
        found.append(partial(_with_factors, function, a, b))
    each = len(usual)
    return [found[place * each : (place + 1) * each] for place in range(directions)]


def _with_factors(function: Callable[..., Any], alpha: float, beta: float | None, x: Any) -> Any:
    return function(x, alpha, beta)


@dataclass(frozen=True)
class _Weights:
    """One direction: input and recurrent weights `(gates · hidden, …)`, biases, peepholes."""

    inputs: Any
    states: Any
    input_bias: Any
    state_bias: Any
    peepholes: Any = None


def _clipped(run: Run, x: Any) -> Any:
    bound = run.number("clip")
    return x if bound is None else torch.clamp(x, -bound, bound)


def _lstm_step(run: Run, weights: _Weights, functions: list[Activation]) -> Step:
    gate, squash, out = functions
    couples = run.number("input_forget", 0)

    def step(x: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, cell = states
        parts = (x + functional.linear(hidden, weights.states, weights.state_bias)).chunk(4, -1)
        enters, leaves, forgets, news = parts
        peeps = weights.peepholes
        if peeps is not None:
            enters, forgets = enters + peeps[0] * cell, forgets + peeps[2] * cell
        enters = gate(_clipped(run, enters))
        forgets = 1 - enters if couples else gate(_clipped(run, forgets))
        after = forgets * cell + enters * squash(_clipped(run, news))
        if peeps is not None:
            leaves = leaves + peeps[1] * after
        return gate(_clipped(run, leaves)) * out(after), after

    return step


def _gru_step(run: Run, weights: _Weights, functions: list[Activation]) -> Step:
    gate, squash = functions
    size = weights.states.shape[-1]
    first, last = weights.states[: 2 * size], weights.states[2 * size :]
    first_bias, last_bias = weights.state_bias[: 2 * size], weights.state_bias[2 * size :]
    resets_product = run.number("linear_before_reset", 0)

    def step(x: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
        (hidden,) = states
        gates = x[..., : 2 * size] + functional.linear(hidden, first, first_bias)
        keeps, resets = gate(_clipped(run, gates)).chunk(2, -1)
        if resets_product:
            past = resets * functional.linear(hidden, last, last_bias)
        else:
            past = functional.linear(resets * hidden, last, last_bias)
        news = squash(_clipped(run, x[..., 2 * size :] + past))
        return ((1 - keeps) * news + keeps * hidden,)

    return step


def _rnn_step(run: Run, weights: _Weights, functions: list[Activation]) -> Step:
    def step(x: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
        past = functional.linear(states[0], weights.states, weights.state_bias)
        return (functions[0](_clipped(run, x + past)),)

    return step


def _direction(
    x: Any, weights: _Weights, step: Step, states: tuple[Any, ...], lasting: Any, backwards: bool
) -> tuple[Any, tuple[Any, ...]]:
    """Run through time; return the hidden states `(time, batch, hidden)` and the last states.

    What lies beyond a sequence's end changes no state, so that the way back begins at its end.
    """
    entries = functional.linear(x, weights.inputs, weights.input_bias)
    order = range(len(x) - 1, -1, -1) if backwards else range(len(x))
    found = [states[0]] * len(x)
    for time in order:
        after = step(entries[time], states)
        if lasting is not None:
            lasts = lasting[time]
            after = tuple(
                torch.where(lasts, new, old) for new, old in zip(after, states, strict=True)
            )
            found[time] = torch.where(lasts, after[0], torch.zeros_like(after[0]))
        else:
            found[time] = after[0]
        states = after
    return torch.stack(found), states


def _run(
    run: Run, make: Callable[..., Step], usual: list[str], x: Any, tensors: list[Any]
) -> tuple[Any, ...]:
    """Run all directions; `tensors` are weights, biases, lengths, first states and peepholes."""
    inputs, recurrent, biases, lengths, firsts, peepholes = tensors
    by_batch = bool(run.number("layout", 0))
    x = x.transpose(0, 1) if by_batch else x
    directions, size = recurrent.shape[0], recurrent.shape[-1]
    functions = _activations(run, usual, directions)
    lasting = None
    if lengths is not None:
        times = torch.arange(len(x), device=lengths.device)
        lasting = (times[:, None] < lengths[None]).unsqueeze(-1).to(x.device)
    outputs, ends = [], []
    for place in range(directions):
        states = tuple(
            x.new_zeros(x.shape[1], size)
            if first is None
            else (first[:, place] if by_batch else first[place])
            for first in firsts
        )
        pair = inputs.new_zeros(2, inputs.shape[1]) if biases is None else biases[place].chunk(2)
        peeps = None if peepholes is None else peepholes[place].chunk(3)
        weights = _Weights(inputs[place], recurrent[place], pair[0], pair[1], peeps)
        step = make(run, weights, functions[place])
        backwards = place == 1 or run.number("direction", "forward") == "reverse"
        found, end = _direction(x, weights, step, states, lasting, backwards)
        outputs.append(found)
        ends.append(end)
    last = [torch.stack(values, 1 if by_batch else 0) for values in zip(*ends, strict=True)]
    if by_batch:
        return torch.stack(outputs, 2).transpose(0, 1), *last
    return torch.stack(outputs, 1), *last


@operator("LSTM", refuses=_refuses)
def lstm(
    run: Run,
    x: Any,
    inputs: Any,
    recurrent: Any,
    biases: Any = None,
    lengths: Any = None,
    hidden: Any = None,
    cell: Any = None,
    peepholes: Any = None,
) -> tuple[Any, ...]:
    """Return hidden states of all times, and the last hidden and cell states."""
    tensors = [inputs, recurrent, biases, lengths, (hidden, cell), peepholes]
    return _run(run, _lstm_step, ["Sigmoid", "Tanh", "Tanh"], x, tensors)


@operator("GRU", refuses=_refuses)
def gru(
    run: Run,
    x: Any,
    inputs: Any,
    recurrent: Any,
    biases: Any = None,
    lengths: Any = None,
    hidden: Any = None,
) -> tuple[Any, ...]:
    """Return hidden states of all times, and the last ones."""
    tensors = [inputs, recurrent, biases, lengths, (hidden,), None]
    return _run(run, _gru_step, ["Sigmoid", "Tanh"], x, tensors)


@operator("RNN", refuses=_refuses)
def rnn(
    run: Run,
    x: Any,
    inputs: Any,
    recurrent: Any,
    biases: Any = None,
    lengths: Any = None,
    hidden: Any = None,
) -> tuple[Any, ...]:
    """Return hidden states of all times, and the last ones."""
    tensors = [inputs, recurrent, biases, lengths, (hidden,), None]
    return _run(run, _rnn_step, ["Tanh"], x, tensors)
