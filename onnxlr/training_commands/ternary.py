"""`onnxlr train-ternary`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from onnxlr import training_verbs
from onnxlr.choices import Activations, DataName, Device, GroupSize, TargetName
from onnxlr.console import at_work, out, print_json
from onnxlr.flags import (
    WHOLE,
    Json,
    Patterns,
    Quiet,
    Seed,
    Switch,
    Threads,
    given,
    with_method_flags,
)
from onnxlr.reporting import to_document
from onnxlr.reporting.ternary_training import print_ternary_training
from onnxlr.training_commands.interruption import telling_what_is_left
from onnxlr.verification import DEFAULT_TOLERANCE

__all__ = ["train_ternary"]


@with_method_flags
def train_ternary(
    model: Path,
    /,
    *,
    data: DataName,
    output: Annotated[Path | None, Parameter(["--output", "-o"])] = None,
    method: Annotated[
        Literal["ternary_svd", "ternary"], Parameter(help="ternary_svd or ternary.")
    ] = "ternary_svd",
    flags: Any = None,
    loss: str | None = None,
    train: Literal["layers", "scales", "all"] = "all",
    layers: Patterns = (),
    skip: Patterns = (),
    eta: float = 3.0,
    every: Annotated[int, WHOLE] = 50,
    renewing: float = 0.5,
    feedback: float | None = None,
    scales: Literal["solved", "trained"] = "solved",
    group_size: Annotated[GroupSize | None, WHOLE] = None,
    activations: Activations | None = None,
    target: TargetName = "onnx",
    steps: Annotated[int | None, WHOLE] = None,
    minutes: float | None = None,
    rate: float | None = None,
    batch: Annotated[int, WHOLE] = 32,
    holdout: float | DataName = 0.1,
    patience: Annotated[int, WHOLE] = 4,
    dense: Path | None = None,
    checkpoint: Path | None = None,
    device: Device = "cpu",
    bfloat16: Switch = False,
    tolerance: str = DEFAULT_TOLERANCE,
    seed: Seed = 0,
    quiet: Quiet = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train a model whose layers are ternary whenever it runs, and write it with them.

    Needs torch: pip install 'onnxlr[train]'. Interrupted, it goes on from its checkpoint when it is
    started again with the same arguments.

    For example:

        onnxlr train-ternary model.onnx --data train.npz --tolerance-spectral 0.07
        onnxlr train-ternary model.onnx --data train.npz --method ternary --terms 2

    Parameters
    ----------
    model
        The ONNX model; it is never modified.
    data
        Inputs, and labels beside them where the loss takes some: .npz, .npy, a folder of them, or
        module:function.
    output
        File to write; MODEL.onnxlr.onnx beside the model if not given.
    loss
        module:function of outputs and batch, both torch tensors by name, that returns one number;
        the distance to the model's own outputs if not given.
    train
        layers (those that become ternary), scales (also biases and normalisations) or all (also
        other weights).
    layers
        Shell pattern of layers to make ternary, as inspect names them; all if not given.
        Repeatable.
    skip
        Shell pattern of layers that keep their weights. Repeatable.
    eta
        Of ternary_svd: how many times stronger than the best term of what is left a term must be to
        survive.
    every
        Of ternary_svd: steps after which a layer's terms are renewed, in which layers take turns;
        in others only their strengths are.
    scales
        Of ternary: solved for least squared error, or trained.
    group_size
        Of ternary: inputs that share a scale, 0 (all), 32, 64 or 128; 128 if not given.
    activations
        As in rewrite.
    target
        As in rewrite.
    steps
        Of the optimizer; 1000 if neither these nor minutes are given.
    minutes
        Minutes at most.
    rate
        Largest learning rate; 5e-5 for ternary_svd and 3e-4 for ternary if not given.
    batch
        Most samples of a batch.
    holdout
        Fraction of the data to judge by; or data of its own.
    patience
        Judgements (ten are made on the way) without a gain that end training; 0 for never.
    dense
        File for the trained model with dense weights, which the result is proved against.
    checkpoint
        File to go on from, written at each judgement; OUTPUT.checkpoint if not given.
    device
        Where torch computes: cpu, cuda.
    bfloat16
        Let products take bfloat16 numbers in training.
    tolerance
        What outputs must hold against those of the dense weights, as in rewrite.
    seed
        Seed of everything random.
    as_json
        Print JSON (schema onnxlr.ternary_training/1) instead of tables.
    """
    written = model.with_suffix(".onnxlr.onnx") if output is None else output
    with telling_what_is_left(written, checkpoint), at_work(quiet, threads) as progress:
        found = training_verbs.train_ternary(
            model,
            data,
            output,
            method=method,
            loss=loss,
            train=train,
            layers=layers,
            skip=skip,
            eta=eta,
            every=every,
            renewing=renewing,
            feedback=feedback,
            scales=scales,
            group_size=group_size,
            activations=activations,
            target=target,
            steps=steps,
            minutes=minutes,
            rate=rate,
            batch=batch,
            holdout=holdout,
            patience=patience or None,
            dense=dense,
            checkpoint=checkpoint,
            device=device,
            bfloat16=bfloat16,
            tolerance=tolerance,
            seed=seed,
            progress=progress,
            **given(flags),
        )
    if as_json:
        print_json(to_document("ternary_training", found))
    else:
        print_ternary_training(out, found)
