"""Regions of emClarity and of IMOD models, by the arithmetic of recScript2 written out by hand."""

import numpy as np
import pytest

from verglas.errors import UserError
from verglas.io.emclarity import EmclarityRegion, read_regions, write_regions
from verglas.io.imod_model import make_imod_model, write_imod_model
from verglas.io.region_files import read_limits_model, region_from_emclarity, region_to_emclarity
from verglas.model import ImageReference, Optics, TiltSeries

SERIES = TiltSeries("tilt1", Optics(2.0), (3700, 3838), (ImageReference("a.mrc", 0),), np.zeros(1))
# xmin, xmax, ymin, ymax, zmin, zmax in pixels of a tomogram of 383 x 370 x 300 binned by 10.
LIMITS = [(40.5, 9, 9), (190.2, 9, 9), (9, 30.0, 9), (9, 200.7, 9), (9, 9, 100), (9, 9, 180)]


def write_model(path, points, size=(383, 370, 300)):
    write_imod_model(path, make_imod_model([[point] for point in points], size))
    return path


def test_limits_are_taken_as_recscript2_does(tmp_path):
    shifted = [tuple(np.add(point, 50)) for point in LIMITS]
    path = write_model(tmp_path / "tilt1_bin10.mod", [*LIMITS, *shifted])
    first, second = read_limits_model(path, (3838, 3700))
    # WIDTH = int(1902 - 405), SHIFT_X = int(1919 - (405 + 748.5)), THICKNESS = 800,
    # SHIFT_Z = -int(1500 - (1000 + 400)), 1707 slices from 300 on.
    assert (first.width, first.slice_start, first.slice_end, first.thickness) == (1497, 300, 2006, 800)
    assert (first.shift_x, first.shift_z) == (765, -100)
    assert (second.shift_x, second.shift_z) == (265, 400)
    region = region_from_emclarity(first, "1", SERIES, 3700)
    # Positive SHIFT_X holds the left part: the limits 405 to 1902 of 3838 pixels lie left of the middle.
    assert region.centre_angstrom == (-1530, 2 * np.floor((300 + 2006 - 1) / 2 - 1850), -200)
    assert region.size_angstrom == (2994, 3414, 1600)


def test_regions_come_back_from_emclarity(tmp_path):
    regions = (EmclarityRegion(1497, 300, 2006, 800, 765, -100), EmclarityRegion(800, 1, 3700, 600, -20, 0))
    for region in regions:
        ours = region_from_emclarity(region, "1", SERIES, 3700)
        again = region_to_emclarity(ours, SERIES, 3700)
        assert region_from_emclarity(again, "1", SERIES, 3700) == ours
        assert (again.width, again.thickness, again.shift_x) == (
            region.width,
            region.thickness,
            region.shift_x,
        )
    assert read_regions(write_regions(tmp_path, "tilt1", regions)) == ("tilt1", regions)


def test_points_in_another_order_are_refused(tmp_path):
    turned = [LIMITS[i] for i in (2, 3, 0, 1, 4, 5)]
    with pytest.raises(UserError, match="order xmin, xmax"):
        read_limits_model(write_model(tmp_path / "a.mod", turned), (3838, 3700))
    with pytest.raises(UserError, match="7 points; expected six"):
        read_limits_model(write_model(tmp_path / "b.mod", [*LIMITS, LIMITS[0]]), (3838, 3700))
    with pytest.raises(UserError, match="drawn on an image 9000 pixels wide"):
        read_limits_model(write_model(tmp_path / "c.mod", LIMITS, (9000, 10, 10)), (3838, 3700))
