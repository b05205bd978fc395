"""`onnxlr train-svd`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from onnxlr import training_verbs
from onnxlr.choices import DataName, Device
from onnxlr.console import at_work, out, print_json
from onnxlr.flags import WHOLE, Json, Patterns, Quiet, Seed, Threads
from onnxlr.reporting import to_document
from onnxlr.reporting.svd_training import print_svd_training
from onnxlr.training_commands.interruption import telling_what_is_left
from onnxlr.verification import DEFAULT_TOLERANCE

__all__ = ["train_svd"]


def train_svd(
    model: Path,
    /,
    *,
    data: DataName,
    loss: str,
    output: Annotated[Path | None, Parameter(["--output", "-o"])] = None,
    score: str | None = None,
    layers: Patterns = (),
    skip: Patterns = (),
    form: Literal["channel", "input", "spatial", "spatial_swapped"] = "channel",
    sparsity: Literal["l1", "hoyer"] = "hoyer",
    sparsity_weight: float = 0.03,
    orthogonality_weight: float = 1.0,
    energy_loss: float | None = None,
    ratio: float | None = None,
    count: Literal["multiply-adds", "parameters"] = "multiply-adds",
    sparse_part: float = 0.5,
    steps: Annotated[int | None, WHOLE] = None,
    minutes: float | None = None,
    rate: float = 1e-3,
    batch: Annotated[int, WHOLE] = 32,
    holdout: float | DataName = 0.1,
    patience: Annotated[int, WHOLE] = 0,
    dense: Path | None = None,
    checkpoint: Path | None = None,
    device: Device = "cpu",
    tolerance: str = DEFAULT_TOLERANCE,
    seed: Seed = 0,
    quiet: Quiet = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train weights as factors, make singular values few, cut ranks, and train on.

    Needs torch: pip install 'onnxlr[train]'. Interrupted, it goes on from its checkpoints when it
    is started again with the same arguments.

    For example:

        onnxlr train-svd model.onnx --data labelled.npz --loss losses:nll --ratio 0.4
        onnxlr train-svd model.onnx --data data:batches --loss losses:nll --minutes 30

    Parameters
    ----------
    model
        The ONNX model; it is never modified.
    data
        Inputs, and labels beside them: .npz, .npy, a folder of them, or module:function.
    loss
        module:function of outputs and batch, both torch tensors by name, that returns one number.
    output
        File to write; MODEL.onnxlr.onnx beside the model if not given.
    score
        module:function like the loss, but larger is better: what held-out data is judged by; the
        loss if not given.
    layers
        Shell pattern of layers to factor, as inspect names them; all if not given. Repeatable.
    skip
        Shell pattern of layers that keep their weights, which are trained too. Repeatable.
    form
        How a convolution is split in two: channel, input, spatial, spatial_swapped; one that has
        not got the form takes channel.
    sparsity
        What makes singular values few: l1, or hoyer, which knows no scale.
    sparsity_weight
        Weight of that, added up over layers.
    orthogonality_weight
        Weight of what keeps singular vectors orthonormal.
    energy_loss
        Share of its squared singular values that each layer may lose; 0.01 if no budget is given.
    ratio
        What all factored layers together may cost, as a fraction of what they cost as they were.
    count
        What costs: multiply-adds or parameters. A layer whose rank does not cost less stays dense.
    sparse_part
        Part of the steps or minutes before ranks are cut; 0 is truncated SVD with fine-tuning.
    steps
        Of the optimizer, in both stages together; 1000 if neither these nor minutes are given.
    minutes
        Time for both stages together.
    rate
        Largest learning rate.
    batch
        Most samples of a batch.
    holdout
        Fraction of the data to judge by; or data of its own.
    patience
        Judgements (ten are made on the way) without a gain that end the second stage; 0 for never.
    dense
        File for the trained model with dense weights, which the result is proved against.
    checkpoint
        What the names of the stages' checkpoints begin with; OUTPUT.checkpoint if not given.
    device
        Where torch computes: cpu, cuda.
    tolerance
        What outputs must hold against those of the dense weights, as in rewrite.
    seed
        Seed of everything random.
    as_json
        Print JSON (schema onnxlr.svd_training/1) instead of tables.
    """
    written = model.with_suffix(".onnxlr.onnx") if output is None else output
    with telling_what_is_left(written, checkpoint), at_work(quiet, threads) as progress:
        found = training_verbs.train_svd(
            model,
            data,
            loss,
            output,
            score=score,
            layers=layers,
            skip=skip,
            form=form,
            sparsity=sparsity,
            sparsity_weight=sparsity_weight,
            orthogonality_weight=orthogonality_weight,
            energy_loss=energy_loss,
            ratio=ratio,
            count=count,
            sparse_part=sparse_part,
            steps=steps,
            minutes=minutes,
            rate=rate,
            batch=batch,
            holdout=holdout,
            patience=patience or None,
            dense=dense,
            checkpoint=checkpoint,
            device=device,
            tolerance=tolerance,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json(to_document("svd_training", found))
    else:
        print_svd_training(out, found)
