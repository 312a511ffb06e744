"""Balls in a slab: where they should be, as dark as they should be."""

import numpy as np
import pytest

from verglas.algo.simulation.balls import BallSpecimen, draw_ball_series, gold_free_paths
from verglas.algo.simulation.tilt_scheme import Misalignment, make_tilt_scheme
from verglas.model import Optics


@pytest.fixture(scope="module")
def truth():
    errors = Misalignment(drift_angstrom=60.0, axis_error_deg=4.0, magnification_drift=0.01)
    return make_tilt_scheme(
        "TS", Optics(10.0), (120, 128), step_deg=20.0, axis_angle_deg=70.0, misalignment=errors, seed=3
    ).truth


def test_a_ball_is_where_the_geometry_says(truth):
    place = np.array([60.0, -110.0, 150.0])
    specimen = BallSpecimen(np.array([[*place, 80.0]]), np.array([100.0]), thickness_angstrom=400.0)
    views = draw_ball_series(specimen, truth, seed=0)
    for view, image in enumerate(views):
        tilt, turn = np.deg2rad([truth.y_tilt_deg[view], truth.z_rot_deg[view]])
        across = place[0] * np.cos(tilt) + place[2] * np.sin(tilt)
        flat = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [across, place[1]]
        expected = truth.magnification[view] @ flat + [
            truth.x_shift_angstrom[view],
            truth.y_shift_angstrom[view],
        ]
        y, x = np.indices(image.shape) - np.array([60, 64])[:, None, None]
        near = np.hypot(x - expected[0] / 10, y - expected[1] / 10) < 12
        missing = np.clip(np.median(image) - image, 0, None) * near * (image < 0.85 * np.median(image))
        centre = [(missing * axis).sum() / missing.sum() for axis in (x, y)]
        assert np.allclose(centre, expected / 10, atol=0.25), view


def test_counts_follow_the_slab_and_the_gold(truth):
    specimen = BallSpecimen(np.array([[0.0, 0, 0, 200.0]]), gold_free_paths(1), thickness_angstrom=700.0)
    views = draw_ball_series(specimen, truth, seed=1, blank=[0])
    slab = 300 * np.exp(-0.2 / np.cos(np.deg2rad(truth.y_tilt_deg)))
    assert np.median(views, axis=(1, 2))[1:] == pytest.approx(slab[1:], rel=0.02)
    assert views[0].mean() < 1
    middle = 3
    x, y = np.array([truth.x_shift_angstrom[middle], truth.y_shift_angstrom[middle]]) / 10 + [64, 60]
    core = views[middle, round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3]
    assert core.mean() == pytest.approx(slab[middle] * np.exp(-400 / 200), rel=0.1)
