"""Views matched with projections of all others, from known errors of their shifts."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.tilt_alignment.patch_series import PIXEL, make_patch_series
from verglas.algo.tilt_alignment.gauge import compare_geometries
from verglas.algo.tilt_alignment.projection_matching import match_projections

THICKNESS = 600.0


@pytest.fixture(scope="module")
def exact():
    return make_patch_series(160, THICKNESS, exact=True, step_deg=6.0)


def rms(geometry, series) -> float:
    return float(np.hypot(*compare_geometries(geometry, series.truth, series.points_px).rms_shift_px))


def test_errors_of_the_shifts_are_found(exact):
    errors = np.random.default_rng(0).normal(0, 1.5, exact.truth.shift_px.shape)
    wrong = replace(exact.truth, shift_px=exact.truth.shift_px + errors)
    matched = match_projections(list(exact.views), wrong, THICKNESS / PIXEL)
    assert rms(wrong, exact) > 1.5
    assert rms(matched.geometry, exact) < 0.5
    assert matched.gain > 0.01
    assert matched.scores.shape == (len(exact.views),)
    # Only shifts are moved.
    np.testing.assert_array_equal(matched.geometry.tilt_deg, wrong.tilt_deg)
    np.testing.assert_array_equal(matched.geometry.axis_deg, wrong.axis_deg)


def test_what_is_right_stays(exact):
    matched = match_projections(list(exact.views), exact.truth, THICKNESS / PIXEL)
    assert rms(matched.geometry, exact) < 0.5
    if not matched.gain > 0:
        assert matched.geometry is exact.truth


def test_block_averages_keep_the_places(exact):
    fine = [view.repeat(2, axis=0).repeat(2, axis=1) for view in exact.views]
    errors = np.random.default_rng(1).normal(0, 1.5, exact.truth.shift_px.shape)
    wrong = replace(exact.truth, shift_px=exact.truth.shift_px + errors)
    # The centre n // 2 of 320 pixels lies half a pixel before that of the 160 blocks of two.
    doubled = replace(wrong, shift_px=2 * wrong.shift_px + 0.5)
    small = match_projections(list(exact.views), wrong, THICKNESS / PIXEL).geometry.shift_px
    large = match_projections(fine, doubled, 2 * THICKNESS / PIXEL).geometry.shift_px
    np.testing.assert_allclose((large - 0.5) / 2, small, atol=0.02)
