"""Tests of `tools/photographs.py`."""

from __future__ import annotations

import numpy as np
import pytest

from tools.fetch_models import MATERIALS, Unavailable, load_manifest
from tools.photographs import (
    INPUT,
    calibration_photographs,
    held_out_photographs,
    views_of,
)


def test_the_two_sets_are_pinned_and_have_nothing_in_common():
    materials = load_manifest(MATERIALS)
    calibration, held_out = (
        {
            member.sha256
            for name, entry in materials.items()
            if name.startswith(f"photographs-{which}")
            for member in entry.members
        }
        for which in ("calibration", "held-out")
    )
    assert len(calibration) == 13
    assert len(held_out) == 8
    assert not calibration & held_out


def test_views_are_the_whole_and_its_corners_blue_first_less_the_mean(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow decodes photographs")
    pixels = np.zeros((90, 60, 3), np.uint8)
    pixels[:, :, 0] = 200
    pixels[60:, 40:, 2] = 250  # the last ninth, which only the corner at the end and the whole see
    path = tmp_path / "photograph.png"
    image.fromarray(pixels).save(path)
    views = views_of(path)
    assert views.shape == (5, 224, 224, 3)
    assert views.dtype == np.float32
    np.testing.assert_allclose(views[..., 2], 200 - 123)
    np.testing.assert_allclose(views[..., 1], 0 - 117)
    blue = views[..., 0] + 104
    assert [bool((view > 100).any()) for view in blue] == [True, False, False, False, True]
    np.testing.assert_allclose(blue[0][-1, -1], 250)
    # Of the corner a half along each axis is blue; 16 of 256 places are cut off on every side.
    np.testing.assert_allclose((blue[4] > 125).mean(), (112 / 224) ** 2, rtol=0.01)
    np.testing.assert_allclose((blue[0] > 125).mean(), ((256 / 3 - 16) / 224) ** 2, rtol=0.02)


@pytest.mark.models
def test_real_photographs_are_runs_of_five_views():
    pytest.importorskip("PIL.Image", reason="Pillow decodes photographs")
    try:
        sets = calibration_photographs(), held_out_photographs()
    except Unavailable as error:
        pytest.skip(error.reason)
    assert [len(feeds) for feeds in sets] == [13, 8]
    for feeds in sets[0] + sets[1]:
        assert feeds[INPUT].shape == (5, 224, 224, 3)
        assert feeds[INPUT].std() > 1
