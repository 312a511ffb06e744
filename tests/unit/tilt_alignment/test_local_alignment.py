"""Local alignment: a field that bends the specimen is found from beads, and none where there is none."""

import numpy as np
import pytest
import torch

from verglas.algo.tilt_alignment.bundle import Freedom, fit_bundle, locate_beads
from verglas.algo.tilt_alignment.geometry import project_points, start_geometry
from verglas.algo.tilt_alignment.local_alignment import (
    fit_local_field,
    restrain_roughness,
)
from verglas.algo.tilt_alignment.selection import hold_out
from verglas.ops.local_field import evaluate_field

TILTS = np.arange(-60.0, 61.0, 4.0)
NOISE = 0.15


def make_tracks(count, size, seed=0):
    """Tracks of beads in a slab that rises by `size` pixels at |x| = 450 from the first tilt to the last."""
    rng = np.random.default_rng(seed)
    geometry = start_geometry(TILTS, 85.0, rng.normal(0, 20, (len(TILTS), 2)))
    points = rng.uniform(-1, 1, (count, 3)) * [450, 450, 100]
    views = []
    for view in range(len(TILTS)):
        bent = points + [0, 0, 1] * (size * (points[:, :1] / 450) ** 2 * view / (len(TILTS) - 1))
        views.append(project_points(geometry.take([view]), bent)[:, 0])
    tracks = np.stack(views, axis=1) + rng.normal(0, NOISE, (count, len(TILTS), 2))
    tracks[rng.uniform(size=tracks.shape[:2]) < 0.15] = np.nan
    return tracks, geometry


def fit(tracks, start):
    found = fit_bundle(tracks, start, Freedom())
    return found, fit_local_field(tracks, found.geometry, found.points_px, start, Freedom())


def rms(residuals):
    return float(np.sqrt(np.nanmean(residuals**2)))


def test_a_bend_is_found_and_holds_for_other_beads():
    tracks, start = make_tracks(42, 12.0)
    globally, found = fit(tracks[:30], start)
    assert found is not None
    assert rms(found.residuals_px) < 1.3 * NOISE
    assert rms(found.trial.residuals_px) < 0.7 * rms(hold_out(tracks[:30], start, Freedom()).residuals_px)
    # Beads that the fit did not see, by the field as readers of the record evaluate it.
    others = tracks[30:]
    places = torch.from_numpy(locate_beads(others, found.geometry).points_px[:, :2])
    shifts = torch.stack(
        [
            evaluate_field(torch.from_numpy(nodes), found.field.low_px, found.field.high_px, places)
            for nodes in found.field.shifts_px
        ],
        dim=1,
    ).numpy()
    without = rms(locate_beads(others, globally.geometry).residuals_px)
    assert rms(locate_beads(others - shifts, found.geometry).residuals_px) < 0.7 * without


@pytest.mark.parametrize(("count", "size"), [(30, 0.0), (10, 6.0)], ids=["no bend", "few beads"])
def test_there_is_no_field_without_need(count, size):
    assert fit(*make_tracks(count, size))[1] is None


def test_outliers_do_not_bend_the_field():
    tracks, start = make_tracks(30, 6.0)
    rng = np.random.default_rng(5)
    wrong = rng.uniform(size=tracks.shape[:2]) < 0.02
    found = fit(np.where(wrong[..., None], tracks + 12.0, tracks), start)[1]
    assert found is not None
    assert rms(np.where(wrong[..., None], np.nan, found.residuals_px)) < 1.5 * NOISE


def test_a_view_without_beads_moves_nothing():
    tracks, start = make_tracks(30, 6.0)
    tracks[:, 3] = np.nan
    found = fit(tracks, start)[1]
    assert found is not None
    assert np.isfinite(found.geometry.shift_px).all()
    assert np.isfinite(found.field.shifts_px).all()


def test_only_what_is_bent_is_rough():
    t, y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in (4, 5, 6)), indexing="ij")
    restraint = restrain_roughness((4, 5, 6))
    for flat in (np.ones_like(x), 2 * x - y + 3 * t):
        assert flat.ravel() @ restraint @ flat.ravel() == pytest.approx(0, abs=1e-9)
    # The second difference of x² is 2 at four inner places of each of 20 lines; that of xy is 1 in 4 · 4 · 5 cells.
    assert (x**2).ravel() @ restraint @ (x**2).ravel() == pytest.approx(4 * 4 * 20)
    assert (x * y).ravel() @ restraint @ (x * y).ravel() == pytest.approx(2 * 4 * 4 * 5)
