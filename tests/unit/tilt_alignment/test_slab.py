"""The slab: its faces are found and levelled, and what is not known is left alone."""

import numpy as np
import pytest

from verglas.algo.tilt_alignment.geometry import project_points, start_geometry
from verglas.algo.tilt_alignment.slab import fit_slab, level_specimen


def make_faces(count: int, thickness: float, *, faces=(-0.5, 0.5), scatter=3.0, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-400, 400, (count, 3))
    points[:, 2] = rng.choice(faces, count) * thickness + 25
    points[:, 2] += 0.08 * points[:, 0] - 0.12 * points[:, 1] + rng.normal(0, scatter, count)
    return points


@pytest.mark.parametrize("count", [8, 25])
def test_two_faces_are_found(count):
    slab = fit_slab(make_faces(count, 160.0))
    assert slab.faces == 2
    assert slab.slope_x == pytest.approx(0.08, abs=0.01)
    assert slab.slope_y == pytest.approx(-0.12, abs=0.01)
    assert slab.middle_px == pytest.approx(25, abs=4)
    # The faces lie 160 apart along z, less along their normal.
    assert slab.thickness_px == pytest.approx(160 / np.sqrt(1 + 0.08**2 + 0.12**2), abs=4)
    assert slab.error_deg < 1


def test_one_face_is_one():
    slab = fit_slab(make_faces(20, 0.0))
    assert slab.faces == 1
    assert slab.thickness_px < 15
    assert slab.slope_y == pytest.approx(-0.12, abs=0.01)


def test_four_beads_are_no_slab():
    assert fit_slab(make_faces(4, 100.0)) is None
    nothing = np.full((9, 3), np.nan)
    nothing[:4] = make_faces(4, 100.0)
    assert fit_slab(nothing) is None


def test_levelling_moves_nothing_in_the_images():
    tilts = np.arange(-60.0, 61, 5)
    shifts = np.random.default_rng(1).normal(0, 20, (len(tilts), 2))
    geometry, points = start_geometry(tilts, 77.0, shifts), make_faces(20, 160.0)
    level, moved = level_specimen(geometry, points, fit_slab(points))
    assert np.allclose(project_points(level, moved), project_points(geometry, points), atol=1e-9)
    heights = np.sort(np.abs(moved[:, 2]))
    assert heights[-1] - heights[0] < 20
    assert abs(np.median(moved[moved[:, 2] > 0, 2]) + np.median(moved[moved[:, 2] < 0, 2])) < 6
    lowest = int(np.abs(level.tilt_deg).argmin())
    assert np.allclose(level.shift_px[np.abs(geometry.tilt_deg).argmin()], 0, atol=1e-9)
    assert abs(level.tilt_deg[lowest]) < 5
    assert np.allclose(level.axis_deg, 77.0, atol=1e-6)


def test_a_slope_that_is_not_known_is_left_alone():
    rng = np.random.default_rng(3)
    points = rng.uniform(-1, 1, (8, 3)) * [200, 200, 150]
    slab = fit_slab(points)
    assert slab.error_deg > 1
    geometry = start_geometry(np.arange(-60.0, 61, 5), 10.0)
    level, _ = level_specimen(geometry, points, slab)
    assert np.allclose(level.tilt_deg, geometry.tilt_deg)
    assert np.allclose(level.x_tilt_deg, 0)
