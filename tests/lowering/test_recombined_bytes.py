"""What weights made of atoms take in a file, beside the bytes that their stages state."""

from __future__ import annotations

import numpy as np
from onnx import helper

from onnxlr.stages import recombined
from tests.lowering.modes import normal
from tests.lowering.written import constant_bytes, optimised, written
from tests.onelayer import model_of
from tests.sums_of_atoms import sums_of


def test_the_file_is_what_is_stored():
    """Of layers of 64 thousand weights and more, nodes and names are less than a twentieth."""
    for form in (
        {"width": 3, "size": 512, "kind": "int8"},
        {"width": 4, "size": 256, "kind": "float16"},
        {"width": 64, "size": 56, "entries": None, "bits": 4, "kind": "int8"},
        {"width": 1, "size": 1, "entries": None, "bits": 4},
        {"width": 64, "size": 14, "entries": None, "bits": 16, "kind": "float16"},
    ):
        for each_run in (False, True):
            atoms = _random_atoms((256, 256), **form)
            x = normal(1, 2, 256)
            name = "/encoder/layer.10/attention/self/query/MatMul"
            node = helper.make_node("MatMul", ["x", "w"], ["y"], name=name)
            model = model_of([node], {"x": x}, ["y"], {"w": normal(2, 256, 256)})
            bare = model.ByteSize() - 4 * 256 * 256
            changed = written(model, [recombined(atoms, None, (), each_run)])
            added = changed.ByteSize() - bare
            assert atoms.nbytes < added < 1.05 * atoms.nbytes, (form, each_run)
            held, floats = constant_bytes(optimised(changed)), 4 * 256 * 256
            assert held < floats / 4 if each_run else held == floats, (form, each_run)


def _random_atoms(dims, **form):
    """Return atoms of a large weight, whose numbers nobody asks for."""
    small = sums_of((form["width"], 1), **form).atoms
    generator = np.random.default_rng(0)
    shape = (-(-dims[0] // form["width"]), dims[1])
    size, kept = form["size"], small.coefficients
    if kept.indices is None:
        values = generator.integers(-7, 8, (*shape, size)).astype(kept.values.dtype)
        values[generator.random(values.shape) < 0.5] = 0
        coefficients = type(kept)(size, None, values, kept.bits)
    else:
        coefficients = type(kept)(size, generator.integers(0, size, (*shape, 1)), None)
    scales = np.ones(dims[1], np.float32)
    return type(small)(dims, small.dictionary, coefficients, scales)
