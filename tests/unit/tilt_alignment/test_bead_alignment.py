"""Alignment by beads: simulated series against their truth, planted errors, and the real series 00254."""

import numpy as np
import pytest

from tests.unit.tilt_alignment.series import BEAD, PIXEL, SmallSeries, make_series, to_geometry
from verglas.algo.fiducials.find import estimate_diameter, find_beads
from verglas.algo.tilt_alignment.bead_alignment import align_by_beads
from verglas.algo.tilt_alignment.bundle import locate_beads
from verglas.algo.tilt_alignment.centring import centre_beads, cut_patches, measure_profile
from verglas.algo.tilt_alignment.gauge import compare_geometries
from verglas.algo.tilt_alignment.geometry import project_points
from verglas.errors import UserError
from verglas.io.mrc import read_mrc
from verglas.io.warp import tilt_series_from_warp
from verglas.io.warp_xml import read_warp_xml


def align(series: SmallSeries, views=None, rows=None, axis=85.0, **options):
    views = series.views if views is None else views
    rows = np.arange(len(views)) if rows is None else rows
    detections = [find_beads(views[row], BEAD / PIXEL).positions_px for row in rows]
    tilts = series.scheme.nominal.nominal_tilt_deg[rows]
    return align_by_beads([views[row] for row in rows], tilts, detections, BEAD / PIXEL, axis, **options)


def compare(alignment, series: SmallSeries, rows=None):
    truth = to_geometry(series.scheme.truth)
    truth = truth if rows is None else truth.take(rows)
    return compare_geometries(alignment.geometry, truth, series.beads / PIXEL)


@pytest.fixture(scope="module")
def series():
    return make_series(seed=1)


@pytest.fixture(scope="module")
def alignment(series):
    return align(series)


def test_the_truth_is_found(series, alignment):
    difference = compare(alignment, series)
    assert np.hypot(*difference.rms_shift_px) < 0.3
    assert abs(difference.axis_deg.mean()) < 0.05
    assert difference.tilt_deg.std() < 0.1
    assert difference.scale.std() < 5e-4
    assert not alignment.searched
    assert not alignment.lost.any()
    assert np.nanmean(alignment.explained) > 0.9


def test_residuals_tell_how_well_beads_were_measured(series, alignment):
    """A measured place lies off by the noise alone, so residuals and held-out residuals are small and alike."""
    assert max(alignment.rms_px) < 0.2
    assert all(
        rms <= held < 1.6 * rms
        for rms, held in zip(alignment.rms_px, alignment.trials[0].held_out_px, strict=True)
    )


def test_beads_are_followed_through_views_that_did_not_find_them(series, alignment):
    """Of the beads that are in a view, nearly all are measured."""
    truth = to_geometry(series.scheme.truth)
    places = project_points(truth, series.beads / PIXEL)
    inside = (np.abs(places) < 150 - 12).all(axis=2) & (
        (np.abs(places) < 150 - 12).all(axis=2).sum(axis=1) >= 8
    )[:, None]
    assert np.isfinite(alignment.tracks_px[..., 0]).sum() > 0.85 * inside.sum()


def test_the_slab_is_level_and_as_thick_as_it_is(alignment):
    assert alignment.slab.faces == 2
    assert alignment.slab.thickness_px * PIXEL == pytest.approx(1000, rel=0.05)
    assert np.abs(np.abs(alignment.points_px[:, 2]) - 50).max() < 4


def test_an_unknown_axis_is_searched(series):
    alignment = align(series, axis=None)
    assert alignment.searched
    difference = compare(alignment, series)
    apart = abs((alignment.geometry.axis_deg.mean() - 88 + 90) % 180 - 90)
    assert apart < 0.1
    assert np.hypot(*difference.rms_shift_px) < 0.3


def test_a_wrong_axis_is_noticed(series):
    alignment = align(series, axis=20.0)
    assert alignment.searched
    assert alignment.geometry.axis_deg.mean() == pytest.approx(88.0, abs=0.1)


def test_a_view_that_jumped_is_followed(series):
    """One view is moved by a third of the field, which no correlation of neighbours need tell."""
    views = series.views.copy()
    views[15] = np.roll(series.views[15], (60, -75), axis=(0, 1))
    alignment = align(series, views)
    difference = compare(alignment, series)
    assert np.allclose(difference.shift_px[15], [-75, 60], atol=1.0)
    rest = np.delete(np.arange(21), 15)
    assert np.sqrt((difference.shift_px[rest] ** 2).sum(axis=1).mean()) < 0.4


def test_a_view_without_beads_is_lost_and_told(series):
    views = series.views.copy()
    views[18] = np.random.default_rng(0).poisson(200, views[18].shape)
    alignment = align(series, views)
    assert np.flatnonzero(alignment.lost).tolist() == [18]
    rest = np.delete(np.arange(21), 18)
    assert np.sqrt((compare(alignment, series).shift_px[rest] ** 2).sum(axis=1).mean()) < 0.3


def test_three_beads_can_be_aligned_by_but_not_held_out():
    series = make_series(seed=4, count=3)
    alignment = align(series)
    assert len(alignment.points_px) >= 3
    if len(alignment.points_px) < 5:
        assert np.isnan(alignment.trials[0].held_out_px).all()
        assert alignment.slab is None


def test_variables_may_be_left_fixed(series):
    alignment = align(series, variables=("axis", "tilt"))
    assert (alignment.geometry.scale == 1).all()
    assert not alignment.geometry.skew.any()


def test_noise_is_refused(series):
    noise = np.random.default_rng(1).poisson(200, series.views.shape).astype(np.float32)
    with pytest.raises(UserError, match="no three beads could be followed"):
        align(series, noise)


def test_false_beads_are_refused(series):
    """Detections at random in every view agree with nothing."""
    rng = np.random.default_rng(2)
    noise = rng.poisson(200, series.views.shape).astype(np.float32)
    detections = [rng.uniform(-140, 140, (15, 2)) for _ in noise]
    tilts = series.scheme.nominal.nominal_tilt_deg
    with pytest.raises(UserError, match="no three beads could be followed"):
        align_by_beads(list(noise), tilts, detections, BEAD / PIXEL, 85.0)


def test_four_views_are_refused(series):
    with pytest.raises(UserError, match="at least 5 good views; got 4"):
        align(series, rows=np.arange(4))


def test_beads_are_centred_below_a_pixel(series):
    truth = to_geometry(series.scheme.truth)
    places = project_points(truth, series.beads / PIXEL)[:, 10]
    places = places[(np.abs(places) < 130).all(axis=1)]
    view = series.views[10].astype(float)
    profile = measure_profile(cut_patches(view, places, 9), 9)
    rough = places + np.random.default_rng(0).uniform(-2, 2, places.shape)
    found, scores = centre_beads(view, rough, profile, 9)
    assert np.linalg.norm(found - places, axis=1).max() < 0.25
    assert scores.min() > 0.8
    away, none = centre_beads(view, np.array([[149.0, 0.0]]), profile, 9)
    assert none[0] == 0
    assert np.array_equal(away, [[149.0, 0.0]])


def test_the_real_series_is_aligned_from_raw_views_and_stage_angles(shared_data):
    """Issue 3: at most 0.45 and 0.30 px on held-out beads; Warp's shifts within a pixel.

    Of Warp's views, those at 57 and 60 degrees are left out of the comparison: it leaves all beads 4.6 and 12
    pixels off there.
    """
    data = shared_data / "tilt_series_empiar10499"
    views = read_mrc(data / "00254.stack.mrc")
    warp = tilt_series_from_warp(
        read_warp_xml(data / "00254.xml"), name="00254", pixel_size_angstrom=10.0, image_shape=views.shape[1:]
    )
    diameter = estimate_diameter([views[row] for row in (19, 20, 21)])
    detections = [find_beads(view, diameter).positions_px for view in views]
    assert all(20 <= len(found) <= 35 for found in detections)
    alignment = align_by_beads(list(views), warp.nominal_tilt_deg, detections, diameter, 0.0)
    x, y = alignment.trials[0].held_out_px
    assert x < 0.45
    assert y < 0.30
    assert np.isfinite(alignment.tracks_px[..., 0]).sum() > 846
    theirs = to_geometry(warp)
    left = locate_beads(alignment.tracks_px, theirs)
    off = np.array([np.nanmedian(np.linalg.norm(left.residuals_px[:, view], axis=1)) for view in range(41)])
    assert np.flatnonzero(off > 3).tolist() == [39, 40]
    points = left.points_px[np.isfinite(left.points_px).all(axis=1)]
    difference = compare_geometries(alignment.geometry, theirs, points)
    assert np.sqrt((difference.shift_px[:39] ** 2).mean(axis=0)).max() < 1.0
    assert np.median(difference.axis_deg) == pytest.approx(0, abs=0.3)
    assert alignment.slab.faces == 2
