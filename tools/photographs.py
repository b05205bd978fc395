"""Photographs out of the wheels of scikit-image and scikit-learn, as open_nsfw takes them.

What is measured on shows other things than what is calibrated with. Decoding needs Pillow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tools.fetch_models import MATERIALS, fetch, load_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    Images = npt.NDArray[np.float32]

__all__ = ["INPUT", "calibration_photographs", "held_out_photographs", "views_of"]

INPUT = "input:0"
"""What open_nsfw calls its input."""

_CALIBRATION = ("photographs-calibration", "photographs-calibration-more")
_HELD_OUT = ("photographs-held-out", "photographs-held-out-more")
_RESIZED, _SIZE = 256, 224
_MEAN = np.array([104, 117, 123], np.float32)
"""Of blue, green and red, as the model was trained."""


def calibration_photographs() -> list[dict[str, Images]]:
    """Return the inputs to calibrate with, a run for each photograph.

    Raises
    ------
    tools.fetch_models.Unavailable
        If the packages cannot be had here.
    """
    return list(_feeds(_CALIBRATION))


def held_out_photographs() -> list[dict[str, Images]]:
    """Return the inputs to measure on, a run for each photograph.

    Raises
    ------
    tools.fetch_models.Unavailable
        If the packages cannot be had here.
    """
    return list(_feeds(_HELD_OUT))


def _feeds(names: Iterable[str]) -> Iterator[dict[str, Images]]:
    for name in names:
        folder = fetch(name, manifest=MATERIALS).parent
        for member in load_manifest(MATERIALS)[name].members:
            yield {INPUT: views_of(folder / member.file_name)}


def views_of(photograph: Path) -> Images:
    """Return float32 `(5, 224, 224, 3)`: the whole picture, and two thirds of it from each corner.

    Each is resized to 256×256, of which the middle is taken; blue first, less the mean.
    """
    from PIL import Image

    with Image.open(photograph) as opened:
        picture = opened.convert("RGB")
    width, height = picture.size
    corners = [(x * width / 3, y * height / 3) for x in (0, 1) for y in (0, 1)]
    boxes = [(0.0, 0.0, float(width), float(height))]
    boxes += [(x, y, x + 2 * width / 3, y + 2 * height / 3) for x, y in corners]
    first = (_RESIZED - _SIZE) // 2
    middle = slice(first, first + _SIZE)
    views = []
    for box in boxes:
        small = picture.resize((_RESIZED, _RESIZED), Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(small, np.float32)[middle, middle]
        views.append(pixels[..., ::-1] - _MEAN)
    return np.stack(views)
