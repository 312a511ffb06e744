"""Alignment without beads: against known displacements and the geometry that drew the views."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.tilt_alignment.patch_series import PIXEL, make_patch_series
from verglas.algo.tilt_alignment.gauge import compare_geometries
from verglas.algo.tilt_alignment.geometry import project_points
from verglas.algo.tilt_alignment.patch_alignment import LEVELS, align_by_patches, lay_patches
from verglas.algo.tilt_alignment.patches import (
    Layer,
    choose_thickness,
    find_displacements,
    measure_layer,
    settle_displacements,
    whiten_view,
)
from verglas.algo.tilt_alignment.prediction import information_matrix, make_predictor
from verglas.errors import UserError


@pytest.fixture(scope="module")
def series():
    return make_patch_series(256, 600.0)


@pytest.fixture(scope="module")
def exact():
    return make_patch_series(192, 600.0, exact=True)


def test_whitened_views_have_one_power(exact):
    white = whiten_view(exact.views[3])
    power = np.abs(np.fft.rfft2(white)) ** 2
    frequency = np.hypot(np.fft.fftfreq(192)[:, None], np.fft.rfftfreq(192)[None])
    rings = [power[(frequency > a) & (frequency < a + 0.06)].mean() for a in (0.05, 0.15, 0.25, 0.33)]
    assert max(rings) < 1.15 * min(rings)
    assert power[frequency > 0.47].mean() < 0.05 * rings[0]
    # The brightness of a view, and a hot pixel, do not change the rest of it.
    spoiled = 3 * exact.views[3].astype(float)
    spoiled[100, 20] *= 50
    assert np.corrcoef(white[:, 60:].ravel(), whiten_view(spoiled)[:, 60:].ravel())[0, 1] > 0.99


def test_displacements_are_found_between_pixels():
    y, x = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    maps = []
    for dx, dy in ((2.3, -1.6), (-4.0, 0.4)):
        ry, rx = ((a - d + 16) % 32 - 16 for a, d in ((y, dy), (x, dx)))
        maps.append(np.exp(-(rx**2 + ry**2) / 18))
    steps, heights = find_displacements(torch.from_numpy(np.array(maps)), 6.0)
    np.testing.assert_allclose(steps, [[2.3, -1.6], [-4.0, 0.4]], atol=0.05)
    assert (heights > 0.9).all()
    near, _ = find_displacements(torch.from_numpy(np.array(maps)), 2.0)
    assert (np.linalg.norm(near.numpy(), axis=-1) < 2.0 + 2**0.5).all()


def test_errors_of_the_predictions_are_solved_for():
    rng = np.random.default_rng(0)
    predictor = make_predictor(
        torch.linspace(-20, 20, 7)[:, None] * torch.tensor([1.0, 0.0]), torch.full((7, 16, 9), 0.5), 16
    )
    true = rng.normal(size=(1, 7, 2))
    true -= true.mean(axis=1)
    information = information_matrix(predictor).double().numpy()
    steps = np.zeros((1, 7, 2))
    for view in range(7):
        rows = slice(2 * view, 2 * view + 2)
        steps[0, view] = np.linalg.solve(information[rows, rows], information[rows] @ true.ravel())
    assert np.abs(steps - true).max() > 0.2
    moved, roots = settle_displacements(steps, predictor, 1e-7)
    np.testing.assert_allclose(moved, true, atol=1e-3)
    np.testing.assert_allclose(roots[0].T @ roots[0], information, atol=1e-5 * information.max())
    # A view that is missing leaves the others consistent.
    steps[0, 3] = np.nan
    part, roots = settle_displacements(steps, predictor, 1e-7)
    assert np.isnan(part[0, 3]).all()
    assert not roots[0, :, 6:8].any()


def test_moved_views_are_measured(exact):
    views = [whiten_view(view) for view in exact.views]
    moved = exact.truth.shift_px.copy()
    moved[[4, 9]] += [[2.5, -3.0], [-1.7, 3.2]]
    level = replace(LEVELS[1], size=64)
    layer = lay_patches(exact.truth, views[0].shape, level, (0.0, 0.0), 50.0)
    found = measure_layer(views, replace(exact.truth, shift_px=moved), layer, 6.0, anchor=1e-5)
    # The specimen lies where the true geometry says, not where the changed one does.
    miss = found.tracks.places_px - project_points(exact.truth, layer.centres_px)
    typical = np.nanmedian(miss, axis=0)
    # One patch is good to 1.5 pixels, the median of nine to 0.6.
    assert np.abs(typical[[4, 9]]).max() < 0.8
    assert np.sqrt((typical**2).mean()) < 0.5
    assert found.scores.min() > 0.03


def test_patches_outside_a_view_are_not_measured(exact):
    views = [whiten_view(view) for view in exact.views]
    layer = Layer(np.array([[0.0, 0, 0], [0.0, 140.0, 0]]), (0.0, 0.0), 48, 50.0)
    found = measure_layer(views, exact.truth, layer, 4.0, anchor=1e-3)
    assert np.isfinite(found.tracks.places_px[0]).all()
    assert np.isnan(found.tracks.places_px[1]).all()
    assert not found.tracks.roots[1].any()


def test_thickness_is_found():
    for thickness in (400.0, 1000.0):
        made = make_patch_series(160, thickness, exact=True, step_deg=8.0, seed=3)
        layer = lay_patches(made.truth, (160, 160), replace(LEVELS[0], size=48), (0.0, 0.0), 30.0)
        found = PIXEL * choose_thickness([whiten_view(view) for view in made.views], made.truth, layer)
        assert thickness / 1.6 < found < 1.6 * thickness


def test_series_without_beads_is_aligned(series):
    result = align_by_patches(list(series.views), series.nominal_tilt_deg, series.axis_deg)
    difference = compare_geometries(result.geometry, series.truth, series.points_px)
    # Issue 3: 1 px of 5 Å is half a pixel here.
    assert np.hypot(*difference.rms_shift_px) < 0.5
    assert np.sqrt((difference.tilt_deg**2).mean()) < 0.2
    assert np.abs(difference.axis_deg).max() < 0.5
    assert len(result.tracks_px) == len(result.points_px) >= 5
    assert 0 < max(result.trials[0].held_out_px) < 2.0


def test_too_few_views_are_refused(series):
    with pytest.raises(UserError, match="at least 5 good views; got 4"):
        align_by_patches(list(series.views[:4]), series.nominal_tilt_deg[:4], 80.0)
