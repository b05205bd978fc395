"""Damaged files of arrays beside a model that is what it was: data, importance, statistics."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import onnxlr
from onnxlr.calibration import load_feeds, signature
from onnxlr.calibration.importance import load_importance
from onnxlr.calibration.random_inputs import random_feeds
from onnxlr.layers import find_layers, layer_keys, read_weight
from onnxlr.metrics import unfold_inputs
from onnxlr.model import open_model
from onnxlr.statistics import LayerStatistics, Moments, Statistics
from tools.fuzz_fields import change_bytes, change_values

__all__ = ["damage_arrays", "damage_statistics"]

Damaged = tuple[str, Callable[[], object]]
"""What was damaged, and what is to be done with it."""

_NUMBERS = (0.0, -1.0, 1e308, 1e-320, float("nan"), float("inf"))


def damage_arrays(model: Path, number: int, random: Random) -> Damaged:
    """Change bytes of data, or of importance."""
    opened = open_model(model)
    file = model.with_name("data.npz")
    kind = random.choice(("data", "importance"))
    if kind == "data":
        arrays = _feeds(opened, number)
    else:
        weights = [layer.weight for layer in find_layers(opened) if layer.weight and layer.sites]
        arrays = {weight.name: opened.read(weight.tensor) ** 2 for weight in weights}
    save = random.choice((np.savez, np.savez_compressed))
    with file.open("wb") as stream:
        save(stream, **{str(k): v for k, v in arrays.items() if "/" not in k})
    file.write_bytes(change_bytes(file.read_bytes(), random))
    if kind == "importance":
        return kind, lambda: load_importance(file, find_layers(opened))
    return kind, lambda: list(load_feeds(file, signature(opened)))


def _feeds(opened: onnxlr.Model, seed: int) -> dict[str, Any]:
    try:
        return dict(next(random_feeds(opened, seed))[1][0])
    except onnxlr.DataError:  # an input that is no tensor
        return {"x": np.zeros((2, 16), np.float32)}


def damage_statistics(model: Path, number: int, random: Random) -> Damaged:
    """Change statistics: bytes of the file, JSON values, or arrays, whose hashes are right."""
    opened = open_model(model)
    layers, file = find_layers(opened), model.with_name("statistics.npz")
    keys, generator = layer_keys(opened, layers), np.random.default_rng(number)
    known = {}
    for layer in layers:
        if layer.name in keys:
            parts = unfold_inputs(read_weight(opened, layer), layer.groups)
            sizes = (len(layer.sites), layer.groups or 1, parts.shape[1])
            kind = random.randrange(4) if random.random() < 0.3 else 4
            known[keys[layer.name]] = LayerStatistics(_moments(sizes, kind, generator, random))
    Statistics(opened.sha256, "data", known, {}, ()).save(file)
    if random.random() < 0.5:
        file.write_bytes(change_bytes(file.read_bytes(), random))
    elif random.random() < 0.5:
        _change_json(file, random)
    act = partial(onnxlr.plan, model, isolate=False, method="svd", rank=2, statistics=file)
    return "statistics", act


def _moments(
    sizes: tuple[int, int, int], kind: int, generator: np.random.Generator, random: Random
) -> Moments:
    """Return moments of a layer; of kind 0 of other sizes, of 1 to 3 with numbers that lie."""
    if kind == 0:
        sizes = (random.choice((1, sizes[0])), random.choice((1, 2)), random.choice((1, 3, 8)))
    sites, groups, inputs = sizes
    rows = generator.standard_normal((groups, 2 * inputs, inputs))
    covariance, ones = rows.swapaxes(1, 2) @ rows, np.ones(sites)
    means, counts = np.zeros(sizes), np.full(sites, 2 * inputs)
    if kind == 1:
        covariance.flat[random.randrange(covariance.size)] = random.choice(_NUMBERS)
    elif kind == 2:
        means.flat[random.randrange(means.size)] = random.choice(_NUMBERS)
    elif kind == 3:
        counts[0] = random.choice((-1, 0, 2**62))
        covariance = covariance - random.choice((1, 10)) * inputs * np.eye(inputs)
    return Moments(counts, means, covariance, -ones, ones, -ones, ones)


def _change_json(file: Path, random: Random) -> None:
    with zipfile.ZipFile(file) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    values = json.loads(files["statistics.json"])
    files["statistics.json"] = json.dumps(change_values(values, random)).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    file.write_bytes(stream.getvalue())
