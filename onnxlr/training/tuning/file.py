"""Tunes a rewritten file: trains, writes the values back, judges and proves what results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxlr.calibration import label_of, signature
from onnxlr.calibration.data import Batches
from onnxlr.errors import (
    ModelError,
    NothingGainedError,
    UsageError,
    VerificationError,
)
from onnxlr.model import Model
from onnxlr.model.saving import copy_model, staging, write_model
from onnxlr.plan import record_training
from onnxlr.scratch import scratch
from onnxlr.training.constants import array_of
from onnxlr.training.data import Arrays, read_training_data
from onnxlr.training.device import usable_device
from onnxlr.training.files import TrainingFiles
from onnxlr.training.loop import Checkpoint, Outcome, train
from onnxlr.training.losses import float_outputs
from onnxlr.training.selection import current_values, selected
from onnxlr.training.torch_import import torch
from onnxlr.training.trainable import TrainableModel
from onnxlr.training.tuning.checking import check_mask, check_source
from onnxlr.training.tuning.file_runs import FileRuns, agreement
from onnxlr.training.tuning.request import Demands, TuneRequest, TuneResult
from onnxlr.training.tuning.teacher import Teacher, tensors_behind
from onnxlr.training.tuning.trainee import Tuning
from onnxlr.training.writing import write_constants
from onnxlr.verification import Check, Report, Subject, TernaryNodes, prove

__all__ = ["tune_file"]

_WHY_NO_EMISSION = "its weights were trained, so that no plan repeats them"


def tune_file(
    original: Model,
    rewritten: Model,
    reopen: Callable[[], Model],
    files: TrainingFiles,
    request: TuneRequest,
    demands: Demands,
) -> TuneResult:
    """Tune a rewritten model, and save it if it is better and holds; see `onnxlr.tune`.

    Parameters
    ----------
    original, rewritten
        The opened models, of the same inputs and outputs.
    reopen
        Opens the rewritten model anew, to be changed and written.
    files
        What is written.
    request, demands
        What is asked.
    """
    demands.tolerance.check_outputs([value.name for value in original.proto.graph.output])
    return _Work(original, rewritten, files, request, demands).carry_out(reopen)


class _Work:
    def __init__(
        self,
        original: Model,
        rewritten: Model,
        files: TrainingFiles,
        request: TuneRequest,
        demands: Demands,
    ) -> None:
        self.original, self.rewritten, self.files = original, rewritten, files
        self.request, self.demands = request, demands
        objective = request.objective()
        self.outputs = float_outputs(original, needed=objective.loss is None)
        specs = signature(original)
        check_mask(request.mask, [spec.name for spec in specs], original)
        check_source(rewritten, original)
        device = usable_device(request.device)
        hidden = tensors_behind(original, rewritten)
        teacher = Teacher(TrainableModel(original).to(device), self.outputs, hidden)
        self.student = TrainableModel(rewritten)
        self.selection = selected(self.student, rewritten, request.train, original)
        self.trainee = Tuning(self.student.to(device), self.selection, teacher, objective)
        data = read_training_data(
            request.data,
            specs,
            request.batch,
            request.holdout,
            request.schedule.seed,
            beside=objective.loss is not None,
        )
        self._compare_shapes(teacher, data.held[0])
        self.checkpoint = Checkpoint(files.checkpoint, self._meaning(data.sha256))
        most, asked = request.schedule.most, objective.distill or objective.hidden
        # Outputs that are looked at once are not worth being found beforehand.
        again = most is None or most >= 2 * data.batches
        again = again and bool(asked or objective.loss is None)
        self.data = teacher.remember(data, objective.hidden > 0) if again else data

    def _compare_shapes(self, teacher: Teacher, batch: Arrays) -> None:
        """Refuse outputs of other shapes; hidden tensors of other shapes are not learnt from."""
        with torch.no_grad():
            ours = self.student(batch, watch=teacher.hidden)
            theirs = teacher.model(batch, watch=teacher.hidden)
        for name in self.outputs:
            if ours[name].shape != theirs[name].shape:
                raise ModelError(
                    f"{self.rewritten.name}: output '{name}' has shape {list(ours[name].shape)}, "
                    f"that of {self.original.name} has {list(theirs[name].shape)} on the same data"
                )
        teacher.hidden = tuple(n for n in teacher.hidden if ours[n].shape == theirs[n].shape)
        objective = self.trainee.objective
        if objective.loss is None and not objective.distill and not teacher.hidden:
            raise UsageError(
                f"{self.rewritten.name} has no tensors behind rewritten layers that the original "
                "has too, and nothing else is to be learnt from: give distill a weight above 0"
            )

    def _meaning(self, data: str) -> dict[str, str]:
        """Return what a checkpoint is of: all but how long and how fast it is trained."""
        asked = self.request
        objective = asked.objective()
        return {
            "the original": self.original.sha256,
            "the rewritten model": self.rewritten.sha256,
            "data": data,
            "train": asked.train,
            "measure": asked.measure,
            "distill": f"{objective.distill:g}",
            "hidden": f"{objective.hidden:g}",
            "mask": str(asked.mask),
            "batch": str(asked.batch),
            "seed": str(asked.schedule.seed),
        }

    def carry_out(self, reopen: Callable[[], Model]) -> TuneResult:
        """Train, write, judge, prove and save."""
        with scratch("onnxlr-tune-") as folder:
            (folder / "runs").mkdir()
            inputs = [spec.name for spec in signature(self.original)]
            runs = FileRuns(folder / "runs", self.data.held, inputs, self.demands.isolate)
            came = _file_of(self.rewritten, folder, "rewritten.onnx")
            check = self._agreement(self.rewritten, came, runs)
            if not check.passed:
                raise ModelError(
                    f"{self.rewritten.name} cannot be trained: ONNX Runtime and torch do not agree "
                    f"on it ({check.failures[0]})"
                )
            before = self._judged(came, runs)
            outcome = train(
                self.trainee,
                self.data,
                self.request.schedule,
                self.checkpoint,
                self.demands.progress,
            )
            result = self._result(outcome, before)
            if not outcome.improved:
                raise self._nothing_gained(result)
            result = self._deliver(reopen(), result, runs, folder)
        self.files.forget()
        return result

    def _deliver(
        self, model: Model, result: TuneResult, runs: FileRuns, folder: Path
    ) -> TuneResult:
        """Write what was trained into a model, and hand the file out if it is better and holds."""
        write_constants(model, current_values(self.student, self.selection))
        record_training(model.proto, "tune", self._recorded(result))
        with staging(self.files.output) as place:
            write_model(model, place, self.files.output.name)
            staged = place / self.files.output.name
            result = replace(result, after=self._judged(staged, runs))
            if not result.after < result.before:
                staged.unlink()
                raise self._nothing_gained(result)
            report = self._prove(model, staged, runs, folder)
            written = self.files.output if report.passed or self.demands.keep else None
            result = replace(result, output=written, report=report)
            if written is None:
                staged.unlink()
        if not report.passed:
            raise VerificationError(f"{self.files.output}: {report.failures[0]}", report, result)
        return result

    def _prove(self, model: Model, staged: Path, runs: FileRuns, folder: Path) -> Report:
        subject = Subject(
            self.original,
            _file_of(self.original, folder, "original.onnx"),
            staged,
            None,
            missing=_WHY_NO_EMISSION,
            ternary=TernaryNodes.of(model.proto),
        )
        demands = self.demands
        feeds = Batches(
            ({name: batch[name] for name in runs.inputs} for batch in runs.held),
            f"held-out inputs of {label_of(self.request.data)}",
        )
        report = prove(
            subject,
            demands.tolerance,
            feeds,
            self.request.schedule.seed,
            demands.isolate,
            demands.progress,
        )
        check = self._agreement(model, staged, runs)
        return replace(report, checks=(check, *report.checks))

    def _agreement(self, model: Model, file: Path, runs: FileRuns) -> Check:
        with torch.no_grad():
            found = (self.student(batch) for batch in runs.held)
            ours = ({name: array_of(one[name]) for name in self.outputs} for one in found)
            return agreement(ours, model, file, runs, self.outputs)

    def _judged(self, file: Path, runs: FileRuns) -> float:
        with torch.no_grad():
            return self.trainee.judged(runs.held, runs.outputs(file, file.name))

    def _result(self, outcome: Outcome, before: float) -> TuneResult:
        return TuneResult(
            output=None,
            train=self.request.train,
            trained=self.selection.summary,
            data=self.data.description,
            measure=self.request.measure,
            before=before,
            after=before,
            steps=outcome.best.step,
            seconds=outcome.course[-1].seconds,
            course=outcome.course,
            stopped=outcome.stopped,
            resumed=outcome.resumed,
            report=None,
        )

    def _recorded(self, result: TuneResult) -> dict[str, Any]:
        """Return what the file's metadata says; the same run gives the same bytes."""
        objective = self.request.objective()
        judged = [one.judged for one in result.course]
        return {
            "original": self.original.sha256,
            "train": result.train,
            "data": result.data,
            "measure": result.measure,
            "distill": objective.distill,
            "hidden": objective.hidden,
            "steps": result.steps,
            "rate": self.request.schedule.rate,
            "batch": self.request.batch,
            "seed": self.request.schedule.seed,
            "held_out": {"before": judged[0], "after": min(judged)},
        }

    def _nothing_gained(self, result: TuneResult) -> NothingGainedError:
        self.files.forget()  # it leads to the same end
        return NothingGainedError(
            f"{self.files.output}: nothing was written, because nothing was gained on held-out "
            f"data: {result.measure} {result.after:.4g}, that of the rewritten model as it came "
            f"{result.before:.4g} (try more steps, a lower rate or more data)",
            result,
        )


def _file_of(model: Model, folder: Path, name: str) -> Path:
    """Return a model's file; one that has none is written."""
    if model.path is not None:
        return model.path
    copy_model(model, folder, name)
    return folder / name
