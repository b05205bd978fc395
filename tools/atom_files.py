"""What sums of atoms take: bytes in a model's file, and what the model takes to load and to run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import onnxlr
from onnxlr.layers import find_layers, read_weight
from onnxlr.methods import find_method, options_for
from onnxlr.methods.method import Setting
from onnxlr.model import open_model
from onnxlr.plan import Choice, Plan, Proposal
from onnxlr.rewriting import Rewriting
from tools.atom_figures import METHOD
from tools.measured_files import ANY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from onnxlr.methods import Options
    from onnxlr.runtime import Footprint

    Array = npt.NDArray[Any]

__all__ = ["FileBytes", "ModelFootprint", "file_bytes", "footprints"]


@dataclass(frozen=True)
class FileBytes:
    """A layer in a file, all in bytes."""

    layer: str
    shape: tuple[int, ...]
    bits: float
    """For each entry of the weight, as asked."""
    stated: int
    """Of the chain: what the budget is about."""
    reported: int
    """Of the layer's nodes and tensors, as reports have it."""
    grown: int
    """By which the model's file is larger than without the numbers of the layer's weight: nodes,
    names, and the plan in the metadata, less the node that is no more."""


@dataclass(frozen=True)
class ModelFootprint:
    """What a model takes on disk, in memory, to load and to run."""

    name: str
    megabytes: float
    load_seconds: float | None
    memory: float | None
    """Megabytes by which the process has grown when the model is loaded."""
    peak: float | None
    """The most by which it grows until the model has run."""
    milliseconds: float | None
    latency: float | None
    """Median over rounds of the time by the original's in the same round."""
    low: float | None
    high: float | None
    """Quartiles."""
    problems: tuple[str, ...] = ()


def file_bytes(model: Path, names: Sequence[str], bits: Sequence[float]) -> Iterator[FileBytes]:
    """Yield what the model's file grows by where one of its layers is rewritten.

    Fits are of the weights alone; nothing is written or run.

    Parameters
    ----------
    model
        The file, without external data.
    names
        Of layers.
    bits
        For each entry of the weight.
    """
    for budget in bits:
        options = options_for(METHOD, {"bits": budget})
        for name in names:
            yield _in_file(model, name, options, budget)


def _in_file(file: Path, name: str, options: Options, bits: float) -> FileBytes:
    model, reference = open_model(file), open_model(file)
    (layer,) = (layer for layer in find_layers(model) if layer.name == name)
    weight, method = read_weight(model, layer), find_method(METHOD)
    chain = method.factorize(weight, options, Setting.for_layer(layer))
    choice = Choice(METHOD, method.settle(options, chain))
    rewriting = Rewriting(model, reference, "onnx")
    rewriting.add(Proposal(layer, choice, chain))
    before = model.proto.ByteSize()
    rewriting.finish(Plan({name: choice}, None, "onnx", 0, onnxlr.__version__))
    (record,) = rewriting.records
    grown = model.proto.ByteSize() - (before - weight.nbytes)
    return FileBytes(name, weight.shape, bits, chain.cost.bytes, record.bytes_after, grown)


def footprints(
    model: Path,
    folder: Path,
    bits: float,
    patterns: Sequence[str],
    feeds: Sequence[Mapping[str, Array]],
) -> Iterator[ModelFootprint]:
    """Yield the footprints of a model, and of it with weights that are recombined.

    Parameters
    ----------
    model
        The file.
    folder
        Where files may be written.
    bits
        For each entry of the weights; the fits are of the weights alone.
    patterns
        Of the names of layers.
    feeds
        Inputs to run on.
    """
    arguments: dict[str, Any] = {"method": METHOD, "bits": bits, "layers": patterns}
    for mode in ("load", "run"):
        output = folder / f"{mode}.onnx"
        done = onnxlr.rewrite(model, output, **arguments, data=list(feeds), tolerance=ANY)
        output.unlink()
        if done.footprints is None:
            raise ValueError(f"{patterns} of {model} name no layer that {METHOD} rewrites")
        if mode == "load":
            yield _footprint("original", done.footprints.original)
        yield _footprint(f"{METHOD} {bits:g}, {mode}", done.footprints.rewritten)
        arguments = {"plan": _each_run(done.plan)}


def _each_run(plan: Plan) -> Plan:
    """Return a plan whose weights are recombined in each run."""
    layers = {
        name: choice
        if choice.keeps
        else replace(choice, options=replace(choice.options, recombine="run"))
        for name, choice in plan.layers.items()
    }
    return replace(plan, layers=layers)


def _footprint(name: str, found: Footprint) -> ModelFootprint:
    memory, peak = (None if size is None else size / 1e6 for size in (found.memory, found.peak))
    taken = found.latency
    times = (
        (None,) * 4 if taken is None else (taken.milliseconds, taken.ratio, taken.low, taken.high)
    )
    size = found.bytes / 1e6
    return ModelFootprint(
        name, size, found.load_seconds, memory, peak, *times, problems=found.problems
    )
