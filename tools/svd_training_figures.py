"""Trains the network of `tools/reproduce_svd_training.py` in one way after the other."""

from __future__ import annotations

import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import onnxlr
from onnxlr.errors import OnnxlrError
from onnxlr.layers import find_layers
from onnxlr.planning import Selection
from onnxlr.training.data import TrainingData
from onnxlr.training.judging import mean_over
from onnxlr.training.loop import Schedule, train
from onnxlr.training.selection import selected
from onnxlr.training.svd.request import Cut, SvdRequest
from onnxlr.training.svd.trainee import Goal, Penalties, SvdTrainee
from onnxlr.training.svd.training import SvdTraining
from onnxlr.training.trainable import TrainableModel
from tools.svd_training_rows import ORIGINAL, Lengths, Outcome, Way
from tools.train_demo_model import augment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tools.train_demo_model import Split

__all__ = ["LAYERS", "RATE", "Experiment", "Images", "multiply_adds"]

LAYERS = ("stage*.conv*",)
"""What is factored: all 3×3 convolutions but the first."""

RATE = 1e-3
"""Largest learning rate of Adam, in all stages."""

_HELD = 1000
"""Training images that are held out, to choose the best state by."""

_ACROSS = 500
"""Images that are run at once where nothing is trained."""

_TRIES = 4
"""Ratios of parameters that are tried until the multiply-adds of a decomposition fit."""

_NEAR = 0.9
"""Part of a budget that is near enough."""


class Images(TrainingData):
    """Training images that are mirrored and shifted anew each time."""

    def epoch(self, generator: np.random.Generator) -> Iterator[Mapping[str, Any]]:
        """Yield all batches once, in an order that is drawn."""
        torch.manual_seed(int(generator.integers(1 << 31)))
        for batch in super().epoch(generator):
            yield {**batch, "image": augment(torch.from_numpy(batch["image"])).numpy()}


def _batches(split: Split, places: Any) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"image": split.image[part], "label": split.label[part]}
        for part in np.split(places, range(_ACROSS, len(places), _ACROSS))
    )


def cross_entropy(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """Return the loss, one number."""
    return torch.nn.functional.cross_entropy(outputs["logits"].float(), batch["label"])


def share_correct(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """Return the share of images whose class is named."""
    return (outputs["logits"].argmax(1) == batch["label"]).float().mean()


def multiply_adds(model: TrainableModel) -> int:
    """Return the multiply-adds of one image: of convolutions and products of matrices."""
    calls = [call for call in model.calls if call.operator in ("Conv", "Gemm", "MatMul")]
    watched = [name for call in calls for name in (call.inputs[0], call.outputs[0])]
    feeds = {"image": np.zeros((1, 1, 28, 28), np.float32)}
    inner = [name for name in watched if name not in feeds]
    model.eval()
    with torch.no_grad():
        values = {**model(feeds, watch=inner), **feeds}
    total = 0
    for call in calls:
        size = int(np.prod(values[call.outputs[0]].shape))
        if call.operator == "Conv":
            total += size * int(np.prod(model.constant(call.inputs[1]).shape[1:]))
        else:
            total += size * int(values[call.inputs[0]].shape[-1])
    return total


@dataclass
class Experiment:
    """A trained network, and what it is judged by.

    Attributes
    ----------
    file
        The network.
    training
        Images to train on, some of them held out.
    testing
        Images that nothing is chosen on.
    lengths
        How much is trained.
    seed
        Of everything random.
    bfloat16
        Whether products take bfloat16 numbers while training.
    """

    file: Path
    training: Images
    testing: Sequence[Mapping[str, Any]]
    lengths: Lengths
    seed: int
    bfloat16: bool = False

    @classmethod
    def of(
        cls, file: Path, splits: tuple[Split, Split], lengths: Lengths, seed: int, bfloat16: bool
    ) -> Experiment:
        """Return an experiment on both splits of the data set."""
        learn, test = splits
        places = np.random.default_rng(seed).permutation(len(learn.label))
        held, rest = np.split(places, [min(_HELD, len(places) // 2)])
        images = Images(
            ({"image": learn.image[rest], "label": learn.label[rest]},),
            lengths.batch,
            _batches(learn, held),
            f"{len(rest)} images",
        )
        testing = _batches(test, np.arange(len(test.label)))
        return cls(file, images, testing, lengths, seed, bfloat16)

    def original(self) -> Outcome:
        """Train the network on as long as the others."""
        model, trainee = self._plain(self.file)
        row = self._sized(Outcome(ORIGINAL, 1.0), model)
        return self._tuned(row, trainee, self.lengths.sparse + self.lengths.tune)

    def outcomes(self, way: Way) -> Iterator[Outcome]:
        """Yield the outcome of each budget."""
        if way.method is not None:
            for budget in self.lengths.budgets:
                yield self._decomposed(way, budget)
            return
        training = self._svd(way)
        seconds, steps = 0.0, self.lengths.sparse + self.lengths.tune
        if way.sparsity is not None:
            start, steps = time.process_time(), self.lengths.tune
            with self.precision():
                training.sparsify(self.training, self._schedule(self.lengths.sparse))
            seconds = time.process_time() - start
        full = {name: value.clone() for name, value in training.trainee().state().items()}
        for budget in self.lengths.budgets:
            training = self._svd(way)
            training.trainee().restore(full)
            training.prune(Cut(ratio=budget))
            row = Outcome(way.name, budget, energy_loss=training.energy_loss)
            row = self._counted(row, training)
            yield self._tuned(row, training.trainee(), steps, seconds)

    def _svd(self, way: Way) -> SvdTraining:
        penalties = Penalties(1.0, way.weight, way.sparsity or "hoyer")
        request = SvdRequest(way.form or "channel", penalties, selection=Selection(LAYERS))
        return SvdTraining(onnxlr.open(self.file), request, Goal(cross_entropy))

    def _counted(self, row: Outcome, training: SvdTraining) -> Outcome:
        """Return a row with the operations and parameters of the network with factors."""
        own = TrainableModel(onnxlr.open(self.file))
        operations, parameters = multiply_adds(own), _parameters(own)
        for layer in training.layers():
            operations += layer.multiply_adds[1] - layer.multiply_adds[0]
            parameters += layer.parameters[1] - layer.parameters[0]
        return replace(row, multiply_adds=operations, parameters=parameters)

    def _decomposed(self, way: Way, budget: float) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            try:
                file = self._within(way, budget, Path(folder))
            except OnnxlrError as error:
                return Outcome(way.name, budget, problem=str(error))
            model, trainee = self._plain(file)
            row = self._sized(Outcome(way.name, budget), model)
            return self._tuned(row, trainee, self.lengths.sparse + self.lengths.tune)

    def _within(self, way: Way, budget: float, folder: Path) -> Path:
        """Return the largest of a few decompositions whose multiply-adds are within the budget."""
        whole = multiply_adds(TrainableModel(onnxlr.open(self.file)))
        chosen = sum(
            (layer.multiply_adds() or (0,))[0]
            for layer in find_layers(onnxlr.open(self.file))
            if Selection(LAYERS).leaves(layer) is None
        )
        ratio, best = budget, (0.0, Path())
        for number in range(_TRIES):
            file = folder / f"{number}.onnx"
            onnxlr.rewrite(
                self.file,
                file,
                method=str(way.method),
                layers=LAYERS,
                ratio=ratio,
                seed=self.seed,
                tolerance="cosine>=-1",  # what that costs is measured
                isolate=False,
                **way.options,
            )
            found = (multiply_adds(TrainableModel(onnxlr.open(file))) - whole + chosen) / chosen
            if best[0] < found <= budget:
                best = (found, file)
            if _NEAR * budget <= found <= budget:
                break
            ratio *= (1 + _NEAR) / 2 * budget / found
        if not best[0]:
            raise onnxlr.UsageError(f"{way.name} has no size within {budget:g} of the operations")
        return best[1]

    def _plain(self, file: Path) -> tuple[TrainableModel, SvdTrainee]:
        """Return a model all of whose weights are trained as they are."""
        opened = onnxlr.open(file)
        model = TrainableModel(opened)
        return model, SvdTrainee(model, {}, selected(model, opened, "all"), Goal(cross_entropy))

    def _sized(self, row: Outcome, model: TrainableModel) -> Outcome:
        return replace(row, multiply_adds=multiply_adds(model), parameters=_parameters(model))

    def _tuned(self, row: Outcome, trainee: SvdTrainee, steps: int, before: float = 0.0) -> Outcome:
        """Judge, train what is there, and judge again."""
        cut, start = self._accuracy(trainee.model), time.process_time()
        with self.precision():
            train(trainee, self.training, self._schedule(steps, 1))
        seconds = before + time.process_time() - start
        tuned = self._accuracy(trainee.model)
        return replace(row, cut=cut, tuned=tuned, seconds=seconds)

    def _schedule(self, steps: int, stage: int = 0) -> Schedule:
        return Schedule(RATE, steps, judgements=4, patience=None, seed=self.seed + stage)

    def precision(self) -> Any:
        """Return the context that training runs in."""
        if not self.bfloat16:
            return nullcontext()
        # a cache would keep what weights were before the first step
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)

    def _accuracy(self, model: TrainableModel) -> float:
        return mean_over(model, self.testing, share_correct, "cpu")


def _parameters(model: TrainableModel) -> int:
    return sum(value.numel() for value in model.parameters() if value.numel() > 1)
