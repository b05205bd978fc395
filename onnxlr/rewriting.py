"""Applies a plan: factorizes each layer, lowers its chain, splices all into the model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxlr.errors import OnnxlrWarning, PlanError
from onnxlr.layers import Layer, Layout, Site, read_weight
from onnxlr.lowering import as_constants, find_target, lower_layer, released_by
from onnxlr.methods import Setting, find_method
from onnxlr.model import Model, Splice, splice
from onnxlr.model.tensors import make_tensor
from onnxlr.plan import Choice, Plan, Proposal
from onnxlr.progress import Progress, silent
from onnxlr.stages import Chain

__all__ = [
    "METADATA_KEY",
    "LayerRecord",
    "Rewriting",
    "emitted_bytes",
    "follow_plan",
    "released_bytes",
]

METADATA_KEY = "onnxlr.plan"
"""Key under which a rewritten model's metadata holds the plan that made it."""


@dataclass(frozen=True)
class LayerRecord:
    """What became of a layer.

    Attributes
    ----------
    name, operator, nodes, shape
        As in `Layer`.
    choice
        The plan's entry.
    error
        Relative Frobenius error `‖W − Ŵ‖/‖W‖`; None where the layer is kept.
    bytes_before, bytes_after
        Of its nodes and tensors in the file.
    """

    name: str
    operator: str
    nodes: tuple[str, ...]
    shape: tuple[int, ...] | None
    choice: Choice
    error: float | None
    bytes_before: int
    bytes_after: int


class Rewriting:
    """Collects the replacement of each layer, then changes the model once.

    Beside the model it changes a second opened copy, the *reference*: the original in which each
    rewritten layer's weight is the chain's dense approximation. Both must compute the same.
    """

    def __init__(self, model: Model, reference: Model, target: str) -> None:
        self._model, self.reference = model, reference
        self._target = find_target(target)
        self._change, self._dense = Splice(), Splice()
        self.records: list[LayerRecord] = []
        self.sites: list[Site] = []
        self.dtypes: frozenset[str] = frozenset()
        self.int8_data = False

    def add(self, proposal: Proposal) -> None:
        """Take in what was chosen for a layer."""
        layer, chain = proposal.layer, proposal.chain
        before = released_bytes(layer)
        if chain is None or layer.weight is None:
            self._record(layer, proposal.choice, None, before, before)
            return
        change = lower_layer(
            layer, chain, self._model, self._model.names, self._target, proposal.choice.activations
        )
        approximation = chain.reconstruct()
        weight = read_weight(self._model, layer).astype(np.float64)
        norm = float(np.linalg.norm(weight))
        error = float(np.linalg.norm(weight - approximation)) / norm if norm > 0 else 0.0
        self._record(layer, proposal.choice, error, before, change.byte_size())
        self._change.merge(change)
        self._dense.merge(_with_dense_weight(layer, approximation, self.reference))
        self.sites.extend(layer.sites)
        self.dtypes |= {layer.dtype.name}
        self.int8_data |= proposal.choice.activations != "float"

    def release(self) -> None:
        """Give back the memory of both changed models, once they are written."""
        for model in (self._model, self.reference):
            model.proto = onnx.ModelProto()

    def _record(
        self, layer: Layer, choice: Choice, error: float | None, before: int, after: int
    ) -> None:
        self.records.append(
            LayerRecord(
                layer.name, layer.operator, layer.nodes, layer.shape, choice, error, before, after
            )
        )

    def finish(self, plan: Plan) -> None:
        """Change both models; the rewritten one gets the plan into its metadata."""
        splice(self.reference, self._dense)
        splice(self._model, self._change)
        _record_plan(self._model.proto, plan)


def released_bytes(layer: Layer) -> int:
    """Return the bytes that disappear from the file when a layer's sites are replaced."""
    nodes = {id(site.node): site.node for site in layer.sites}
    for site in layer.sites:
        nodes |= {id(step): step for step in site.operand.steps}
    size = sum(node.ByteSize() for node in nodes.values())
    if layer.weight is None or layer.other_uses:
        return int(sum(site.node.ByteSize() for site in layer.sites))
    return int(size) + layer.weight.nbytes


def emitted_bytes(layer: Layer, chain: Chain, model: Model, target: str, activations: str) -> int:
    """Return the bytes that the nodes and tensors of a layer's chain add to the file."""
    names = model.names.trial()
    return lower_layer(layer, chain, model, names, find_target(target), activations).byte_size()


def follow_plan(
    model: Model, layers: Sequence[Layer], plan: Plan, progress: Progress = silent
) -> Iterator[Proposal]:
    """Factorize each layer as a plan says.

    Raises
    ------
    PlanError
        If the plan is for another model, names a layer the model has not, or asks to rewrite one
        that cannot be.
    """
    _check_plan(model, layers, plan)
    for position, layer in enumerate(layers):
        progress("factorizing", position, len(layers))
        choice = plan.layers.get(layer.name, Choice("keep", reason="not in the plan"))
        if choice.keeps:
            yield Proposal(layer, choice)
            continue
        yield _factorize(model, layer, choice, plan)
    progress("factorizing", len(layers), len(layers))


def _factorize(model: Model, layer: Layer, choice: Choice, plan: Plan) -> Proposal:
    weight = read_weight(model, layer)
    setting = Setting.for_layer(layer, choice.format, plan.seed)
    chain = find_method(choice.method).factorize(weight, choice.options, setting)
    before = released_bytes(layer)
    after = emitted_bytes(layer, chain, model, plan.target, choice.activations)
    if after >= before:
        warnings.warn(
            f"layer '{layer.name}': {choice} takes {after:,} bytes, the layer as it was "
            f"{before:,}; written because the plan says so",
            OnnxlrWarning,
            stacklevel=2,
        )
    return Proposal(layer, choice, chain)


def _check_plan(model: Model, layers: Sequence[Layer], plan: Plan) -> None:
    if plan.source_sha256 is not None and plan.source_sha256 != model.sha256:
        raise PlanError(
            f"the plan was made for a model with sha256 {plan.source_sha256[:12]}…, "
            f"{model.name} has {model.sha256[:12]}… (make a new plan, or take 'source' out of the "
            "plan to use it for any model that has its layers)"
        )
    by_name = {layer.name: layer for layer in layers}
    for name, choice in plan.layers.items():
        if name not in by_name:
            raise PlanError(
                f"the plan names layer '{name}', which {model.name} has not "
                "(onnxlr inspect lists its layers)"
            )
        if by_name[name].skip and not choice.keeps:
            raise PlanError(
                f"the plan asks for {choice.method} of layer '{name}', which cannot be rewritten: "
                f"{by_name[name].skip}"
            )


def _with_dense_weight(layer: Layer, values: np.ndarray, reference: Model) -> Splice:
    """Return the change that gives a layer's nodes another dense weight, as each takes it."""
    change = Splice(released=released_by(layer))
    tensors: dict[tuple[object, ...], onnx.TensorProto] = {}
    for site in layer.sites:
        dense = np.ascontiguousarray(site.arranged(values), dtype=layer.dtype)
        key = (site.layout, site.swapped, site.transposed, dense.shape)
        group = []
        if key not in tensors:
            name = reference.names.new(f"{layer.name}.approximation")
            tensors[key] = make_tensor(dense, name)
            if layer.in_function:
                group = as_constants([tensors[key]])
        node = onnx.NodeProto()
        node.CopyFrom(site.node)
        node.input[0 if site.layout in (Layout.SECOND_LAST, Layout.ROWS) else 1] = tensors[key].name
        change.nodes[(site.scope, site.index)] = [*group, node]
    if not layer.in_function:
        change.initializers.extend(tensors.values())
    return change


def _record_plan(model: onnx.ModelProto, plan: Plan) -> None:
    taken: Mapping[str, str] = {entry.key: entry.value for entry in model.metadata_props}
    key, number = METADATA_KEY, 1
    while key in taken:  # a model that is rewritten again keeps the plans before
        number += 1
        key = f"{METADATA_KEY}.{number}"
    model.metadata_props.add(key=key, value=plan.dumps(indent=None))
