"""`onnxlr bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from onnxlr import benching
from onnxlr.choices import DataName
from onnxlr.console import at_work, out, print_json
from onnxlr.flags import WHOLE, Json, Quiet, Seed
from onnxlr.reporting import to_document
from onnxlr.reporting.bench import print_bench

__all__ = ["bench"]


def bench(
    model: Path,
    /,
    *others: Path,
    data: DataName | None = None,
    threads: Annotated[int, WHOLE] = 1,
    rounds: Annotated[int | None, WHOLE] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Time models in turn on the same inputs and threads, and tell their size, load and memory.

    The machine's speed drifts, so that models run one after the other on each input, round after
    round, in three processes; ratios are of the same round. Giving a model twice shows the noise.

    For example:

        onnxlr bench model.onnx model.onnxlr.onnx --data test.npz
        onnxlr bench model.onnx model.onnx small.onnx --threads 4 --rounds 100
        onnxlr bench *.onnx --json > bench.json

    Parameters
    ----------
    model
        The ONNX model that the others are compared with.
    others
        Models that take the same inputs.
    data
        Inputs, of which the first four runs are taken: .npz, .npy, a folder of them, or
        module:function; random if not given.
    threads
        Of each model. One is timed by its own CPU time, several by the wall.
    rounds
        Rounds that count; as many as fit into some seconds if not given.
    seed
        Seed of random inputs.
    as_json
        Print JSON (schema onnxlr.bench/1) instead of a table.
    """
    with at_work(quiet) as progress:
        found = benching.bench(
            model,
            *others,
            data=data,
            threads=threads,
            rounds=rounds,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json(to_document("bench", found))
    else:
        print_bench(out, found)
