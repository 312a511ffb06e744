"""Curves, profiles and poses against plain geometry."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from verglas.algo.membranes.analysis import analyze_average
from verglas.algo.membranes.curves import Arc, evaluate_bezier, fit_bezier, locate_on_path, map_band
from verglas.algo.membranes.particles import find_region, map_curves
from verglas.algo.membranes.profiles import Profile, fit_leaflets, fit_profile, take_off_baseline
from verglas.algo.membranes.shapes import Shape
from verglas.algo.membranes.tracing import trace_membranes
from verglas.algo.membranes.vesicles import fit_vesicles
from verglas.errors import UserError


def circle_of(arc: Arc) -> tuple[np.ndarray, float]:
    return np.array(arc.centre_yx) - arc.normal / arc.kappa, 1 / abs(arc.kappa)


@pytest.mark.parametrize("kappa", [0.01, -0.006, 1e-12])
def test_distance_from_an_arc_is_that_from_its_circle(kappa: float) -> None:
    arc = Arc((30.0, 40.0), 25.0, kappa)
    points = np.random.default_rng(0).uniform(0, 80, (200, 2))
    distance, along = arc.locate(points)
    if abs(kappa) > 1e-9:
        centre, radius = circle_of(arc)
        expected = np.sign(kappa) * (np.linalg.norm(points - centre, axis=1) - radius)
    else:
        expected = (points - np.array(arc.centre_yx)) @ arc.normal
        np.testing.assert_allclose(along, (points - np.array(arc.centre_yx)) @ arc.direction, atol=1e-9)
    np.testing.assert_allclose(distance, expected, atol=1e-6)
    path = arc.trace(60.0)
    again, position, inside = locate_on_path(path, points, closed=False)
    np.testing.assert_allclose(again[inside], distance[inside], atol=0.01)
    np.testing.assert_allclose(position[inside] - 60, along[inside], atol=0.05)


def test_theta_and_kappa_are_memxterminators() -> None:
    """At theta 0 the line runs along y; a positive kappa bends away from the normal, which is -x then."""
    path = Arc((0.0, 0.0), 0.0, 0.01).trace(50.0)
    assert np.ptp(path[:, 0]) > 90
    assert path[0, 1] > 10
    assert path[-1, 1] > 10
    diagonal = Arc((0.0, 0.0), 45.0, 0.0).trace(10.0)
    np.testing.assert_allclose(diagonal[:, 0], diagonal[:, 1], atol=1e-9)


def test_a_bezier_is_found_again_and_a_band_covers_its_pixels() -> None:
    control = np.array([[5.0, 20.0], [40.0, 60.0], [60.0, -10.0], [95.0, 50.0]])
    path = evaluate_bezier(control, np.linspace(0, 1, 400))
    again = evaluate_bezier(fit_bezier(path), np.linspace(0, 1, 400))
    assert np.abs(locate_on_path(path, again, closed=False)[0]).max() < 0.5
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    ring = np.stack([50 + 30 * np.sin(angle), 48 + 30 * np.cos(angle)], axis=1)
    band = map_band(ring, (100, 100), 6.0, closed=True)
    y, x = np.mgrid[:100, :100]
    radius = np.hypot(y - 50, x - 48)
    assert set(np.flatnonzero(np.abs(radius - 30) < 5.98)) <= set(band.pixels)
    assert set(band.pixels) <= set(np.flatnonzero(np.abs(radius - 30) < 6.02))
    np.testing.assert_allclose(np.abs(band.distance), np.abs(radius.ravel()[band.pixels] - 30), atol=0.02)


def test_a_bezier_goes_on_beyond_its_ends() -> None:
    control = np.array([[5.0, 20.0], [40.0, 60.0], [60.0, -10.0], [95.0, 50.0]])
    shape = Shape(Arc((50.0, 30.0), 0.0, 0.0), control, Profile(np.zeros(4)), 0.0)
    own = evaluate_bezier(control, np.linspace(0, 1, 2001))
    steps = np.linalg.norm(np.diff(own, axis=0), axis=1)
    s = np.concatenate([[0.0], np.cumsum(steps)])
    for reach in (0.0, 30.5):
        distance, position = shape.locate(own, reach)
        assert np.abs(distance).max() < 0.05
        np.testing.assert_allclose(position, s - s[-1] / 2, atol=0.3)
    beyond = evaluate_bezier(control, np.array([-0.15, 1.15]))
    assert np.abs(shape.locate(beyond, 30.0)[0]).max() < 0.05
    straight = shape.trace(30.0)[-25:]
    assert np.abs(np.diff(straight, 2, axis=0)).max() < 1e-6


def test_a_profile_follows_its_samples_and_ends_at_zero() -> None:
    rng = np.random.default_rng(1)
    distance = rng.uniform(-30, 30, 20000)
    grey = 3 + 0.005 * distance
    for side, sigma in ((-1, 3.0), (1, 4.0)):
        grey = grey + np.exp(-0.5 * ((distance - 9 * side) / sigma) ** 2)
    profile = fit_profile(distance, grey, np.ones(len(distance)), 30.0)
    x = np.linspace(-28, 28, 200)
    value, slope = profile.evaluate_both(x)
    np.testing.assert_allclose(slope, np.gradient(value, x), atol=0.02)
    leaflets = fit_leaflets(profile, 16.0)
    assert leaflets.distance == pytest.approx(18, abs=0.3)
    lean = take_off_baseline(profile, 8.0)
    assert abs(lean.evaluate(np.array([-29.9]))[0]) < 0.01
    assert lean.evaluate(np.array([30.5]))[0] == 0
    assert lean.evaluate(np.array([-9.0]))[0] == pytest.approx(1.0, abs=0.03)


def test_a_pose_moves_the_curve_as_relions_matrix_does() -> None:
    """Points of the reference appear at Rz(-psi) p - origin in the image."""
    box, psi, origin = 64, 33.0, (2.5, -3.25)
    arc = Arc((30.0, 36.0), 70.0, 0.004)
    maps = map_curves([(arc, None)], [8.0], box)
    region = find_region(maps, psi, origin)
    rows, columns = np.divmod(region.pixels, box)
    near = np.abs(region.distance[0]) < 0.3
    image = np.stack([columns, rows], axis=1)[near] - box // 2 + np.array(origin[::-1])
    turn = np.deg2rad(psi)
    back = image @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).T
    distance, _ = arc.locate(back[:, ::-1] + box // 2)
    assert near.sum() > 10
    np.testing.assert_allclose(distance, region.distance[0][near], atol=0.01)


def test_an_s_shape_asks_for_a_bezier_and_two_membranes_are_two() -> None:
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:96, :96].astype(float)

    def bilayer(distance: np.ndarray) -> np.ndarray:
        return sum(np.exp(-0.5 * ((distance + side * 7) / 2.8) ** 2) for side in (-1, 1))

    control = np.array([[-10, 30], [40, 100], [55, -5], [105, 66]], dtype=float)
    path = evaluate_bezier(control, np.linspace(0, 1, 3000))
    points = np.stack([y.ravel(), x.ravel()], axis=1)
    distance = cKDTree(path).query(points)[0].reshape(96, 96)
    (found,) = analyze_average(bilayer(distance) + rng.normal(0, 0.15, y.shape), 3.0)
    assert found.shape.control_yx is not None
    away, _ = found.shape.locate(path[(np.abs(path - 48) < 38).all(axis=1)], 96.0)
    assert np.sqrt(np.mean(away**2)) < 0.5
    pair = bilayer(x - 26.3) - 0.0 + 0.8 * bilayer(x - 69.6 + 0.1 * (y - 48))
    membranes = analyze_average(-pair + rng.normal(0, 0.15, y.shape), 3.0, shape="arc")
    assert len(membranes) == 2
    assert membranes[0].leaflets.height1 < 0
    places = sorted(one.shape.arc.centre_yx[1] for one in membranes)
    np.testing.assert_allclose(places, [26.3, 69.6], atol=0.6)


def test_a_flat_average_is_refused() -> None:
    with pytest.raises(UserError, match="flat or too small"):
        analyze_average(np.zeros((64, 64)), 3.0)


def test_a_vesicle_is_traced_and_taken_out() -> None:
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:300, :300].astype(float)
    angle = np.arctan2(y - 148, x - 152)
    distance = (np.hypot(y - 148, x - 152) - 95 * (1 + 0.04 * np.cos(3 * angle))) / np.sqrt(
        1 + (0.12 * np.sin(3 * angle)) ** 2
    )
    membrane = sum(np.exp(-0.5 * ((distance + side * 6) / 2.4) ** 2) for side in (-1, 1))
    image = membrane + rng.normal(0, 1.0, y.shape)
    (trace,) = trace_membranes(image, 3.0, distance_angstrom=36.0)
    assert trace.closed
    (found,), model = fit_vesicles(image, [trace], 12.0)
    assert found.closed
    assert (model * membrane).sum() / (membrane**2).sum() == pytest.approx(1, abs=0.05)
    assert np.sqrt(((model - membrane) ** 2).sum() / (membrane**2).sum()) < 0.15
    assert np.abs(model[np.abs(distance) > 24]).max() == 0
    masked = trace_membranes(image, 3.0, mask=(np.abs(distance) < 6).astype(float))
    assert [one.closed for one in masked] == [True]
