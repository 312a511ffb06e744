"""Material in noise: a slab, a filled part of it, and nothing at all."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from verglas.algo.reconstruction.material import find_material

VOXEL = 20.0


def make_tomogram(slab, rows, columns, strength, seed=0):
    """White noise everywhere, and in a box also detail of 250 Å."""
    generator = np.random.default_rng(seed)
    shape = (60, 90, 110)
    volume = generator.normal(size=shape).astype(np.float32)
    detail = gaussian_filter(generator.normal(size=shape), 60 / VOXEL)
    inside = np.zeros(shape)
    inside[slice(*slab), slice(*rows), slice(*columns)] = 1
    return volume + strength * detail / detail.std() * inside


def test_the_box_of_the_material_is_found():
    volume = make_tomogram((20, 42), (30, 80), (10, 60), 1.0)
    limits = find_material(volume, VOXEL)
    # 100 Å to spare are five voxels; the local power is smooth over some 150 Å.
    for (low, high), (start, stop) in zip(limits, ((20, 42), (30, 80), (10, 60)), strict=True):
        assert low == pytest.approx(start - 5, abs=8)
        assert high == pytest.approx(stop + 5, abs=8)
        assert low <= start
        assert high >= stop


def test_a_slab_that_is_full_is_kept_whole():
    limits = find_material(make_tomogram((15, 40), (0, 90), (0, 110), 1.0), VOXEL)
    assert limits[1:] == ((0, 90), (0, 110))
    assert limits[0] == pytest.approx((10, 45), abs=4)


def test_noise_alone_is_all_kept():
    volume = make_tomogram((0, 0), (0, 0), (0, 0), 0.0)
    assert find_material(volume, VOXEL) == ((0, 60), (0, 90), (0, 110))


def test_gold_and_what_no_view_sees_do_not_decide():
    volume = make_tomogram((20, 42), (30, 80), (10, 60), 1.0)
    volume[25:30, 10:14, 90:94] = -300.0
    volume[:, :, 104:] = 0.0
    limits = find_material(volume, VOXEL)
    assert limits[1] == pytest.approx((25, 85), abs=9)
    assert limits[2] == pytest.approx((5, 65), abs=9)
