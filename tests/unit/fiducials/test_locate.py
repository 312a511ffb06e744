"""Points projected with trigonometry written out are found in space again."""

import numpy as np
import pytest

from verglas.algo.fiducials.locate import locate_beads, project_beads
from verglas.algo.fiducials.search import find_in_view, recover_beads

TILTS = np.arange(-60, 61, 5.0)
AXIS = 83.0
REACH = np.array([3200.0, 3000.0])


def make_geometry(seed=0):
    shifts = np.random.default_rng(seed).normal(0, 150, (len(TILTS), 2))
    a = np.deg2rad(AXIS)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    matrices = np.tile(np.eye(4), (len(TILTS), 1, 1))
    for i, tilt in enumerate(np.deg2rad(TILTS)):
        lean = np.array([[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]])
        matrices[i, :3, :3] = turn @ lean
        matrices[i, :2, 3] = shifts[i]
    return matrices


def find(points, matrices, *, missed=0.15, false=3, error=6.0, seed=1):
    """What a finder would tell: most of the points, a little off, and a few that are none."""
    rng = np.random.default_rng(seed)
    found = []
    for matrix in matrices:
        places = np.array([(matrix @ [*point, 1.0])[:2] for point in points]).reshape(-1, 2)
        keep = (np.abs(places) < REACH).all(axis=1) & (rng.uniform(size=len(places)) > missed)
        places = places[keep] + rng.normal(0, error, (int(keep.sum()), 2))
        found.append(rng.permutation(np.concatenate([places, rng.uniform(-1, 1, (false, 2)) * REACH])))
    return found


def test_points_are_found_in_space():
    rng = np.random.default_rng(3)
    points = rng.uniform(-1, 1, (20, 3)) * [2500, 2500, 900]
    matrices = make_geometry()
    located = locate_beads(find(points, matrices), matrices, 70.0, REACH)
    distance = np.linalg.norm(located.points_angstrom[:, None] - points, axis=2)
    assert (distance.min(axis=0) < 15).all()
    assert len(located.points_angstrom) <= 21
    assert 5 < located.residual_angstrom < 20


def test_no_finding_belongs_to_two_beads_and_owners_are_right():
    points = np.array([[0.0, 0, 0], [150.0, 0, 0], [-900.0, 400, 300], [800, -700, -400]])
    matrices = make_geometry()
    found = find(points, matrices, missed=0.0, false=0)
    located = locate_beads(found, matrices, 70.0, REACH)
    assert len(located.points_angstrom) == 4
    projected = project_beads(located.points_angstrom, matrices)
    for view, owners in enumerate(located.owners):
        assert sorted(owners) == [0, 1, 2, 3]
        assert (np.linalg.norm(projected[view][owners] - found[view], axis=1) < 70).all()


def test_projections_are_those_of_the_matrices():
    matrices = make_geometry()
    points = np.array([[10.0, -20.0, 300.0]])
    expected = [(matrix @ [10.0, -20.0, 300.0, 1.0])[:2] for matrix in matrices]
    np.testing.assert_allclose(project_beads(points, matrices)[:, 0], expected)


def test_views_that_are_not_aligned_show_no_beads_in_space():
    points = np.random.default_rng(3).uniform(-1, 1, (15, 3)) * [2500, 2500, 900]
    wrong = make_geometry(seed=9)
    located = locate_beads(find(points, make_geometry()), wrong, 40.0, REACH)
    assert len(located.points_angstrom) <= 3


def test_nothing_found_is_nothing_located():
    located = locate_beads([np.empty((0, 2))] * len(TILTS), make_geometry(), 70.0, REACH)
    assert located.points_angstrom.shape == (0, 3)
    assert np.isnan(located.residual_angstrom)


@pytest.mark.parametrize("shape", [(400, 420), (401, 397)])
def test_large_beads_are_found_in_averaged_views(shape):
    places = np.array([[-90.4, 60.2], [44.0, -101.0], [120.7, 130.3]])
    y, x = (np.arange(n) - n // 2 for n in shape)
    image = np.random.default_rng(0).normal(10, 1.0, shape)
    for place in places:
        image[np.hypot(x - place[0], (y - place[1])[:, None]) < 17] -= 4
    beads = find_in_view(image.astype(np.float32), 34.0)
    distance = np.linalg.norm(beads.positions_px[:, None] - places, axis=2).min(axis=0)
    assert len(beads) == 3
    assert distance.max() < 1.5


def test_a_faint_bead_is_found_where_it_is_expected_and_only_there():
    shape = (300, 300)
    y, x = (np.arange(n) - n // 2 for n in shape)
    image = np.random.default_rng(0).normal(10, 1.0, shape)
    image[np.hypot(x - 40, (y + 25)[:, None]) < 5] -= 0.85
    expected = np.array([[43.0, -22.0], [-80.0, 70.0], [900.0, 0.0]])
    places, seen = recover_beads(image.astype(np.float32), expected, 10.0, 7.0)
    assert seen.tolist() == [True, False, False]
    assert np.linalg.norm(places[0] - [40, -25]) < 3
