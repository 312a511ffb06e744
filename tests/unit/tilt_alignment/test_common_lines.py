"""The tilt axis from common lines, against the one that drew the views."""

import numpy as np

from tests.unit.tilt_alignment.patch_series import make_patch_series
from verglas.algo.tilt_alignment.common_lines import CERTAIN, find_axis_by_lines, score_axis
from verglas.algo.tilt_alignment.patches import whiten_view


def test_the_axis_is_found():
    series = make_patch_series(256, 800.0, step_deg=6.0, seed=5, exact=True)
    found = find_axis_by_lines(list(series.views), series.nominal_tilt_deg, series.truth.shift_px)
    assert abs(found.axis_deg - series.truth.axis_deg[0]) < 3.0
    # Far from the axis the lines agree less.
    away = np.abs(found.angles_deg - 80) > 40
    assert np.median(found.scores[away]) < 0.75 * found.scores.max()


def test_noise_has_no_axis():
    noise = list(np.random.default_rng(0).poisson(100.0, (21, 96, 96)).astype(float))
    tilts = np.linspace(-60, 60, 21)
    assert find_axis_by_lines(noise, tilts, np.zeros((21, 2))).certainty < CERTAIN


def test_lines_that_are_moved_along_the_axis_still_agree():
    rng = np.random.default_rng(1)
    profile = rng.normal(size=64)
    tilts = np.linspace(-40, 40, 9)
    views = []
    for view in range(9):
        image = np.roll(profile, view % 3 - 1)[:, None] + 0.3 * rng.normal(size=(64, 64))
        views.append(whiten_view(image))
    along = score_axis(views, tilts, np.zeros((9, 2)), 0.0)
    across = score_axis(views, tilts, np.zeros((9, 2)), 90.0)
    assert along > 0.9
    assert across < 0.6
