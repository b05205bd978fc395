"""Fisher information of a model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxlr.calibration import DataSource
from onnxlr.model import ModelSource
from onnxlr.planning import Selection
from onnxlr.progress import Progress, silent
from onnxlr.training_verbs.sources import opened, read_from

if TYPE_CHECKING:
    from onnxlr.training.fisher.result import FisherInformation

__all__ = ["fisher"]


def fisher(
    model: ModelSource,
    calibration: DataSource,
    output: str | Path | None = None,
    *,
    loss: str = "distill",
    samples: int | None = None,
    draws: int | None = None,
    mask: str | None = None,
    kronecker: bool = True,
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
) -> FisherInformation:
    """Find the Fisher information of a model's weights, sample by sample.

    Parameters
    ----------
    model
        The model.
    calibration
        Inputs like those it will meet, see `load_feeds`; arrays beside them (labels) are for the
        loss. They are cut into single samples where the model leaves their number open.
    output
        File to write it to (`.npz`), for `importance` of `rewrite`; none is written if not given.
    loss
        `distill`: how far outputs move, relative to their length; no labels are needed.
        `module:function`: a loss of outputs by name and the batch, both torch tensors by name, of
        one sample.
    samples
        Most samples to take; all if not given.
    draws
        Of noise for each sample (2, if not given), or calls of a loss (1) that draws labels from
        the outputs.
    mask
        Tensor that is 0 where positions do not count, such as `attention_mask`: neither in the
        outputs that have its leading dimensions, nor among the rows of Kronecker factors.
    kronecker
        Find Kronecker factors, too, which the metric `kfac` needs.
    layers, skip
        Shell patterns of layers to look at (all, if none) and to leave out.
    device
        Where torch computes: `cpu`, `cuda`.
    seed
        Of the noise.
    progress
        Called before each sample.

    Returns
    -------
    FisherInformation
        Its `arrays` can be given as `importance`.

    Raises
    ------
    MissingExtraError
        If torch is not installed.
    UsageError, DataError, OutputError
        If an argument cannot be followed, or outputs or gradients are NaN or infinite.
    ModelError
        If the model cannot be handled, or has nodes that cannot be run in torch.
    TrainingError
        If the loss fails, is NaN, or depends on no weight.
    """
    from onnxlr.training.files import TrainingFiles
    from onnxlr.training.fisher.finding import Question, find_fisher

    source = opened(model)
    if output is not None:
        TrainingFiles(Path(output), None, ()).check([source], read_from(calibration))
    selection = Selection(layers, skip)
    asked = Question(loss, samples, draws, mask, kronecker, selection, device, seed)
    found = find_fisher(source, calibration, asked, progress)
    if output is not None:
        found.save(output)
    return found
