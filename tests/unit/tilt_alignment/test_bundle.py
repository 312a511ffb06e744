"""The bundle adjustment: its model is that of the record, its derivatives are right, and it finds the truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from verglas.algo.tilt_alignment.bundle import (
    VARIABLES,
    Freedom,
    differentiate_views,
    fit_bundle,
    locate_beads,
)
from verglas.algo.tilt_alignment.gauge import compare_geometries, turn_specimen
from verglas.algo.tilt_alignment.geometry import (
    ViewGeometry,
    project_points,
    start_geometry,
    triangulate_points,
)
from verglas.algo.tilt_alignment.selection import choose_freedom, hold_out
from verglas.errors import UserError
from verglas.ops.geometry import projection_matrices

TILTS = np.arange(-60.0, 61.0, 6.0)


def make_points(count: int = 15, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3)) * [400, 400, 80]


def make_truth(seed: int = 0, **changes) -> ViewGeometry:
    """A series that moves, with an axis of 40 degrees."""
    rng = np.random.default_rng(seed)
    return replace(start_geometry(TILTS, 40.0, rng.normal(0, 30, (len(TILTS), 2))), **changes)


def measure(truth: ViewGeometry, points: np.ndarray, noise: float = 0.0, seed: int = 1) -> np.ndarray:
    """Tracks by the matrices of ops, in which every view shows four beads of five."""
    rng = np.random.default_rng(seed)
    angles = {
        "x_tilt_deg": truth.x_tilt_deg,
        "y_tilt_deg": truth.tilt_deg,
        "z_rot_deg": truth.axis_deg,
        "x_shift_angstrom": truth.shift_px[:, 0],
        "y_shift_angstrom": truth.shift_px[:, 1],
        "magnification": truth.magnification,
    }
    matrices = projection_matrices(
        **{name: torch.from_numpy(value) for name, value in angles.items()}
    ).numpy()
    flat = np.column_stack([points, np.ones(len(points))])
    tracks = np.einsum("vij,bj->bvi", matrices, flat)[..., :2]
    tracks[rng.uniform(size=tracks.shape[:2]) < 0.2] = np.nan
    return tracks + rng.normal(0, noise, tracks.shape)


def wander(seed: int, size: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, len(TILTS))


DISTORTED = {
    "tilt_deg": TILTS + wander(3, 0.2),
    "axis_deg": 42.0 + wander(4, 0.3),
    "x_tilt_deg": wander(5, 0.3),
    "scale": 1 + wander(6, 0.002),
    "stretch": wander(7, 0.002),
    "skew": wander(8, 0.002),
}


def test_the_model_is_that_of_the_record():
    truth = make_truth(**DISTORTED)
    tracks = measure(truth, make_points())
    seen = np.isfinite(tracks)
    assert np.allclose(project_points(truth, make_points())[seen], tracks[seen], atol=1e-9)


def test_derivatives_are_those_of_small_steps():
    truth = make_truth(**DISTORTED)
    points = make_points(6)
    derivatives, _ = differentiate_views(truth, points)
    for column, name in enumerate(VARIABLES, 2):
        field = f"{name}_deg" if name in {"axis", "tilt", "x_tilt"} else name
        # The scale's is by its logarithm, the angles' by radians.
        step = 1e-6 * (np.rad2deg(1.0) if field != name else truth.scale if name == "scale" else 1.0)
        high, low = (
            project_points(replace(truth, **{field: getattr(truth, field) + sign * step}), points)
            for sign in (1, -1)
        )
        assert np.allclose((high - low) / 2e-6, derivatives[..., column], atol=1e-5), name


def test_beads_are_placed_where_they_are():
    truth, points = make_truth(**DISTORTED), make_points()
    assert np.allclose(triangulate_points(truth, measure(truth, points)), points, atol=1e-5)
    assert np.allclose(locate_beads(measure(truth, points), truth).points_px, points, atol=1e-5)


@pytest.mark.parametrize("bends", [False, True])
def test_the_truth_is_found_from_the_nominal_geometry(bends):
    """Where the views may turn and bend as they like, the axis is no longer told; where beads appear still is."""
    known = {} if bends else {name: np.zeros(len(TILTS)) for name in ("x_tilt_deg", "stretch", "skew")}
    truth, points = make_truth(**(DISTORTED | known)), make_points(25)
    start = start_geometry(
        TILTS, 45.0, truth.shift_px + np.random.default_rng(9).normal(0, 8, truth.shift_px.shape)
    )
    freedom = Freedom(-1, -1, -1, -1, -1, -1) if bends else Freedom(axis=-1, tilt=-1, scale=-1)
    fit = fit_bundle(measure(truth, points), start, freedom, rounds=200)
    assert max(fit.rms_px) < 0.01
    difference = compare_geometries(fit.geometry, truth, points)
    assert np.abs(difference.shift_px).max() < 0.02
    if not bends:
        assert np.abs(difference.axis_deg).max() < 0.02
        assert np.ptp(difference.tilt_deg) < 0.05


def test_gross_errors_are_told_and_do_not_matter():
    truth, points = make_truth(axis_deg=np.full(len(TILTS), 42.0)), make_points(20)
    tracks = measure(truth, points, noise=0.2)
    rng = np.random.default_rng(2)
    wrong = rng.uniform(size=tracks.shape[:2]) < 0.05
    tracks[wrong] += rng.uniform(15, 60, (int(wrong.sum()), 2)) * rng.choice([-1, 1], (int(wrong.sum()), 2))
    fit = fit_bundle(tracks, start_geometry(TILTS, 40.0, truth.shift_px), Freedom())
    seen = np.isfinite(tracks[..., 0])
    assert not fit.used[wrong].any()
    assert fit.used[seen & ~wrong].mean() > 0.99
    assert fit.geometry.axis_deg[0] == pytest.approx(42.0, abs=0.02)
    assert np.abs(compare_geometries(fit.geometry, truth, points).shift_px).max() < 0.3


def test_what_no_image_tells_is_no_difference():
    truth, points = make_truth(**DISTORTED), make_points()
    angle = np.deg2rad(7.0)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    moved = turn_specimen(truth, turn, [30.0, -50.0, 20.0])
    assert np.allclose(
        project_points(moved, (points - [30.0, -50.0, 20.0]) @ turn), project_points(truth, points)
    )
    difference = compare_geometries(replace(moved, scale=1.02 * moved.scale), truth, points)
    assert np.abs(difference.shift_px).max() < 1e-3
    assert np.abs(difference.axis_deg).max() < 1e-2
    assert np.abs(difference.tilt_deg).max() < 1e-2


def test_a_difference_is_measured():
    truth, points = make_truth(), make_points()
    shift = truth.shift_px.copy()
    shift[4] += [3.0, -2.0]
    difference = compare_geometries(
        replace(truth, shift_px=shift, axis_deg=truth.axis_deg + 0.5), truth, points
    )
    assert np.median(difference.axis_deg) == pytest.approx(0.5, abs=0.05)
    left = difference.shift_px - np.median(difference.shift_px, axis=0)
    assert np.allclose(left[4], [3.0, -2.0], atol=0.5)


@pytest.mark.parametrize(
    ("changes", "freed"),
    [
        ({}, set()),
        ({"scale": 1 + 0.005 * np.linspace(0, 1, len(TILTS))}, {"scale"}),
        ({"tilt_deg": TILTS + wander(3, 0.4)}, {"tilt"}),
        ({"skew": 0.004 * np.cos(np.deg2rad(3 * TILTS))}, {"skew"}),
    ],
)
def test_held_out_beads_choose_what_is_free(changes, freed):
    truth = make_truth(**changes)
    tracks = measure(truth, make_points(20), noise=0.2)
    trials = choose_freedom(tracks, start_geometry(TILTS, 40.0, truth.shift_px))
    assert {name for name in VARIABLES if name != "axis" and getattr(trials[0].freedom, name)} == freed
    # The noise itself, and a little for the fits.
    assert all(0.19 < value < 0.30 for value in trials[0].held_out_px)


def test_held_out_beads_tell_overfitting():
    truth = make_truth()
    tracks = measure(truth, make_points(8), noise=0.3)
    start = start_geometry(TILTS, 40.0, truth.shift_px)
    free = Freedom(*[-1] * len(VARIABLES))
    assert np.hypot(*fit_bundle(tracks, start, free).rms_px) < np.hypot(
        *fit_bundle(tracks, start, Freedom()).rms_px
    )
    assert np.hypot(*hold_out(tracks, start, free).held_out_px) > np.hypot(
        *hold_out(tracks, start, Freedom()).held_out_px
    )


def test_few_measurements_restrict_what_is_tried():
    truth = make_truth()
    tracks = measure(truth, make_points(5), noise=0.1)
    assert all(
        trial.freedom == Freedom()
        for trial in choose_freedom(tracks[:, ::4], truth.take(np.arange(0, 21, 4)))
    )


def test_beads_that_are_hardly_seen_are_refused():
    tracks = np.full((3, len(TILTS), 2), np.nan)
    tracks[:, :2] = 0.0
    with pytest.raises(UserError, match="no bead was measured in 3 views"):
        fit_bundle(tracks, start_geometry(TILTS, 0.0), Freedom())


def test_other_views_are_refused():
    with pytest.raises(UserError, match="two geometries of 21 and 5 views"):
        compare_geometries(make_truth(), make_truth().take(np.arange(5)), make_points())
