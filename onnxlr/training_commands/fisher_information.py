"""`onnxlr fisher`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from onnxlr import training_verbs
from onnxlr.choices import DataName, Device, Loss
from onnxlr.console import at_work, out, print_json
from onnxlr.flags import WHOLE, Json, Patterns, Quiet, Seed, Threads
from onnxlr.reporting import shown, to_document
from onnxlr.reporting.fisher import print_fisher, summarise_fisher

__all__ = ["fisher"]


def fisher(
    model: Path,
    /,
    *,
    calibration: DataName,
    output: Annotated[Path, Parameter(["--output", "-o"])],
    loss: Loss = "distill",
    samples: Annotated[int | None, WHOLE] = None,
    draws: Annotated[int | None, WHOLE] = None,
    mask: str | None = None,
    kronecker: bool = True,
    layers: Patterns = (),
    skip: Patterns = (),
    device: Device = "cpu",
    seed: Seed = 0,
    quiet: Quiet = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find how much each entry of the weights matters, by squared gradients of single samples.

    Needs torch: pip install 'onnxlr[train]'.

    For example:

        onnxlr fisher model.onnx --calibration train.npz -o fisher.npz
        onnxlr fisher model.onnx --calibration labelled.npz --loss losses:nll -o f.npz
        onnxlr rewrite model.onnx --ratio 0.5 --metric kfac --importance fisher.npz

    Parameters
    ----------
    model
        The ONNX model.
    calibration
        Inputs like those the model will meet: .npz, .npy, a folder of them, or module:function;
        labels beside them, where the loss takes some.
    output
        File to write to (.npz), for the --importance of plan and rewrite.
    loss
        distill: how far the outputs move, no labels needed; or module:function of outputs and
        batch, both torch tensors by name.
    samples
        Most samples to take; all if not given.
    draws
        Of noise for each sample (2, if not given), or calls of a loss (1) that draws labels.
    mask
        Input that is 0 where positions do not count, such as attention_mask.
    kronecker
        Find Kronecker factors, too, which metric kfac needs.
    layers
        Shell pattern of layers to look at, as inspect names them; all if not given. Repeatable.
    skip
        Shell pattern of layers to leave out. Repeatable.
    device
        Where torch computes: cpu, cuda.
    seed
        Seed of the noise.
    as_json
        Print JSON (schema onnxlr.fisher/1) instead of tables.
    """
    with at_work(quiet, threads) as progress:
        found = training_verbs.fisher(
            model,
            calibration,
            output,
            loss=loss,
            samples=samples,
            draws=draws,
            mask=mask,
            kronecker=kronecker,
            layers=layers,
            skip=skip,
            device=device,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json(to_document("fisher", summarise_fisher(found)))
    else:
        print_fisher(out, found)
        out.print(f"[green]Wrote[/] {shown(str(output))}")
